"""The gate: who may use the server, by host name, web page and key. What it refuses it answers itself.

Whatever page a person visits can send requests to their own machine. Browsers tell where the page is from
(Origin) and which name it believes to speak to (Host), and neither can be forged by the page.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from galago.errors import EngineClosed, GalagoError, InvalidRequest, quoted
from galago.server.errors import ErrorReply, Refused
from galago.server.guard.record import reply_headers
from galago.server.guard.stopping import InFlight
from galago.server.request_target import HEALTH_PATHS, is_page

_LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|tauri|vscode-webview|vscode-file)://[^/\s]+"
"""Pages of this machine, and of programs on it, such as Obsidian; no site on the web has an origin of their schemes"""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+|\*")


class GateMiddleware:
    """Middleware that refuses, in this order: unknown hosts (421), pages from elsewhere (403), requests without a key
    (401), and all while the server stops (503). HEALTH_PATHS need no key, and are answered while it stops; the page and
    its files need none either.

    `keys` are those that are accepted, as a Bearer token or in X-Moondream-Auth; None wants no key. `origins` are
    those of pages that may use the server beside the ones of this machine, or "*". `hosts` are the names that it may
    be called by beside localhost and its addresses; None is any. Raises InvalidRequest for keys and origins that
    nobody could send, and for no keys at all.
    """

    def __init__(
        self,
        app: ASGIApp,
        in_flight: InFlight,
        reply: ErrorReply,
        *,
        keys: Sequence[str] | None = None,
        origins: Sequence[str] = (),
        hosts: Sequence[str] | None = None,
    ) -> None:
        check_keys(keys)
        check_origins(origins)
        self._app, self._in_flight, self._reply = app, in_flight, reply
        self._digests = None if keys is None else [_digest(key) for key in keys]
        self._hosts = None if hosts is None else {"localhost", *map(_bare_host, hosts)}
        # It knows which origins are allowed, and answers preflights; other requests do not pass through it.
        self._cors = CORSMiddleware(
            app,
            allow_origins=tuple(origins),
            allow_origin_regex=_LOCAL,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["X-Request-Id", "X-Galago-Model", "Retry-After"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            answer = self._admit(scope) if scope["type"] == "http" else self._app
        except GalagoError as refused:
            answer = self._reply(scope["path"], refused)
        await answer(scope, receive, send)

    def _admit(self, scope: Scope) -> ASGIApp:
        """What answers this request: the app, or CORS if it is a preflight. Raises the error that refuses it."""
        method, headers, is_health = scope["method"], Headers(scope=scope), scope["path"] in HEALTH_PATHS
        host, origin = headers.get("host"), headers.get("origin")
        if self._hosts is not None and host is not None and not is_own_host(host, self._hosts):
            remedy = "call it localhost or by its address. With --api-key KEY, or with --host 0.0.0.0, which lets"
            message = f"this server is not {quoted(host)}; {remedy} other machines in, it answers to any name"
            raise Refused("host_not_allowed", message)
        if method == "OPTIONS" and origin is not None and "access-control-request-method" in headers:
            return self._cors  # without a key, since browsers send none with a preflight
        # Before the other refusals, so that a page of this machine can read them.
        reply_headers(scope).update(self._cors_headers(origin))
        # Browsers send a POST of any page and merely keep the answer from it.
        if origin is not None and method not in ("GET", "HEAD", "OPTIONS"):
            is_own_page = origin.partition("://")[2] == host
            if not is_own_page and not self._cors.is_allowed_origin(origin):
                raise Refused("origin_not_allowed", _origin_refusal(origin))
        is_open = is_health or method == "OPTIONS" or is_page(scope, headers.get("accept", ""))
        if self._digests is not None and not is_open:
            keys = _keys_in(headers)
            if not has_key(keys, self._digests):
                reason = "this key is not one of the server's" if keys else "this server wants a key"
                message = f"{reason}; send it as Authorization: Bearer or X-Moondream-Auth"
                raise Refused("invalid_api_key", message)
        if self._in_flight.stopping and not is_health:
            raise EngineClosed("the server is shutting down")
        return self._app

    def _cors_headers(self, origin: str | None) -> dict[str, str]:
        """Headers of a reply that tell a browser whether the page may read it."""
        headers = {"Vary": "Origin"}
        if origin is not None:
            headers |= self._cors.simple_headers
            if self._cors.is_allowed_origin(origin):
                headers.setdefault("Access-Control-Allow-Origin", origin)  # where it is not "*"
        return headers


def check_keys(keys: Sequence[str] | None) -> None:
    """Raise InvalidRequest for a key that no client could send, and for no keys where some are wanted."""
    if keys is not None and not keys:
        raise InvalidRequest("there must be at least one key", "api_key")
    if not all(key.isascii() and key.isprintable() and key == key.strip() != "" for key in keys or ()):
        raise InvalidRequest("a key must be printable ASCII without spaces around it, and not empty", "api_key")


def has_key(sent: Sequence[str], digests: Sequence[bytes]) -> bool:
    """Whether one of the keys sent has one of these SHA-256 digests."""
    # All are compared, and to their end, so that the time taken tells nothing of any.
    return sum(hmac.compare_digest(_digest(key), digest) for key in sent for digest in digests) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _keys_in(headers: Headers) -> list[str]:
    """The keys that a request carries."""
    split = [value.strip().partition(" ") for value in headers.getlist("authorization")]
    bearers = [token.strip() for scheme, _, token in split if scheme.lower() == "bearer"]
    return [key for key in bearers + headers.getlist("x-moondream-auth") if key]


def check_origins(origins: Sequence[str]) -> None:
    """Raise InvalidRequest for what no browser sends as an origin."""
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            message = f"{quoted(origin)} is not an origin such as https://example.org, and not *"
            raise InvalidRequest(message, "cors_origin")


def _origin_refusal(origin: str) -> str:
    """Why a page may not use the server, and the flag that would let it."""
    if len(origin) <= 100 and _ORIGIN.fullmatch(origin):
        return f"pages from {origin} may not use this server; --cors-origin {origin} lets them"
    # Files, sandboxed frames and redirects: whoever wants to can have a page be "null", so none of them can be named.
    return "pages whose origin is not told may not use this server; --cors-origin '*' lets all pages"


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Whether a Host header holds one of these names, a name below localhost, or an IP address.

    Any other may be that of a page whose owner lets it point to 127.0.0.1, so that it shares its origin with the
    server and CORS does not hold it off (DNS rebinding). No browser leaves Host out, and HTTP/1.0 has none.
    """
    name = _bare_host(host)
    return name in names or name.endswith(".localhost") or _parse_address(name) is not None


def is_loopback(address: str) -> bool:
    """Whether this is a loopback IP address, which other machines cannot reach."""
    found = _parse_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found is not None and (mapped or found).is_loopback


def _bare_host(host: str) -> str:
    """The name in a Host header: lower case, without port, brackets and the dot at its end."""
    found = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*))(?::\d*)?", host)
    bare = host if found is None else found[1] or found[2] or ""
    return bare.lower().removesuffix(".")


def _parse_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
