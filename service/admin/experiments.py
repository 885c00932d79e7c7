"""What changing an experiment means here: the experiment file is written, which every worker on every machine that sees
it follows within a second. So a change outlives restarts, and whoever edits the file by hand sees what was done.

Refused, with nothing written, is what the file's own rules refuse, what the phase does not allow, a model that is not
there or does not score as its golden rows say, and a change thought of for another state (`If-Match`). Answers come
once this worker has followed. Every change, and every refusal of one, is audited.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from models.values import describe
from models.versions import is_model_name
from service.admin import audit
from service.admin.gate import Admin
from service.errors import Code, ConfigError, ExperimentError, ModelLoadError, PhaseError, Refusal
from service.experiments.file import ExperimentFile, decode_json
from service.experiments.phases import describe_changes
from service.experiments.writing import Change, Draft, exclusive

_NO_FILE = Refusal(
    Code.NO_EXPERIMENT_FILE,
    "this service has no experiment file that could be changed: start it with --experiments FILE",
)


class ExperimentControl:
    """Changes experiments, one at a time."""

    def __init__(
        self, path: Path | None, bring_into_force: Callable[[ExperimentFile, Callable[[], None]], Awaitable[None]]
    ) -> None:
        """`bring_into_force(file, write)` proves the file here, has it written, and lets requests go by it."""
        self._path = path
        self._bring_into_force = bring_into_force
        self._turn = asyncio.Lock()

    async def put(self, admin: Admin, name: str, body: bytes, precondition: Precondition) -> None:
        """Makes the body the experiment of this name. Raises `Refusal`."""
        result = str(Code.INTERNAL)
        facts: dict[str, int | str | None] = {"experiment": name if is_model_name(name) else None}
        try:
            if self._path is None:
                raise _NO_FILE.with_traceback(None)
            content = _decode(body)
            async with self._turn, contextlib.AsyncExitStack() as stack:
                lock = exclusive(self._path)
                try:
                    await asyncio.to_thread(lock.__enter__)
                    stack.callback(lock.__exit__, None, None, None)
                    draft = await asyncio.to_thread(Draft.read, self._path)
                except ExperimentError as error:
                    raise self._refusal(Code.EXPERIMENT_REFUSED, error) from None
                before = draft.find(name)
                precondition.check(None if before is None else before.tag())
                try:
                    change = await asyncio.to_thread(draft.change, name, content)
                except PhaseError as error:
                    raise self._refusal(Code.NEEDS_NEW_PHASE, error, field=error.key) from None
                except ExperimentError as error:
                    raise self._refusal(Code.INVALID_EXPERIMENT, error) from None
                facts["phase"] = change.after.phase
                facts["changes"] = describe_changes(before, change.after)
                await self._bring(change)
            result = "ok"
        except Refusal as refusal:
            result = str(refusal.code)
            raise
        finally:
            audit.record(admin.name, admin.address, "experiment", None, result, **facts)

    async def _bring(self, change: Change) -> None:
        try:
            await self._bring_into_force(change.file, change.write if change.is_needed else _nothing)
        except (ConfigError, ModelLoadError) as error:
            raise self._refusal(Code.EXPERIMENT_REFUSED, error) from None

    def _refusal(self, code: Code, error: Exception, field: str | None = None) -> Refusal:
        """What was wrong, without the folder that the file is in, nor what no UTF-8 can say."""
        said = str(error).replace(str(self._path), "the experiment file")
        return Refusal(code, said.encode("utf-8", "backslashreplace").decode(), field=field)


class Precondition:
    """What a request says of the state it was thought of for: `If-Match` and `If-None-Match` (RFC 9110, section 13)."""

    def __init__(self, if_match: str | None, if_none_match: str | None) -> None:
        self._if_match = if_match
        self._if_none_match = if_none_match

    def check(self, tag: str | None) -> None:
        """Raises `Refusal` where the state is another by now. `tag`: the experiment's; None: there is none."""
        if self._if_match is not None and not _matches(self._if_match, tag):
            detail = "the experiment is another by now than If-Match says: get it again, and decide again"
            raise Refusal(Code.STALE_WRITE, detail, headers=_tag_headers(tag))
        if self._if_none_match is not None and _matches(self._if_none_match, tag):
            detail = "an experiment of this name is there already, and If-None-Match says that none should be"
            raise Refusal(Code.STALE_WRITE, detail, headers=_tag_headers(tag))


def _tag_headers(tag: str | None) -> tuple[tuple[bytes, bytes], ...]:
    return () if tag is None else ((b"etag", b'"%s"' % tag.encode()),)


def _matches(header: str, tag: str | None) -> bool:
    if tag is None:
        return False
    given = [part.strip() for part in header.split(",")]
    return "*" in given or f'"{tag}"' in given


def _nothing() -> None:
    pass


def _decode(body: bytes) -> dict[str, Any]:
    """The object, read as strictly as a file is."""
    try:
        content = decode_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refusal(Code.MALFORMED_JSON, "expected JSON: invalid UTF-8") from None
    except RecursionError:
        raise Refusal(Code.TOO_DEEP, "lists and objects are nested too deeply") from None
    except ValueError as error:
        why = str(error).encode("utf-8", "backslashreplace").decode()
        raise Refusal(Code.MALFORMED_JSON, f"expected JSON: {why[:200]}") from None
    if type(content) is not dict:
        raise Refusal(
            Code.INVALID_REQUEST, f"expected an experiment as in the file, an object, got {describe(content)}"
        )
    return content
