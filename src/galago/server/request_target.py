"""The target of a request in the form that routes have, and which targets are of health."""

import re

from starlette.types import Scope

HEALTH_PATHS = ("/health", "/readyz")
"""Asked by monitors and by clients at their set-up: open without a key, and answered while the server stops."""
PAGE_FILES = "/app/"
"""Where the files of the page are"""
_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)


def normalise_target(scope: Scope) -> None:
    """Strip repeated and trailing slashes from the path, and scheme and host from a target in absolute form.

    Moondream's client puts a slash behind an address that may end in one. Clients that believe to speak to a proxy
    send the whole URL as the target (RFC 9112, 3.2.2): its host then takes the place of the header's.
    """
    path = scope["path"]
    if found := _ABSOLUTE.match(path):
        others = [(name, value) for name, value in scope["headers"] if name != b"host"]
        scope["headers"] = [*others, (b"host", found[1].encode())]
        path = "/" + path[found.end() :]
    scope["path"] = re.sub("/{2,}", "/", path).rstrip("/") or "/"


def is_page(scope: Scope, accept: str) -> bool:
    """Whether this asks for the page or a file of it: open without a key, which the page then asks for."""
    path: str = scope["path"]
    is_read = scope["method"] in ("GET", "HEAD")
    return is_read and (path.startswith(PAGE_FILES) or (path == "/" and "text/html" in accept))
