"""Middleware that makes the server safe to leave running: keys, origins, hosts, the request log and graceful shutdown.

Each is a function that wraps an ASGI app, and works alone.
"""

from collections.abc import Sequence

from fastapi import FastAPI

from galago.server.errors import ErrorReply
from galago.server.guard.keys import require_api_key
from galago.server.guard.logs import log_requests, reply_to_failures
from galago.server.guard.origins import restrict_hosts, restrict_origins
from galago.server.guard.page_headers import add_page_headers
from galago.server.guard.stopping import InFlight, track_in_flight


def install(
    app: FastAPI,
    reply: ErrorReply,
    in_flight: InFlight,
    *,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    log_content: bool = False,
) -> None:
    """Add all middleware to an app.

    `origins` are those of pages that may use the server beside the ones of this machine, or "*". `hosts` are the
    names that it may be called by beside localhost and its addresses; None is any.
    """
    # The last is the outermost: what is refused further in has its id, its line in the log, and headers of CORS.
    app.add_middleware(reply_to_failures, reply=reply)
    app.add_middleware(add_page_headers)
    app.add_middleware(track_in_flight, in_flight=in_flight, reply=reply)
    if keys:
        app.add_middleware(require_api_key, keys=keys, reply=reply)
    app.add_middleware(restrict_origins, origins=origins, reply=reply)
    if hosts is not None:
        app.add_middleware(restrict_hosts, names=hosts, reply=reply)
    app.add_middleware(log_requests, content=log_content)
