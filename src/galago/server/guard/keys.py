"""API keys."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from galago.errors import InvalidRequest
from galago.server.errors import ErrorReply, Refused
from galago.server.request_target import HEALTH_PATHS


def require_api_key(app: ASGIApp, keys: Sequence[str], reply: ErrorReply) -> ASGIApp:
    """Middleware that refuses requests without one of these keys, as a Bearer token or in X-Moondream-Auth.

    HEALTH_PATHS and preflights, for which browsers have no key, are open. Raises InvalidRequest for a key that no
    header can carry, and for no keys at all.
    """
    check_keys(keys)
    if not keys:
        raise InvalidRequest("there must be at least one key", "api_key")
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def is_known(keys_sent: Sequence[str]) -> bool:
        # All are compared, and to their end, so that the time taken tells nothing of any.
        sent = [hashlib.sha256(one.encode()).digest() for one in keys_sent]
        return sum(hmac.compare_digest(one, key) for one in sent for key in digests) > 0

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and scope["path"] not in HEALTH_PATHS:
            keys_sent = _keys_in(Headers(scope=scope))
            if not is_known(keys_sent):
                reason = "this key is not one of the server's" if keys_sent else "this server wants a key"
                refused = Refused("invalid_api_key", f"{reason}; send it as Authorization: Bearer or X-Moondream-Auth")
                await reply(scope["path"], refused)(scope, receive, send)
                return
        await app(scope, receive, send)

    return middleware


def check_keys(keys: Sequence[str]) -> None:
    """Raise InvalidRequest for a key that no client could send."""
    if not all(key.isascii() and key.isprintable() and key == key.strip() != "" for key in keys):
        raise InvalidRequest("a key must be printable ASCII without spaces around it, and not empty", "api_key")


def _keys_in(headers: Headers) -> list[str]:
    """The keys that a request carries."""
    split = [value.strip().partition(" ") for value in headers.getlist("authorization")]
    bearers = [token.strip() for scheme, _, token in split if scheme.lower() == "bearer"]
    return [key for key in bearers + headers.getlist("x-moondream-auth") if key]
