"""Which web pages may use the server, and by which names it may be called.

Whatever page a person visits can send requests to their own machine. Browsers tell where the page is from
(Origin) and which name it believes to speak to (Host), and neither can be forged by the page.
"""

import ipaddress
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from galago.errors import InvalidRequest, quoted
from galago.server.errors import ErrorReply, Refused

_LOCAL = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?|(app|tauri|vscode-webview|vscode-file)://[^/\s]+"
"""Pages of this machine, and of programs on it, such as Obsidian; no site on the web has an origin of their schemes"""
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s,*]+|\*")


def restrict_origins(app: ASGIApp, origins: Sequence[str], reply: ErrorReply) -> ASGIApp:
    """Middleware with CORS for pages of this machine and of these origins; "*" allows every page.

    Other pages may not read replies, nor cause anything: a POST from a page elsewhere is refused, since browsers
    would send it and merely keep the answer. Raises InvalidRequest for what is not an origin.
    """
    check_origins(origins)

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = Headers(scope=scope)
            origin = headers.get("origin")
            own = origin is not None and origin.partition("://")[2] == headers.get("host")
            if origin is not None and not own and not cors.is_allowed_origin(origin):
                await reply(scope["path"], Refused("origin_not_allowed", _refusal(origin)))(scope, receive, send)
                return
        await app(scope, receive, send)

    cors = CORSMiddleware(
        middleware,
        allow_origins=tuple(origins),
        allow_origin_regex=_LOCAL,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_private_network=True,
        expose_headers=["X-Request-Id", "X-Galago-Model", "Retry-After"],
    )
    return cors


def _refusal(origin: str) -> str:
    """Why a page may not use the server, and the flag that would let it."""
    if len(origin) <= 100 and _ORIGIN.fullmatch(origin):
        return f"pages from {origin} may not use this server; --cors-origin {origin} lets them"
    # Files, sandboxed frames and redirects: whoever wants to can have a page be "null", so none of them can be named.
    return "pages whose origin is not told may not use this server; --cors-origin '*' lets all pages"


def check_origins(origins: Sequence[str]) -> None:
    """Raise InvalidRequest for what no browser sends as an origin."""
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            message = f"{quoted(origin)} is not an origin such as https://example.org, and not *"
            raise InvalidRequest(message, "cors_origin")


def restrict_hosts(app: ASGIApp, names: Sequence[str], reply: ErrorReply) -> ASGIApp:
    """Middleware that refuses requests whose Host is not localhost, an IP address or one of these names.

    For a server that listens at loopback and wants no key: a page at a name that its owner lets point to 127.0.0.1
    shares its origin with the server, so that CORS does not hold it off (DNS rebinding).
    """
    allowed = {"localhost", *(_bare_host(name) for name in names)}

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host") if scope["type"] == "http" else None
        # No browser leaves Host out, and HTTP/1.0 has none.
        if host is not None:
            name = _bare_host(host)
            if name not in allowed and not name.endswith(".localhost") and _parse_address(name) is None:
                remedy = "call it localhost or by its address. With --api-key KEY, or with --host 0.0.0.0, which lets"
                message = f"this server is not {quoted(host)}; {remedy} other machines in, it answers to any name"
                await reply(scope["path"], Refused("host_not_allowed", message))(scope, receive, send)
                return
        await app(scope, receive, send)

    return middleware


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
