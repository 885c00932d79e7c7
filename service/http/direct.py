"""POST /predict answered inside the HTTP protocol: no ASGI scope, no task, no messages, one write.

FastAPI, ASGI and a task a request cost more than a small model. So the common request is taken from the parser straight
to the predictor, and its answer is written straight to the transport. Common is:

    POST /predict over HTTP/1.1 with a Content-Length within the limit, JSON that is not compressed, no Expect, on a
    connection that is kept and owes no answer, while models are served and the service is not draining

Everything else takes uvicorn's way, which answers byte for byte the same (tests hold the two side by side). So this
path owes no rule of HTTP but those: framing is the parser's, and pipelining, 100-continue, chunks and closing are
uvicorn's.

Known heads. A client sends the same request line and headers again and again; only the body differs. A head that the
parser has read before, that made a common request and that arrived whole with its body, is known by its bytes, and the
next request with it is not parsed at all. A head with something new in it every time (a trace id) is parsed each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.http.asgi import JSON, TRACEPARENT, Answer
from service.scoring.predict import PREDICT, Call, Predictor

PATH = PREDICT.route.encode()
MAX_HEADS = 1024
LONGEST_HEAD = 2048
END_OF_HEAD = b"\r\n\r\n"

Headers = Iterable[tuple[bytes, bytes]]


class Direct:
    """What the connections of a worker share: the predictor, the heads they know, and the heads of answers."""

    def __init__(self, predictor: Predictor, is_draining: Callable[[], bool]) -> None:
        self.predictor = predictor
        self._is_draining = is_draining
        self._lengths: dict[bytes, int] = {}
        self._default_headers: Any = None
        self._ok = b""
        self._refusal_headers: Any = None
        self._refusal = b""

    @property
    def is_open(self) -> bool:
        """Whether anything is answered here just now."""
        return self.predictor.plan is not None and not self._is_draining()

    def length_of(self, url: bytes, headers: Headers) -> int | None:
        """The length of the body of a POST that may be answered here, or None. Its Host was checked by the parser."""
        if url != PATH or not self.is_open:
            return None
        length = None
        for name, value in headers:
            if name == b"content-length":
                if len(value) > 18:
                    return None
                length = int(value)
            elif (
                (name == b"content-type" and value != JSON)
                or name in _UNCOMMON
                or (name == TRACEPARENT and self.predictor.tracer is not None)  # that way knows its headers
            ):
                return None
        return length if length is not None and length <= self.predictor.max_body_bytes else None

    def known_length(self, head: bytes) -> int | None:
        """The length of the body that follows a head which made a common request before."""
        return self._lengths.get(head)

    def learn(self, head: bytes, length: int) -> None:
        """Takes note of a head that made a common request."""
        if len(head) <= LONGEST_HEAD:
            if len(self._lengths) >= MAX_HEADS:
                self._lengths.clear()
            self._lengths[head] = length

    def turn_away(self, default_headers: list[tuple[bytes, bytes]]) -> bytes:
        """The whole answer to a request beyond what is admitted, which is counted."""
        answer = self.predictor.turn_away_from(PREDICT)
        if default_headers is not self._refusal_headers:
            self._refusal_headers = default_headers
            self._refusal = self.head_of(answer, default_headers, keep_alive=True) + answer.body
        return self._refusal

    def head_of(self, answer: Answer, default_headers: list[tuple[bytes, bytes]], keep_alive: bool) -> bytes:
        """Status line and headers as uvicorn writes them. `default_headers` is a new list each second: the date."""
        if answer.status == 200 and keep_alive and not answer.headers:
            if default_headers is not self._default_headers:
                self._default_headers = default_headers
                lines = [name + b": " + value + b"\r\n" for name, value in default_headers]
                self._ok = b"".join((STATUS_LINE[200], *lines, b"content-type: ", JSON, b"\r\ncontent-length: "))
            return b"%b%d\r\n\r\n" % (self._ok, len(answer.body))
        headers = [*default_headers, *answer.raw_headers()]
        if not keep_alive:
            headers.append((b"connection", b"close"))
        lines = [name + b": " + value + b"\r\n" for name, value in headers]
        return b"".join((STATUS_LINE[answer.status], *lines, b"\r\n"))


_UNCOMMON = frozenset((b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"))


class _Nobody:
    """Nobody waits for messages."""

    def set(self) -> None:
        """As an asyncio.Event would."""


class Exchange:
    """One request that is answered here. Stands where uvicorn has its `RequestResponseCycle`, and so has its words."""

    __slots__ = ("_call", "_write", "body", "disconnected", "keep_alive", "length", "more_body", "response_complete")

    message_event = _Nobody()

    def __init__(self, length: int, write: Callable[[Exchange, Answer], object]) -> None:
        """`write` sends the answer, unless the exchange is disconnected by then."""
        self.length = length
        self.more_body = True
        self.keep_alive = True
        self.response_complete = False
        self.disconnected = False
        self.body: bytes | bytearray = b""
        self._write: Callable[[Exchange, Answer], object] | None = write
        self._call: Call | None = None

    @property
    def response_started(self) -> bool:
        """An answer is one write."""
        return self.response_complete

    def take(self, part: bytes) -> None:
        """Some of the body. Nothing is copied where it comes in one piece."""
        if not self.body:
            self.body = part
        elif type(self.body) is bytearray:
            self.body += part
        else:
            self.body = bytearray(self.body) + part

    def begin(self, predictor: Predictor, body: bytes, started: float) -> None:
        """The request is whole."""
        self.more_body = False
        if predictor.admission.is_full:
            self.answer(predictor.turn_away_from(PREDICT))
            return
        call = predictor.begin(PREDICT, body, started, self.answer)
        if not self.response_complete:
            self._call = call

    def answer(self, answer: Answer) -> None:
        """Sends it, where the client is still there."""
        self._call = None
        write, self._write = self._write, None  # the connection knows us, and need not be known for ever
        if write is not None and not self.disconnected:
            write(self, answer)

    def abandon(self) -> None:
        """The client is gone: nothing is written any more, and nothing scored that is not running."""
        self.disconnected = True
        self._write = None
        if self._call is not None:
            self._call.is_abandoned = True
            self._call = None
