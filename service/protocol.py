"""uvicorn's HTTP/1.1 protocol, with the clock started where a request really starts.

A deadline counts from the first byte of the request, not from the moment the event loop found time for it:
under load the two are far apart. Room is left here for guards on slow headers and bodies.
"""

from __future__ import annotations

from time import perf_counter

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

FIRST_BYTE = "retort.first_byte"


class StampedProtocol(HttpToolsProtocol):
    """Notes in `scope["state"]` when the first byte of a request was parsed, in `perf_counter` seconds."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"][FIRST_BYTE] = perf_counter()
