"""Compressed bodies: the same request either way, and no bomb, fragment or strange window costs more than its bound."""

import asyncio
import gzip
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from service.errors import Code, Refusal
from service.http.compression import CODINGS, accepted_coding, compress, content_coding, expand
from tests.service.running import ROOT, ask, make_app, metric, request_of, started

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}


def code_of(body: bytes, coding: str, limit: int = 1000) -> Code:
    with pytest.raises(Refusal) as refused:
        expand(body, coding.encode(), limit)
    return refused.value.code


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate", "zstd", "identity", ""])
def test_a_compressed_request_is_answered_as_if_it_were_plain(client: TestClient, coding: str):
    """Byte for byte."""
    body = json.dumps(request_of(1, 2, 3, request_id="r", arm="student")).encode()
    name = coding.lower().removeprefix("x-")
    packed = PACK[name](body) if name in PACK else body

    reply = client.post("/predict", content=packed, headers={"content-encoding": coding})

    assert reply.content == client.post("/predict", content=body).content


@pytest.mark.parametrize("coding", PACK)
def test_a_body_of_the_greatest_length_is_expanded_and_a_byte_more_is_not(coding: str):
    """The bound is the plain body's, and counts in `retort_refused_total` like it."""
    assert expand(PACK[coding](b"x" * 1000), coding.encode(), 1000) == b"x" * 1000
    assert code_of(PACK[coding](b"x" * 1001), coding) is Code.BODY_TOO_LARGE


@pytest.mark.parametrize("coding", PACK)
def test_a_bomb_is_refused_at_the_bound_and_the_connection_serves_on(client: TestClient, coding: str):
    """A gigabyte in a few hundred kilobytes or less costs no more than what may be sent; it is counted."""
    bomb = b"".join(bomb_of(coding))
    assert len(bomb) < 1 << 19
    before = metric(client.get("/metrics").text, "retort_refused_total", reason="body_too_large")

    reply = client.post("/predict", content=bomb, headers={"content-encoding": coding})

    assert (reply.status_code, reply.json()["code"]) == (413, "body_too_large")
    assert "connection" not in reply.headers
    assert metric(client.get("/metrics").text, "retort_refused_total", reason="body_too_large") == before + 1


def bomb_of(coding: str) -> list[bytes]:
    """Zeros, packed a megabyte at a time: 1 GB for zstd, 256 MB for zlib, which packs a thousandfold at best."""
    if coding == "zstd":
        stream: Any = zstd.ZstdCompressor()
        return [*(stream.compress(bytes(1 << 20)) for _ in range(1024)), stream.flush()]
    stream = zlib.compressobj(9, wbits=31 if coding == "gzip" else 15)
    return [*(stream.compress(bytes(1 << 20)) for _ in range(256)), stream.flush()]


@pytest.mark.parametrize("coding", PACK)
def test_what_does_not_expand_is_refused(coding: str):
    """Cut short anywhere, damaged, in another coding, or with something behind it: no second stream is read."""
    packed = PACK[coding](b"some text, some text")

    for end in range(len(packed)):
        assert code_of(packed[:end], coding) is Code.MALFORMED_ENCODING
    assert code_of(packed + b"x", coding) is Code.MALFORMED_ENCODING
    assert code_of(packed + packed, coding) is Code.MALFORMED_ENCODING
    for other in PACK.keys() - {coding}:
        assert code_of(packed, other) is Code.MALFORMED_ENCODING


def test_a_zstd_window_beyond_8_mib_is_not_granted():
    """RFC 9659: whoever asks for more would make us allocate it with the first bytes."""

    def packed(window: int) -> bytes:
        stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window})
        return stream.compress(b"{}") + stream.flush()

    assert expand(packed(23), b"zstd", 1000) == b"{}"
    assert code_of(packed(24), "zstd") is Code.MALFORMED_ENCODING
    assert code_of(packed(27), "zstd") is Code.MALFORMED_ENCODING


@given(st.sampled_from(CODINGS), st.binary(max_size=200), st.integers(0, 50))
def test_whatever_comes_it_is_expanded_within_the_bound_or_refused(coding: bytes, body: bytes, limit: int):
    """Nothing but a `Refusal` is ever raised."""
    try:
        size, code = len(expand(body, coding, limit)), None
    except Refusal as refusal:
        size, code = 0, refusal.code

    assert size <= limit
    assert code in (None, Code.MALFORMED_ENCODING, Code.BODY_TOO_LARGE)


@given(st.sampled_from(CODINGS), st.binary(max_size=2000))
def test_what_is_compressed_expands_to_itself(coding: bytes, body: bytes):
    """Ours by theirs, and theirs by ours."""
    assert expand(compress(body, coding), coding, 2000) == body
    assert expand(PACK[coding.decode()](body), coding, 2000) == body


@pytest.mark.parametrize("value", [b"br", b"compress", b"gzip, gzip", b"gzip,", b"\xff", b"chunked"])
def test_another_coding_is_refused_with_those_that_are_read(value: bytes):
    """RFC 7694: Accept-Encoding in the answer."""
    with pytest.raises(Refusal) as refused:
        content_coding(value)

    assert refused.value.code is Code.UNSUPPORTED_ENCODING
    assert refused.value.headers == ((b"accept-encoding", b"gzip, deflate, zstd"),)


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        (b"gzip", b"gzip"),
        (b"deflate", b"deflate"),
        (b"gzip, deflate, br, zstd", b"gzip"),
        (b"deflate;q=0.5, zstd", b"zstd"),
        (b"GZip ; q=0.3", b"gzip"),
        (b"*", b"gzip"),
        (b"*;q=0.5, gzip;q=0", b"deflate"),
        (b"", None),
        (b"br", None),
        (b"identity", None),
        (b"gzip;q=0", None),
        (b"gzip;q=0.5, identity", None),
        (b"gzip;q=nan", None),
        (b"gzip;q=x", None),
        (b";;;,,,=", None),
    ],
)
def test_an_answer_is_compressed_as_its_client_likes_best(header: bytes, coding: bytes | None):
    """Of equal wishes gzip before deflate before zstd; plain where that is liked as much."""
    assert accepted_coding(header) == coding


def test_an_overloaded_worker_expands_nothing(repository: Path):
    """The refusal comes before any work: what does not expand is refused as overload, not for itself."""

    async def beyond() -> Any:
        async with started(make_app(repository, max_in_flight=1)) as app:
            app.predictor.admission.in_flight = 1
            return await ask(app, "/predict", b"no gzip", headers=[("content-encoding", "gzip")])

    assert asyncio.run(beyond()).status == 429


def test_zstd_is_imported_with_the_first_body_that_needs_it():
    """Nor anything else of the kind, with the service."""
    code = "import sys, service.app; print([m for m in sys.modules if 'zstd' in m])"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.strip() == "[]", done.stderr
