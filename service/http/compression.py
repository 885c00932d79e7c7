"""Compressed bodies: expanded within a bound, and answers compressed where a client asks for it.

    Content-Encoding    gzip (x-gzip), deflate (the zlib format, as RFC 9110 has it), zstd (RFC 8878)

A body is expanded when it is whole and its request is admitted, in one call that stops at the bound: a bomb costs what
a body of the greatest length costs, and nobody holds an open decompressor while sending slowly. zstd may ask for a
window of at most 8 MiB, which RFC 9659 makes the rule for HTTP.

zstd is imported with the first body that needs it: a service that never meets one does not pay for it.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

from service.errors import Code, Refusal

CODINGS = (b"gzip", b"deflate", b"zstd")
"""What is read and written; of equal wishes the first is granted."""
ACCEPT = (b"accept-encoding", b", ".join(CODINGS))
"""Goes out with the refusal of any other coding (RFC 7694)."""

WINDOW_LOG = 23
SHORT_ANSWER = 1024
"""Answers of fewer bytes are sent as they are: compressing would cost more than it saves."""

_ZLIB_FORMATS = {b"gzip": 31, b"deflate": 15}


def content_coding(value: bytes) -> bytes | None:
    """The coding that a Content-Encoding header names, None for a plain body. Raises `Refusal` for one not read."""
    name = value.strip().lower()
    if name in (b"", b"identity"):
        return None
    if name == b"x-gzip":
        return b"gzip"
    if name in CODINGS:
        return name
    detail = "expected a body that is plain, or compressed once with gzip, deflate or zstd"
    raise Refusal(Code.UNSUPPORTED_ENCODING, detail, headers=(ACCEPT,))


def expand(body: bytes, coding: bytes, limit: int) -> bytes:
    """What was compressed, at most `limit` bytes of it. Raises `Refusal` where it is longer, cut short or damaged,
    or where something follows it."""
    stream: Any
    if coding == b"zstd":
        zstd = _zstd()
        damage: type[Exception] = zstd.ZstdError
        stream = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})
    else:
        damage = zlib.error
        stream = zlib.decompressobj(_ZLIB_FORMATS[coding])
    try:
        plain: bytes = stream.decompress(body, limit + 1)
    except damage:
        also = ", or needs a window of more than 8 MiB" if coding == b"zstd" else ""
        raise _malformed(coding, f"it is damaged, or compressed another way{also}") from None
    if len(plain) > limit:
        raise Refusal(Code.BODY_TOO_LARGE, f"the body may have at most {limit} bytes, also when it is expanded")
    if not stream.eof:
        raise _malformed(coding, "it ends too early")
    if stream.unused_data:
        raise _malformed(coding, "something follows it")
    return plain


def _malformed(coding: bytes, what: str) -> Refusal:
    return Refusal(Code.MALFORMED_ENCODING, f"expected a body in {coding.decode()}: {what}")


def accepted_coding(value: bytes) -> bytes | None:
    """The coding that an Accept-Encoding header likes best among ours; None where it likes a plain answer as much."""
    wishes = {}
    for part in value.lower().split(b",", 32)[:32]:
        name, _, parameter = part.partition(b";")
        wishes[name.strip()] = _quality(parameter)
    best, liked = None, 0.0
    for coding in CODINGS:
        quality = wishes.get(coding, wishes.get(b"*", 0.0))
        if quality > liked:
            best, liked = coding, quality
    return best if liked > wishes.get(b"identity", 0.0) else None


def _quality(parameter: bytes) -> float:
    name, _, value = parameter.partition(b"=")
    if name.strip() != b"q":
        return 1.0
    try:
        return min(max(float(value), 0.0), 1.0)
    except ValueError:
        return 0.0


def compress(body: bytes, coding: bytes) -> bytes:
    """The body in that coding, quickly rather than small."""
    if coding == b"zstd":
        packed: bytes = _zstd().compress(body, 1)
        return packed
    stream = zlib.compressobj(1, zlib.DEFLATED, _ZLIB_FORMATS[coding])
    return stream.compress(body) + stream.flush()


def _zstd() -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
