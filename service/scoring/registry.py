"""Which model versions are loaded and which are live: looks at the repository, loads beside, swaps.

Everything that touches the disk or builds a session happens in one loader thread, one load at a time, while
the event loop goes on answering; the bookkeeping happens on the loop, between two requests. A version that
does not load, or whose golden rows come out differently, is refused, counted and logged, and what was live
stays live. It is tried again only when its files change.

With `latest`, the live version is the newest that loads. This is also what a worker started later finds, so that
workers agree although one of them never saw the version before. With a number it is that version or, where it cannot be
served, still the one that was live; each edit of the live file that comes to nothing is logged and counted.

Any client may ask for any version of a model. That must not cost those who are scored by the live one: versions
that are not there are refused from memory, the others are loaded one at a time and for a small share of the time,
few are kept, and only what nothing else needs is ever released.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TypeVar

from models.bundle import read_bundle
from models.errors import BundleError, ModelNotFoundError, ModelsError
from models.versions import LATEST, LIVE_FILE, NONE, Repository, Wish
from service.errors import LoadDeferredError, ModelLoadError
from service.metrics import Metrics
from service.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

Version = tuple[str, int]
Fingerprint = tuple[int, int, int]
Signature = tuple[tuple[str, int, int], ...]
T = TypeVar("T")

LOAD_SHARE = 0.05
"""Share of the time that may go into loading versions for single requests."""
LOAD_SECONDS = 1.0
"""The shortest time after which a request that came too early is told to try again."""
MOST_WARMED = 10_000
"""So many candidates that the version before knows are encoded for the next before it answers."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the repository says about one model."""

    name: str
    present: frozenset[int]
    edit: Fingerprint | None
    """State of the live file."""
    versions: tuple[int, ...] = ()
    """To try, best first."""
    is_pinned: bool = False
    """Whether the live file names a version."""
    is_unwanted: bool = False
    """Whether the live file says that the model is not to be served."""
    problem: str | None = None
    """Why the live file is no use."""


def fingerprint_of(path: Path) -> Fingerprint | None:
    """What tells one state of a file from the next; None while it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class Registry:
    """The loaded versions of one worker. Call its methods on the event loop."""

    def __init__(
        self, root: Path, metrics: Metrics, max_extra: int, candidate_cache_bytes: int = 0, share_bytes: int = 0
    ) -> None:
        """`max_extra`: how many versions that nothing but single requests asks for stay loaded.
        `candidate_cache_bytes`: what each loaded version may remember of candidates, `share_bytes` what it may
        compute ahead for ads of a catalogue."""
        self._repository = Repository(root)
        self._metrics = metrics
        self._max_extra = max_extra
        self._candidate_cache_bytes = candidate_cache_bytes
        self._share_bytes = share_bytes
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="retort-load")
        self._looker = ThreadPoolExecutor(1, thread_name_prefix="retort-look")
        self._loading: dict[Version, asyncio.Future[Scorer]] = {}
        self._refused: dict[Version, tuple[Signature, str, str]] = {}  # by which files, reason, message
        self._live_problems: dict[str, tuple[Fingerprint | None, str]] = {}
        self._present: dict[str, frozenset[int]] = {}
        self._extra: OrderedDict[Version, None] = OrderedDict()
        self._is_loading_extra = False
        self._next_extra = 0.0  # `monotonic` time from which on another may be loaded
        self.loaded: dict[Version, Scorer] = {}
        self.live: dict[str, int] = {}
        self.pinned: set[Version] = set()
        """Versions that experiments need whatever is live; never released."""
        self.followed: set[str] = set()
        """Models whose live version experiments need; what is live of them stays, also when the folder goes."""
        self.build_more: Callable[[Scorer], object] = lambda scorer: None
        """Called in the thread that loads a version."""
        self.prepare: Callable[[Scorer], Awaitable[None]] = _nothing_to_prepare
        """What else has to be done before a version that was just loaded may answer."""
        self.generation = 0
        """Counts up whenever something else is live or the repository's models changed."""

    def close(self) -> None:
        """Lets the threads end."""
        self._loader.shutdown(wait=False, cancel_futures=True)
        self._looker.shutdown(wait=False, cancel_futures=True)

    async def look(self, what: Callable[[], T]) -> T:
        """Runs a quick look at the disk off the loop; never waits behind a load."""
        return await asyncio.get_running_loop().run_in_executor(self._looker, what)

    async def refresh(self) -> bool:
        """Follows the repository: loads what should be live and is not. True if anything else is live now."""
        wishes = await self.look(self._read_wishes)
        if wishes:  # none at all is a file system that is away, not a decision
            self._present = {wish.name: wish.present for wish in wishes}
        before = dict(self.live)
        for wish in wishes:
            await self._follow(wish)
        gone = self.live.keys() - {wish.name for wish in wishes} - self.followed
        for name in gone if wishes else ():
            logger.warning("model %s is no longer in the repository", name)
            del self.live[name]
        if self.live == before:
            return False
        self.generation += 1
        return True

    def _read_wishes(self) -> list[_Wish]:
        wishes = []
        for name in self._repository.names():
            versions: list[int] = []
            edit = fingerprint_of(self._repository.root / name / LIVE_FILE)
            try:
                versions = self._repository.versions(name)
                wish = self._repository.wish(name)
            except ModelNotFoundError:  # removed between two looks
                continue
            except (BundleError, OSError) as error:
                wishes.append(_Wish(name, frozenset(versions), edit, problem=str(error)))
                continue
            if wish == NONE:
                wishes.append(_Wish(name, frozenset(versions), edit, is_unwanted=True))
                continue
            wanted = tuple(reversed(versions)) if wish == LATEST else (wish,)
            wishes.append(_Wish(name, frozenset(versions), edit, wanted, is_pinned=wish != LATEST))
        return wishes

    async def _follow(self, wish: _Wish) -> None:
        """Makes the best version that loads the live one of its model, or none where none is wanted."""
        problem = wish.problem
        if wish.is_unwanted:
            if wish.name in self.followed:
                problem = f"the live file of {wish.name} says none, but an experiment follows it"
            elif self.live.pop(wish.name, None) is not None:
                logger.info("model %s is no longer served: its live file says so", wish.name)
        for version in wish.versions:
            try:
                await self.load(wish.name, version)
            except (ModelLoadError, ModelNotFoundError) as error:
                if wish.is_pinned:
                    problem = f"the live file of {wish.name} names version {version}, which is refused: {error}"
                continue
            before = self.live.get(wish.name)
            if before != version:
                self.live[wish.name] = version
                logger.info("model %s: version %d is live (before: %s)", wish.name, version, before or "none")
            break
        self._note_live_problem(wish, problem)

    def _note_live_problem(self, wish: _Wish, problem: str | None) -> None:
        """Logs and counts, once an edit, that the live file cannot be honoured."""
        if problem is None:
            self._live_problems.pop(wish.name, None)
        elif self._live_problems.get(wish.name) != (wish.edit, problem):
            self._live_problems[wish.name] = (wish.edit, problem)
            self._metrics.model_load_failures.labels(wish.name, "live").inc()
            logger.error("%s; live is still: %s", problem, self.live.get(wish.name, "none"))

    async def load(self, name: str, version: int) -> Scorer:
        """A loaded, golden-checked version; loads it if need be.

        Raises `ModelNotFoundError` where there is none, `ModelLoadError` where it must not be served.
        """
        key = (name, version)
        scorer = self.loaded.get(key)
        if scorer is not None:
            return scorer
        future = self._loading.get(key)
        if future is None:
            future = asyncio.ensure_future(self._load(key))
            self._loading[key] = future
            future.add_done_callback(lambda _: self._loading.pop(key, None))
        scorer = await asyncio.shield(future)
        if key not in self.loaded:  # released before whoever waited for it could say that it is needed
            self._keep(key, scorer)
        return scorer

    def _keep(self, key: Version, scorer: Scorer) -> None:
        self.loaded[key] = scorer
        self._metrics.model_info.labels(key[0], str(key[1]), scorer.bundle.sha256).set(1)

    async def _load(self, key: Version) -> Scorer:
        name, version = key
        try:
            path, signature = await self.look(lambda: self._sign(key))
        except OSError as error:
            raise ModelLoadError(name, "error", f"model {name} version {version}: {error}") from error
        before = self._refused.get(key)
        if before is not None and before[0] == signature:
            raise ModelLoadError(name, *before[1:])
        loop = asyncio.get_running_loop()
        try:
            scorer = await loop.run_in_executor(self._loader, self._build, name, path, self._known_candidates(name))
        except ModelLoadError as error:
            self._refused[key] = (signature, error.reason, str(error))
            self._metrics.model_load_failures.labels(name, error.reason).inc()
            logger.error("model %s version %d is refused (%s): %s", name, version, error.reason, error)
            raise
        self._refused.pop(key, None)
        await self.prepare(scorer)
        self._keep(key, scorer)
        logger.info("model %s version %d is loaded and golden-checked", name, version)
        return scorer

    def _known_candidates(self, name: str) -> list[bytes]:
        """Those that the live version of a model has met last: the next one is likely to be asked for them."""
        live = self.loaded.get((name, self.live.get(name, 0)))
        return [] if live is None else live.candidates.latest(MOST_WARMED)

    def _build(self, name: str, path: Path, candidates: Sequence[bytes]) -> Scorer:
        """A scorer with all that it needs to be asked in the next moment. In the loader's thread."""
        scorer = _build(name, path, self._candidate_cache_bytes, self._share_bytes)
        scorer.candidates.warm(candidates)
        self.build_more(scorer)
        return scorer

    def _sign(self, key: Version) -> tuple[Path, Signature]:
        """The version's folder, and what tells whether its files changed."""
        path = self._repository.path(*key)
        files = [(str(file.relative_to(path)), file.lstat()) for file in sorted(path.rglob("*"))]
        return path, tuple((name, status.st_size, status.st_mtime_ns) for name, status in files)

    async def load_extra(self, name: str, version: int) -> Scorer:
        """A version that one request asks for: loaded, and kept until others were asked for more recently.

        A request waits for a load of its own only. Raises what `load` raises, and `LoadDeferredError` where it would
        be the next load too soon.
        """
        key = (name, version)
        scorer = self.loaded.get(key)
        if scorer is None:
            if self._max_extra == 0:
                raise ModelNotFoundError(f"model {name} version {version} is neither live nor in an experiment")
            if version not in self._present.get(name, ()):
                raise ModelNotFoundError(f"model {name} has no version {version}")
            scorer = await self._load_in_turn(key)
        if key not in self.pinned and self.live.get(name) != version:
            self._extra[key] = None
            self._extra.move_to_end(key)
            self.release()
        return scorer

    async def _load_in_turn(self, key: Version) -> Scorer:
        began = monotonic()
        if self._is_loading_extra or began < self._next_extra:
            refused = self._refused.get(key)
            if refused is not None:
                raise ModelLoadError(key[0], *refused[1:])
            raise LoadDeferredError(max(LOAD_SECONDS, self._next_extra - began))
        self._is_loading_extra = True
        try:
            return await self.load(*key)
        finally:
            ended = monotonic()
            self._next_extra = ended + (ended - began) / LOAD_SHARE
            self._is_loading_extra = False

    def versions(self, name: str) -> list[int]:
        """The model's versions that the repository had when it was looked at last, ascending."""
        return sorted(self._present.get(name, ()))

    def states(self) -> list[tuple[str, int, str | None]]:
        """(model, version, why it is not loaded or None where it is) of everything in the repository."""
        found: list[tuple[str, int, str | None]] = []
        for name in sorted(self._present):
            for version in self.versions(name):
                reason = None
                if (name, version) not in self.loaded:
                    refused = self._refused.get((name, version))
                    reason = "not loaded" if refused is None else f"refused ({refused[1]})"
                found.append((name, version, reason))
        return found

    def needs(self, name: str) -> bool:
        """Whether an experiment needs the model."""
        return name in self.followed or any(model == name for model, _ in self.pinned)

    async def write_live(self, name: str, wish: Wish) -> None:
        """Writes a model's live file, off the loop. Raises as `Repository.write_live`."""
        await self.look(lambda: self._repository.write_live(name, wish))

    def refusals(self) -> list[str]:
        """Why versions were refused, for people."""
        return [message for _, _, message in self._refused.values()] + [
            problem for _, problem in self._live_problems.values()
        ]

    def release(self) -> None:
        """Forgets versions that nothing needs any more; requests that hold one finish with it."""
        while len(self._extra) > self._max_extra:
            self._extra.popitem(last=False)
        needed = {*self.live.items(), *self.pinned, *self._extra}
        for key in [key for key in self.loaded if key not in needed]:
            scorer = self.loaded.pop(key)
            self._metrics.model_info.labels(key[0], str(key[1]), scorer.bundle.sha256).set(0)
            if scorer.circuit is not None:
                self._metrics.circuit_state.labels(key[0], str(key[1])).set(0)
            logger.info("model %s version %d is released", *key)


async def _nothing_to_prepare(_: Scorer) -> None:
    pass


def _build(name: str, path: Path, candidate_cache_bytes: int, share_bytes: int) -> Scorer:
    """Reads, verifies, loads and proves a bundle; every failure is a `ModelLoadError` with a reason."""
    try:
        bundle = read_bundle(path)
    except ModelsError as error:
        raise ModelLoadError(name, "bundle", str(error)) from error
    except Exception as error:
        raise ModelLoadError(name, "error", f"{path}: {type(error).__name__}: {error}") from error
    try:
        return Scorer(bundle, candidate_cache_bytes, share_bytes)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(name, "error", f"{path}: {type(error).__name__}: {error}") from error
