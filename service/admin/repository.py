"""What loading and unloading mean here: a model's live file is written, which every worker on every machine with this
repository follows within a second (docs/bundle.md). So a change outlives restarts, and rolling back is another load.

    load      the newest version that loads (`latest`), or the one that is named; golden-checked before the file changes
    unload    `none`: refused while an experiment needs the model

Answers come once this worker has followed. Every change, and every refusal of one, is audited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from models.errors import ModelNotFoundError
from models.values import describe
from models.versions import LATEST, NONE, Wish, is_model_name
from service.admin import audit
from service.admin.gate import Admin
from service.errors import Code, ModelLoadError, Refusal
from service.scoring.json_body import decode_json
from service.scoring.registry import Registry


class ModelControl:
    """Loads and unloads models, one at a time."""

    def __init__(self, registry: Registry, look: Callable[[], Awaitable[None]]) -> None:
        """`look` follows the repository, and returns when that is done."""
        self._registry = registry
        self._look = look
        self._turn = asyncio.Lock()

    def index(self, ready_only: bool) -> list[dict[str, str]]:
        """Every version in the repository, in the words of Triton's repository index."""
        return [
            {
                "name": name,
                "version": str(version),
                "state": "READY" if reason is None else "UNAVAILABLE",
                "reason": reason or "",
            }
            for name, version, reason in self._registry.states()
            if reason is None or not ready_only
        ]

    async def load(self, admin: Admin, name: str, version: int | None) -> None:
        """Makes a version the live one, the newest where none is named. Raises `Refusal`."""
        await self._audited(admin, "load", name, version, lambda: self._load(name, version))

    async def unload(self, admin: Admin, name: str) -> None:
        """Takes a model out of service. Raises `Refusal`."""
        await self._audited(admin, "unload", name, None, lambda: self._unload(name))

    async def _audited(
        self, admin: Admin, action: str, name: str, version: int | None, change: Callable[[], Awaitable[None]]
    ) -> None:
        result = str(Code.INTERNAL)
        try:
            async with self._turn:
                if not is_model_name(name):
                    raise _NO_MODEL
                await change()
            result = "ok"
        except Refusal as refusal:
            result = str(refusal.code)
            raise
        finally:
            live = self._registry.live.get(name)
            audit.record(admin.name, admin.address, action, name, result, version=version, live=live)

    async def _load(self, name: str, version: int | None) -> None:
        await self._look()  # what was published a moment ago counts
        if version is not None:
            try:
                await self._registry.load(name, version)
            except ModelLoadError as error:
                detail = f"this version was refused at load ({error.reason}); the log says why"
                raise Refusal(Code.LOAD_REFUSED, detail, field="version") from None
            except ModelNotFoundError:
                known = bool(self._registry.versions(name))
                raise _NO_VERSION if known else _NO_MODEL from None
        await self._write(name, LATEST if version is None else version)
        live = self._registry.live.get(name)
        if live is None or version not in (None, live):
            detail = "none of its versions loads: the repository index and the log say why"
            raise Refusal(Code.LOAD_REFUSED, detail, field="name")

    async def _unload(self, name: str) -> None:
        if self._registry.needs(name):
            detail = "an experiment needs this model: take it out of the experiment file first"
            raise Refusal(Code.MODEL_IN_USE, detail, field="name")
        await self._write(name, NONE)

    async def _write(self, name: str, wish: Wish) -> None:
        try:
            await self._registry.write_live(name, wish)
        except ModelNotFoundError:
            raise _NO_MODEL from None
        except OSError as error:
            detail = f"the repository cannot be written ({error.strerror}): write the model's live file where it can be"
            raise Refusal(Code.LOAD_REFUSED, detail) from None
        await self._look()


_NO_MODEL = Refusal(Code.UNKNOWN_MODEL, "the repository holds no model of this name", field="name")
_NO_VERSION = Refusal(Code.UNKNOWN_VERSION, "the model has no such version", field="version")


def wants_ready_only(body: bytes) -> bool:
    """What the body of an index request asks for; empty asks for everything."""
    ready = _object(body).get("ready")
    if ready is not None and type(ready) is not bool:
        raise _wrong_type("'ready'", "true or false", ready)
    return bool(ready)


def wanted_version(body: bytes) -> int | None:
    """The version that the body of a load request names, or None: the newest.

    {"parameters": {"version": "3"}}
    {"parameters": {"config": "…"}}     Triton's, JSON in a string: {"version_policy": {"specific": {"versions": [3]}}}
    """
    parameters = _object(body).get("parameters")
    if parameters is None:
        return None
    if type(parameters) is not dict:
        raise _wrong_type("'parameters'", "an object", parameters)
    return version_in(parameters)


def version_in(parameters: Mapping[str, Any]) -> int | None:
    """The version that the parameters of a load name, or None: the newest."""
    version: Any = parameters.get("version")
    config = parameters.get("config")
    if config is not None:
        if type(config) is not str:
            raise _wrong_type("parameter 'config'", "JSON in a string", config)
        version = _policy_in(decode_json(config.encode()))
    if version is None:
        return None
    number = version if type(version) is int else int(version) if _is_number(version) else 0
    if not 0 < number < 10**9:
        raise Refusal(Code.UNKNOWN_VERSION, "a version is a whole number from 1", field="version")
    return number


def _policy_in(config: Any) -> Any:
    try:
        ((policy, specific),) = config["version_policy"].items()
        if policy == "latest":
            return None
        (version,) = specific["versions"]
    except (AttributeError, KeyError, TypeError, ValueError):
        detail = "parameter 'config': expected a version_policy that is latest, or specific with one version"
        raise Refusal(Code.INVALID_REQUEST, detail, field="parameters") from None
    return version


def _is_number(text: object) -> bool:
    return type(text) is str and text.isascii() and text.isdecimal() and len(text) <= 9


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    content = decode_json(body)
    if type(content) is not dict:
        raise Refusal(Code.INVALID_REQUEST, f"expected an object, got {describe(content)}")
    return content


def _wrong_type(what: str, expected: str, got: object) -> Refusal:
    return Refusal(Code.WRONG_TYPE, f"{what}: expected {expected}, got {describe(got)}", field="parameters")
