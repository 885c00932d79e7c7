"""What changing an experiment means here: the experiment file is written, which every worker on every machine that sees
it follows within a second. So a change outlives restarts, and whoever edits the file by hand sees what was done.

Refused, with nothing written, is what the file's own rules refuse, what the phase does not allow, a model that is not
there or does not score as its golden rows say, and a change thought of for another state (`If-Match`). Answers come
once this worker has followed. Every change, and every refusal of one, is audited.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
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
from service.http.asgi import ClientGoneError
from service.scoring.json_body import decode_json as decode_strictly
from service.scoring.json_body import refuse_wide_integers

_TAGS = re.compile(r'[ \t]*(?:(?:W/)?"[^"]*"[ \t]*)?(?:,[ \t]*(?:(?:W/)?"[^"]*"[ \t]*)?)*')
"""A list of entity tags (RFC 9110, section 8.8.3); what is in a tag may be commas and stars."""
_TAG = re.compile(r'(W/)?"([^"]*)"')

_NO_FILE = Refusal(
    Code.NO_EXPERIMENT_FILE,
    "this service has no experiment file that could be changed: start it with --experiments FILE",
)


async def _stays() -> bool:
    return False


class ExperimentControl:
    """Changes experiments, one at a time."""

    def __init__(
        self, path: Path | None, bring_into_force: Callable[[ExperimentFile, Callable[[], None]], Awaitable[None]]
    ) -> None:
        """`bring_into_force(file, write)` proves the file here, has it written, and lets requests go by it."""
        self._path = path
        self._bring_into_force = bring_into_force
        self._turn = asyncio.Lock()

    async def put(
        self,
        admin: Admin,
        name: str,
        body: bytes,
        precondition: Precondition,
        is_gone: Callable[[], Awaitable[bool]] = _stays,
    ) -> None:
        """Makes the body the experiment of this name. Raises `Refusal`; `ClientGoneError`, with nothing changed, where
        whoever asked has gone before it was their turn."""
        result = str(Code.INTERNAL)
        facts: dict[str, int | str | None] = {"experiment": name if is_model_name(name) else None}
        try:
            if self._path is None:
                raise _NO_FILE.with_traceback(None)
            content = _decode(body)
            async with self._turn, contextlib.AsyncExitStack() as stack:
                if await is_gone():
                    raise ClientGoneError
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
        except ClientGoneError:
            result = "client_gone"
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
        """Raises `Refusal` for an `If-None-Match` of which nobody knows what it asks for: it would be as if it had not
        been sent. (An `If-Match` of that kind matches nothing, which is safe.)"""
        if if_none_match is not None and if_none_match.strip(" \t") != "*" and not _TAGS.fullmatch(if_none_match):
            detail = "If-None-Match: expected `*`, or tags in quotes, parted by commas"
            raise Refusal(Code.INVALID_REQUEST, detail, field="If-None-Match")
        self._if_match = if_match
        self._if_none_match = if_none_match

    def check(self, tag: str | None) -> None:
        """Raises `Refusal` where the state is another by now. `tag`: the experiment's; None: there is none."""
        if self._if_match is not None and not _matches(self._if_match, tag):
            detail = "the experiment is another by now than If-Match says: get it again, and decide again"
            raise Refusal(Code.STALE_WRITE, detail, headers=_tag_headers(tag))
        if self._if_none_match is not None and _matches(self._if_none_match, tag, weakly=True):
            detail = "an experiment of this name is there already, and If-None-Match says that none should be"
            raise Refusal(Code.STALE_WRITE, detail, headers=_tag_headers(tag))


def _tag_headers(tag: str | None) -> tuple[tuple[bytes, bytes], ...]:
    return () if tag is None else ((b"etag", b'"%s"' % tag.encode()),)


def _matches(header: str, tag: str | None, *, weakly: bool = False) -> bool:
    """Whether one of the tags of a header is the state's, or it says `*`. A weak tag is as good only where one asks
    whether something is there. Of what is no list of tags nothing matches."""
    if tag is None:
        return False
    if header.strip(" \t") == "*":
        return True
    given = _TAG.findall(header) if _TAGS.fullmatch(header) else []
    return any(text == tag and (weakly or not is_weak) for is_weak, text in given)


def _nothing() -> None:
    pass


def _decode(body: bytes) -> dict[str, Any]:
    """The object, read as strictly as any other body is, and as a file is: a name that stands twice is refused."""
    refuse_wide_integers(decode_strictly(body), body)
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
