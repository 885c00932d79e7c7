"""The little of ASGI that the hot path needs: a body within its limit, an answer in two messages.

Knows nothing of models. Headers are judged before a byte of the body is read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from service.errors import PROBLEM_JSON, Code, Refusal
from service.http.compression import content_coding, expand

LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 27

FIRST_BYTE = "retort.first_byte"
"""In a scope's state: when the first byte of the request was there, in `perf_counter` seconds."""

JSON = b"application/json"
CLOSE = (b"connection", b"close")
TRACEPARENT = b"traceparent"


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The `traceparent` of a request (W3C Trace Context); empty where there is none or, which means none, more than
    one."""
    found = [value for name, value in headers if name == TRACEPARENT]
    return found[0] if len(found) == 1 else b""


INPUT_ENDED = "retort.input_ended"
"""In the scope of a request whose client will send nothing more: it may be gone, or have closed its half and wait."""


class ClientGoneError(Exception):
    """The client went away before its request was complete: nobody is left to answer."""


class Answer(NamedTuple):
    """A whole answer: status, body, and the headers beside content type and length."""

    status: int
    body: bytes
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """Every header, lower case, as ASGI wants them."""
        return [
            (b"content-type", self.content_type),
            (b"content-length", str(len(self.body)).encode()),
            *self.headers,
        ]


def refuse(refusal: Refusal) -> Answer:
    """A refusal as problem+json."""
    # Some are made once and raised again and again: each raise would add to what this holds, frames and bodies and all.
    refusal.__traceback__ = refusal.__context__ = None
    return Answer(refusal.status, refusal.body(), PROBLEM_JSON, refusal.headers)


async def send_answer(send: Send, receive: Receive, answer: Answer, closing: bool) -> None:
    """Sends an answer; `closing` asks the client to open another connection next time.

    An answer to a body that was refused unread (413 with `Connection: close`) goes out at once, and the rest of the
    body is taken in and thrown away for a moment before the connection is closed: closed with bytes unread it would
    be reset, and a client that is still sending would see a broken pipe where it should see the refusal.
    """
    headers = answer.raw_headers()
    if closing and CLOSE not in headers:
        headers.append(CLOSE)
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if answer.status == 413 and CLOSE in answer.headers:
        await send({"type": "http.response.body", "body": answer.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_throw_away(receive), LINGER_SECONDS)
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.body", "body": answer.body})


async def _throw_away(receive: Receive) -> None:
    size = 0
    while size <= LINGER_BYTES:
        message: Any = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


def _check_media_type(value: bytes, accepted: tuple[bytes, ...]) -> None:
    kind, _, parameters = value.partition(b";")
    if kind.strip().lower() not in accepted:
        detail = f"expected a body of type {b' or '.join(accepted).decode()}"
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, detail)
    for parameter in parameters.split(b";"):
        name, _, charset = parameter.partition(b"=")
        if name.strip().lower() == b"charset" and charset.strip(b' "').lower() not in (b"utf-8", b"utf8"):
            raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, "expected JSON in UTF-8")


def _too_large(limit: int) -> Refusal:
    # What follows of the body is not worth reading: the connection is closed behind the answer.
    detail = f"the body may have at most {limit} bytes"
    return Refusal(Code.BODY_TOO_LARGE, detail, headers=(CLOSE,))


async def read_body(
    scope: Scope, receive: Receive, limit: int, accepted: tuple[bytes, ...] = (JSON,)
) -> tuple[bytes, bytes | None]:
    """The body of a request as it was sent, at most `limit` bytes of it ever held, and the coding to expand it from.

    Refuses by the headers alone a body that says it is too long, of a type not `accepted`, or compressed in a way that
    is not read; a chunked body, once it has grown beyond the limit. Raises `Refusal`, or `ClientGoneError`.
    """
    codings: list[bytes] = []
    for name, value in scope["headers"]:
        if name == b"content-length":
            # The HTTP parser lets digits through only; a number too long to convert is too large anyhow.
            if len(value) > 18 or int(value) > limit:
                raise _too_large(limit)
        elif name == b"content-type":
            if value not in accepted:
                _check_media_type(value, accepted)
        elif name == b"content-encoding":
            codings.append(value)
    coding = content_coding(b",".join(codings)) if codings else None
    message: Any = await receive()
    if message["type"] != "http.request":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body, coding
    chunks = [body]
    size = len(body)
    while True:
        if size > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if not message.get("more_body", False) and size <= limit:
            return b"".join(chunks), coding


async def read_whole(request: Request, limit: int, accepted: tuple[bytes, ...] = (JSON,)) -> bytes:
    """The same, expanded, where nothing has to come between the two."""
    body, coding = await read_body(request.scope, request.receive, limit, accepted)
    return body if coding is None else expand(body, coding, limit)
