"""The catalogue of one worker: reads its file, takes a new one, follows what other workers took."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from service.catalogue.lines import Catalogue, CatalogueError, EncodedCatalogue, read_catalogue
from service.errors import Code, ConfigError, Refusal
from service.metrics import Metrics
from service.scoring.registry import Fingerprint, fingerprint_of

logger = logging.getLogger(__name__)

HEADER = b'{"retort_catalogue":1}\n'
"""The first line of the file, and its format's version."""


class _Header(msgspec.Struct, forbid_unknown_fields=True):
    retort_catalogue: int


class CatalogueKeeper:
    """What this worker knows of the catalogue; one change at a time."""

    def __init__(self, path: Path | None, metrics: Metrics, loaded: Callable[[], Iterable[EncodedCatalogue]]) -> None:
        """`loaded`: the encoded catalogues of every version that is loaded."""
        self._path = path
        self._metrics = metrics
        self._loaded = loaded
        self._turn = asyncio.Lock()
        self._seen: Fingerprint | None = None
        self.current: Catalogue | None = None

    async def start(self) -> None:
        """Reads the file, where there is one. Raises `ConfigError` for one that is no catalogue."""
        if self._path is None:
            return
        try:
            self._seen = await asyncio.to_thread(fingerprint_of, self._path)
            if self._seen is not None:
                self._take(await self._read())
        except (CatalogueError, OSError) as error:
            raise ConfigError(f"--catalogue (RETORT_CATALOGUE): {self._path}: {error}") from None

    async def prepare(self, encoded: EncodedCatalogue) -> None:
        """Encodes the catalogue for a version that was just loaded, before anybody is answered by it."""
        while self.current is not None and encoded.version != self.current.version:
            (await encoded.encode(self.current, is_strict=False))()

    async def put(self, text: bytes) -> Catalogue:
        """Makes these lines the catalogue, for good and for all workers. Raises `Refusal`."""
        if self._path is None:
            detail = "this service keeps no catalogue: start it with --catalogue and the file to keep it in"
            raise Refusal(Code.NO_CATALOGUE, detail)
        async with self._turn:
            try:
                catalogue = await read_catalogue(text)
                ready = [await encoded.encode(catalogue, is_strict=True) for encoded in self._loaded()]
            except CatalogueError as error:
                raise Refusal(Code.INVALID_CATALOGUE, str(error), field=error.field, row=error.line) from None
            try:
                self._seen = await asyncio.to_thread(_replace, self._path, catalogue.text)
            except OSError as error:
                detail = f"the catalogue cannot be kept ({error.strerror}): look at the disk and at --catalogue"
                raise Refusal(Code.INTERNAL, detail) from None
            for bring_into_force in ready:
                bring_into_force()
            self._take(catalogue)
            for encoded in self._loaded():  # loaded meanwhile
                await self.prepare(encoded)
        return catalogue

    async def follow(self, poll_seconds: float) -> None:
        """Follows the file for ever; one that is no catalogue is logged, and the last good one kept."""
        while self._path is not None:
            await asyncio.sleep(poll_seconds)
            try:
                await self._look()
            except (CatalogueError, OSError) as error:
                logger.error("the catalogue is refused, the last good one stays: %s: %s", self._path, error)
            except Exception:
                logger.exception("looking at the catalogue failed")

    async def _look(self) -> None:
        assert self._path is not None
        async with self._turn:
            found = await asyncio.to_thread(fingerprint_of, self._path)
            if found is None or found == self._seen:
                return
            self._seen = found
            self._take(await self._read())
            for encoded in self._loaded():
                await self.prepare(encoded)

    async def _read(self) -> Catalogue:
        assert self._path is not None
        header, _, text = (await asyncio.to_thread(self._path.read_bytes)).partition(b"\n")
        try:
            version = msgspec.json.decode(header, type=_Header).retort_catalogue
        except msgspec.DecodeError:
            version = None
        if version != 1:
            raise CatalogueError(1, f"expected {HEADER.decode().strip()}, which this version of the service reads")
        return await read_catalogue(text)

    def _take(self, catalogue: Catalogue) -> None:
        self.current = catalogue
        self._metrics.catalogue_candidates.set(len(catalogue.lines))
        logger.info("the catalogue is in force: version %s, %d candidates", catalogue.version, len(catalogue.lines))


def _replace(path: Path, text: bytes) -> Fingerprint | None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(HEADER)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return fingerprint_of(path)
