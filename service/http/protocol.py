"""uvicorn's HTTP/1.1 protocol, with the clock started where a request really starts, and guarded.

A deadline counts from the first byte of the request, not from the moment the event loop found time for it:
under load the two are far apart. The guards cost nothing to a request that arrives whole:

    a request that is still not complete after REQUEST_SECONDS     408, and the connection closes
    more incomplete requests, or bytes of them, than `Arriving`    408 for those that have been arriving longest
    answers that nobody reads for UNREAD_SECONDS                   the connection is aborted
    a head beyond MAX_HEAD_BYTES or MAX_HEADERS                    431, and the connection closes
    a body in more than MAX_CHUNKS chunks                          413, likewise: a byte each is 200 ms a megabyte
    what is no HTTP, or names no host, or two                      400, as problem+json like every other refusal
    `Transfer-Encoding` other than chunked                         415, and the connection closes
    `Upgrade: h2c` or websocket                                    ignored, and the body read (RFC 9110, 7.8)
    a client that closes its half once it has sent a request       gets its answer
    an idle connection that has to end, and a request just came    is answered first

`POST /predict` in its common form is answered from here, without ASGI (`direct.py`).

Refused here, a request is counted in `retort_refused_total` and nowhere else: no route ever saw it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import Code, Refusal
from service.http.asgi import CLOSE, INPUT_ENDED, Answer, refuse
from service.http.asgi import FIRST_BYTE as FIRST_BYTE
from service.http.direct import END_OF_HEAD, Direct, Exchange
from service.http.listening import has_input

REQUEST_SECONDS = 3.0
UNREAD_SECONDS = 10.0
MAX_HEAD_BYTES = 1 << 16
MAX_HEADERS = 256
MAX_CHUNKS = 10_000
MAX_ARRIVING = 1024
REREAD_SECONDS = 0.01
"""In so long the event loop has read what there was to read."""
MAX_ARRIVING_BODIES = 128
"""So many bodies of the greatest length, half arrived, may be held at once."""

_TOO_SLOW = refuse(Refusal(Code.REQUEST_TIMEOUT, "the request did not arrive in time", headers=(CLOSE,)))
_TOO_LONG = refuse(Refusal(Code.HEADERS_TOO_LARGE, "the request line and headers are too long", headers=(CLOSE,)))
_TOO_MANY = refuse(Refusal(Code.BODY_TOO_LARGE, f"the body may have at most {MAX_CHUNKS} chunks", headers=(CLOSE,)))
_MALFORMED = refuse(Refusal(Code.MALFORMED_HTTP, "expected HTTP/1.1", headers=(CLOSE,)))

_NO_HOST = refuse(Refusal(Code.MALFORMED_HTTP, "expected one Host header", headers=(CLOSE,)))
_ENCODED = refuse(
    Refusal(Code.UNSUPPORTED_ENCODING, "no transfer coding but chunked is read: use Content-Encoding", headers=(CLOSE,))
)


class _ExcessError(Exception):
    """Stops the parser within a piece of data: `GuardedProtocol._excess` says why."""


class Arriving:
    """The requests of a worker that have begun to arrive and are not whole yet, and what they hold of its memory.

    Beyond a bound it is not the newest that goes but the one that has been arriving longest: so clients that hold
    halves of requests open shorten the patience with halves, and nobody else is kept out. A request that arrives in
    one piece is never here.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._sizes: dict[GuardedProtocol, int] = {}  # longest first
        self._bytes = 0

    def add(self, connection: GuardedProtocol, size: int) -> None:
        """Takes note of `size` bytes more of a connection's incomplete request."""
        self._sizes[connection] = self._sizes.get(connection, 0) + size
        self._bytes += size
        while len(self._sizes) > self._max_requests or self._bytes > self._max_bytes:
            longest = next(iter(self._sizes))
            self.remove(longest)
            longest.lose_patience()

    def remove(self, connection: GuardedProtocol) -> None:
        """The connection's request is whole, or is no longer waited for."""
        self._bytes -= self._sizes.pop(connection, 0)


class GuardedProtocol(HttpToolsProtocol):
    """Notes in `scope["state"]` when the first byte of a request was parsed, in `perf_counter` seconds, and bounds
    what a client can hold open."""

    cycle: Any
    """uvicorn's `RequestResponseCycle`, or an `Exchange`, of the last request whose head is there."""

    def __init__(
        self,
        *,
        arriving: Arriving,
        count_refusal: Callable[[Code], object] = lambda _: None,
        direct: Direct | None = None,
        **given: Any,
    ) -> None:
        """`arriving` is shared by a worker's connections, `count_refusal` told of requests that are refused here,
        `direct` answers common requests without ASGI; the rest is uvicorn's."""
        super().__init__(**given)
        self._arriving = arriving
        self._count_refusal = count_refusal
        self._direct = direct
        self._last_answer = 0.0
        self._incomplete = False
        self._in_head = False
        self._head_bytes = 0
        self._chunks = 0
        self._patience: asyncio.TimerHandle | None = None
        self._is_deaf = False
        self._excess: tuple[Code, Answer] | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._answered: RequestResponseCycle | Exchange | None = None
        """What uvicorn answers just now: with requests in a pipeline its `cycle` is the last of them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn begins to count an idle connection's time with its first answer.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def hasten(self, seconds: float) -> None:
        """From now on the connection ends when it has been idle for so long."""
        self.timeout_keep_alive = seconds  # type: ignore[assignment]  # fractions too
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Ends an idle connection, unless something has arrived and only was not read yet."""
        self.timeout_keep_alive_task = None
        if self.transport.is_closing() or self._incomplete:
            return
        if type(self.cycle) is Exchange:  # which leaves the timer alone: twice a request it would cost too much
            if not self.cycle.response_complete:
                return
            seconds = self._last_answer + self.timeout_keep_alive - self.loop.time()
            if seconds > 0:
                self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
                return
        if has_input(self.transport.get_extra_info("socket").fileno()):  # a request, or blank lines
            self.timeout_keep_alive_task = self.loop.call_later(REREAD_SECONDS, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()
            self._expect_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None and not self.transport.is_closing():
            self._unread.cancel()
            self._unread = None

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reading()

    def _expect_reading(self) -> None:
        """The client has to read what is written for it, in `UNREAD_SECONDS`: one that never does would hold the
        connection, and the end of the service, for as long as it likes."""
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(UNREAD_SECONDS, self._abort_unread)

    def _abort_unread(self) -> None:
        self._unread = None
        if self.transport.get_write_buffer_size():
            self._count_refusal(Code.REQUEST_TIMEOUT)
            self.transport.abort()

    def shutdown(self) -> None:
        """Makes the answer that is owed the connection's last. An idle one ends by itself, soon (`hasten`)."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        if type(self._answered) is Exchange:
            self._answered.abandon()
        elif self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps the connection for the answers that are owed."""
        cycle = self.cycle
        if self._incomplete or cycle is None or cycle.response_complete:
            return False
        cycle.keep_alive = False
        if not isinstance(cycle, Exchange):
            cycle.scope[INPUT_ENDED] = True
        return True

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        head = b""
        if self._direct is not None and not self._incomplete and self._may_answer_directly(before):
            head = data[: data.find(END_OF_HEAD) + len(END_OF_HEAD)]
            length = self._direct.known_length(head)
            if length is not None and len(head) + length == len(data) and self._direct.is_open:
                if self._direct.predictor.admission.is_full and self._is_in_exchanges(before):
                    self.transport.write(self._direct.turn_away(self.server_state.default_headers))
                    self._note_answer()
                    return
                started = perf_counter()
                self._expect(length).begin(self._direct.predictor, data[len(head) :], started)
                return
        rest: bytes | None = data
        while rest is not None and not self._is_deaf and not self.transport.is_closing():
            rest = self._feed(rest)
        now = self.cycle
        if head and type(now) is Exchange and now is not before and not self._incomplete:
            assert self._direct is not None
            if len(head) + now.length == len(data):  # one request, which began and ended with it
                self._direct.learn(head, now.length)

    def _may_answer_directly(self, cycle: RequestResponseCycle | Exchange | None) -> bool:
        """Whether the connection owes no answer and takes one."""
        return (
            (cycle is None or cycle.response_complete)
            and not (self.flow.write_paused or self._is_deaf)
            and not self.transport.is_closing()
        )

    def _expect(self, length: int) -> Exchange:
        """A request that is answered directly, from now on the one that the connection is about."""
        exchange = Exchange(length, self._answer_directly)
        self.cycle = self._answered = exchange
        return exchange

    def _answer_directly(self, exchange: Exchange, answer: Answer) -> None:
        assert self._direct is not None
        if self.transport.is_closing():
            exchange.response_complete = True
            return
        defaults = self.server_state.default_headers
        self.transport.write(self._direct.head_of(answer, defaults, exchange.keep_alive) + answer.body)
        exchange.response_complete = True
        if not exchange.keep_alive:
            self.transport.close()
        if exchange.keep_alive and self._is_in_exchanges(exchange):
            self._note_answer()
        else:
            self.on_response_complete()

    def _is_in_exchanges(self, last: RequestResponseCycle | Exchange | None) -> bool:
        """Whether nothing waits behind this answer, and the timer, left as it is, knows what to look at."""
        return type(last) is Exchange and self.timeout_keep_alive_task is not None and not self.pipeline

    def _note_answer(self) -> None:
        """`on_response_complete` for an exchange, without a new timer: its handler looks when the last answer was."""
        self.server_state.total_requests += 1
        self._last_answer = self.loop.time()

    def _feed(self, data: bytes) -> bytes | None:
        """Parses what has arrived; returns what is to be parsed anew."""
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:  # also what a callback raised
            self._refuse(*self._excess or (Code.MALFORMED_HTTP, _MALFORMED))
            return None
        if self._incomplete:
            if (self._in_head and self._head_bytes > MAX_HEAD_BYTES) or len(self.headers) > MAX_HEADERS:
                self._refuse(Code.HEADERS_TOO_LARGE, _TOO_LONG)
            else:
                if self._patience is None:
                    self._patience = self.loop.call_later(REQUEST_SECONDS, self.lose_patience)
                is_answered = not self._in_head and self.cycle.response_started  # the rest is thrown away as it comes
                self._arriving.add(self, 0 if is_answered else len(data))
        return None

    def on_message_begin(self) -> None:
        self._unset_keepalive_if_required()  # not before: blank lines begin no message, and an idle connection ends
        super().on_message_begin()
        self._incomplete = self._in_head = True
        self._head_bytes = self._chunks = 0
        self.scope["state"][FIRST_BYTE] = perf_counter()

    def on_headers_complete(self) -> None:
        self._in_head = False
        # What arrived in one piece; `data_received` bounds what comes in many.
        head_bytes, hosts, is_encoded = len(self.url), 0, False
        for name, value in self.headers:
            head_bytes += len(name) + len(value) + 4
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                is_encoded = True
        if len(self.headers) > MAX_HEADERS or head_bytes > MAX_HEAD_BYTES:
            self._excess = (Code.HEADERS_TOO_LARGE, _TOO_LONG)
            raise _ExcessError
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):  # RFC 9112, 3.2
            self._excess = (Code.MALFORMED_HTTP, _NO_HOST)
            raise _ExcessError
        if is_encoded:
            self._excess = (Code.UNSUPPORTED_ENCODING, _ENCODED)
            raise _ExcessError
        if self.parser.should_upgrade():
            return
        direct, parser = self._direct, self.parser
        if (
            direct is not None
            and self._may_answer_directly(self.cycle)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
        ):
            length = direct.length_of(self.url, self.headers)
            if length is not None:
                self._expect(length)
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if type(self.cycle) is Exchange:
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MAX_CHUNKS:
            self._excess = (Code.BODY_TOO_LARGE, _TOO_MANY)
            raise _ExcessError

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._incomplete = False
        self._unset_keepalive_if_required()  # armed where the answer to an earlier request was complete first
        self._stop_waiting()
        if type(self.cycle) is Exchange:
            assert self._direct is not None
            self.cycle.begin(self._direct.predictor, bytes(self.cycle.body), self.scope["state"][FIRST_BYTE])
        else:
            super().on_message_complete()

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
            self._arriving.remove(self)

    def lose_patience(self) -> None:
        """The request that is arriving has been waited for long enough."""
        self._stop_waiting()
        if self.pipeline:  # we have not read on ourselves, because an earlier request is not answered yet
            self._patience = self.loop.call_later(REQUEST_SECONDS, self.lose_patience)
        else:
            self._refuse(Code.REQUEST_TIMEOUT, _TOO_SLOW)

    def _refuse(self, code: Code, answer: Answer) -> None:
        """Ends the connection, with an answer where none has begun; whoever reads the body is told it will not
        come. Where an earlier request still waits for its answer, that one ends the connection."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        cycle = self.cycle
        waiting = cycle is not None and not cycle.response_complete
        if waiting and not cycle.more_body:
            cycle.keep_alive = False
            self._is_deaf = True
            return
        if not (waiting and cycle.response_started):
            self._count_refusal(code)
            head = [STATUS_LINE[answer.status]]
            for name, value in (*self.server_state.default_headers, *answer.raw_headers()):
                head += [name, b": ", value, b"\r\n"]
            self.transport.write(b"".join([*head, b"\r\n", answer.body]))
        if waiting:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
        self._expect_reading()

    def _without_upgrade(self, rest: bytes) -> bytes | None:
        """The request, to be read as if nobody had asked for another protocol: the parser stops at its headers."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(Code.MALFORMED_HTTP, _MALFORMED)
            return None
        lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        for name, value in self.headers:
            if name == b"connection":
                kept = [token for token in value.split(b",") if token.strip().lower() != b"upgrade"]
                lines.append(b"connection: " + b",".join(kept))
            elif name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        return b"\r\n".join([*lines, b"", rest])
