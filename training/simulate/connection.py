"""One kept-alive HTTP/1.1 connection, as little of it as the service needs: a client that costs more than the service
would measure itself."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from training.errors import TrainingError

MAX_HEAD_BYTES = 1 << 16


class ConnectionFailedError(Exception):
    """No answer, or none that could be read; says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service listens."""

    host: str
    port: int
    base: str
    """What paths begin with; empty or /…"""
    is_tls: bool

    @classmethod
    def of(cls, url: str) -> Address:
        """From http://host:port/base; `TrainingError` for what is none."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise TrainingError(f"--url: expected http://host:port, got {url!r}")
        is_tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if is_tls else 80), parts.path.rstrip("/"), is_tls)


class Connection:
    """Opened with its first request, and again whenever it was closed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: bytes = b"", *, seconds: float) -> tuple[int, bytes]:
        """(status, body) within `seconds`, or `ConnectionFailedError`.

        A connection that the service closed while nothing was asked of it is opened again, once.
        """
        try:
            async with asyncio.timeout(seconds):
                was_open = self._writer is not None
                try:
                    return await self._exchange(method, path, body)
                except (OSError, EOFError):
                    if not was_open:
                        raise
                    self.close()
                    return await self._exchange(method, path, body)
        except TimeoutError:
            self.close()
            raise ConnectionFailedError(f"no answer within {seconds:g} s") from None
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            self.close()
            raise ConnectionFailedError(_words(error)) from None
        except asyncio.CancelledError:
            self.close()
            raise

    async def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        address = self._address
        if self._writer is None or self._reader is None:
            context = ssl.create_default_context() if address.is_tls else None
            self._reader, self._writer = await asyncio.open_connection(
                address.host, address.port, ssl=context, limit=MAX_HEAD_BYTES
            )
        head = (
            f"{method} {address.base}{path} HTTP/1.1\r\nhost: {address.host}:{address.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        await self._writer.drain()
        received = await self._reader.readuntil(b"\r\n\r\n")
        first, *lines = received.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if not first.startswith("HTTP/1.") or "content-length" not in headers:
            raise ValueError("expected an HTTP/1.1 answer with a content-length")
        status = int(first.split(" ", 2)[1])
        content = await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close" or first.startswith("HTTP/1.0"):
            self.close()
        return status, content

    def close(self) -> None:
        """Also in the middle of an answer."""
        if self._writer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                self._writer.close()
        self._reader = self._writer = None


def _words(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "the connection was closed before the answer was whole"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error)
