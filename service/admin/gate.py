"""Every route is denied unless it is allow-listed here; what is not public takes the admin token.

The gate is a dependency of the whole application, so that a route added tomorrow is closed until it is listed. The two
kinds of routes answered in front of FastAPI, predict and infer, are public and bound themselves.

    no token is set                 403 admin_off, saying how to set one
    none is sent, or another        401 unauthorized
    headers, or a body, too long    431, 413 before anything is read

The token is compared in constant time, as a digest, so that not even its length shows.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic

from fastapi import Request

from service.admin import audit
from service.admin.token import MIN_TOKEN_BYTES
from service.errors import Code, Refusal
from service.http.asgi import CLOSE

HEAD_BYTES = 1 << 14
"""Of a route that nobody posts to: paths, a token and the headers that clients add."""
BODY_BYTES = 1 << 16

NOTE_SECONDS = 1.0

PUBLIC = frozenset(
    (
        ("POST", "/predict"),
        ("POST", "/feedback"),
        ("POST", "/models/{name}/predict"),
        ("POST", "/models/{name}/versions/{version}/predict"),
        ("GET", "/health/live"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
        ("GET", "/experiments"),
        ("GET", "/experiments/{name}"),
        ("GET", "/experiments/{name}/preview"),
        ("GET", "/experiments/{name}/results"),
        ("GET", "/experiments/{name}/results.html"),
        ("GET", "/console"),
        ("GET", "/console/assets/{name}"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/v2"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/{name}"),
        ("GET", "/v2/models/{name}/ready"),
        ("GET", "/v2/models/{name}/stats"),
        ("POST", "/v2/models/{name}/infer"),
        ("GET", "/v2/models/{name}/versions/{version}"),
        ("GET", "/v2/models/{name}/versions/{version}/ready"),
        ("GET", "/v2/models/{name}/versions/{version}/stats"),
        ("POST", "/v2/models/{name}/versions/{version}/infer"),
    )
)
SCORING = frozenset(path for method, path in PUBLIC if method == "POST")
"""Routes whose heads and bodies have the bounds of the protocol and of `--max-body-bytes` instead; feedback too."""

_OFF = Refusal(
    Code.ADMIN_OFF,
    f"this route is for administrators, and none is appointed: give the service a token of at least {MIN_TOKEN_BYTES} "
    "bytes with --admin-token-file or RETORT_ADMIN_TOKEN",
)
_CHALLENGE = (b"www-authenticate", b'Bearer realm="retort"')
_UNAUTHORIZED = Refusal(
    Code.UNAUTHORIZED, "expected the header Authorization: Bearer <admin token>", headers=(_CHALLENGE,)
)
_HEAD_TOO_LONG = Refusal(Code.HEADERS_TOO_LARGE, f"the headers may have at most {HEAD_BYTES} bytes", headers=(CLOSE,))


@dataclass(frozen=True, slots=True)
class Admin:
    """Somebody who showed the token. `name` tells one token from another without giving it away."""

    name: str
    address: str | None


class Gate:
    """What stands before every route of one application."""

    def __init__(self, token: str | None, long_bodies: Mapping[str, int]) -> None:
        """`long_bodies`: by path, how long a body may be where that is not `BODY_BYTES`."""
        self._digest = None if token is None else hashlib.sha256(token.encode()).digest()
        self._long_bodies = long_bodies
        self._denied = 0
        self._next_note = 0.0  # `monotonic` time

    @property
    def is_open(self) -> bool:
        """Whether there is a token that opens what is closed."""
        return self._digest is not None

    def check(self, request: Request) -> None:
        """Lets a request to a public route pass, and one with the token to any other; else `Refusal`."""
        path = request.scope["route"].path
        if path not in SCORING:
            _check_sizes(request, self._long_bodies.get(path, BODY_BYTES))
        if (request.method, path) not in PUBLIC:
            self.check_token(*credentials(request), f"{request.method} {path}")

    def check_token(self, authorization: str, address: str | None, action: str) -> None:
        """Lets whoever shows the token pass; else `Refusal`, and a note of what was tried."""
        try:
            self.admit(authorization, address)
        except Refusal as refusal:
            self._note(address, action, refusal.code)
            raise

    def admit(self, authorization: str, address: str | None) -> Admin:
        """Who shows this authorization, or `Refusal` where it is nobody who may."""
        if self._digest is None:
            raise _OFF.with_traceback(None)  # which each raise adds to
        scheme, _, given = authorization.partition(" ")
        digest = hashlib.sha256(given.strip().encode("latin-1", "replace")).digest()
        if not hmac.compare_digest(digest, self._digest) or scheme.lower() != "bearer":
            raise _UNAUTHORIZED.with_traceback(None)
        return Admin(f"token-{self._digest.hex()[:8]}", address)

    def _note(self, address: str | None, action: str, code: Code) -> None:
        """Tells of a request that was denied, once a second at most: whoever floods us is not to flood the log."""
        self._denied += 1
        if self._digest is not None and monotonic() >= self._next_note:
            self._next_note = monotonic() + NOTE_SECONDS
            audit.record(None, address, action, None, str(code), denied=self._denied)


def credentials(request: Request) -> tuple[str, str | None]:
    """(the Authorization header, the client's address) of a request."""
    return request.headers.get("authorization", ""), None if request.client is None else request.client.host


async def guard(request: Request) -> None:
    """The gate as a dependency of every route."""
    request.app.gate.check(request)


def _body_too_long(limit: int) -> Refusal:
    return Refusal(Code.BODY_TOO_LARGE, f"the body may have at most {limit} bytes", headers=(CLOSE,))


def _check_sizes(request: Request, max_body_bytes: int) -> None:
    size = 0
    for name, value in request.scope["headers"]:
        size += len(name) + len(value) + 4
        if name == b"content-length" and (len(value) > 18 or int(value) > max_body_bytes):
            raise _body_too_long(max_body_bytes)
    if size > HEAD_BYTES:
        raise _HEAD_TOO_LONG.with_traceback(None)
