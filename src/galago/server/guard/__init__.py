"""What makes the server safe to leave running: who may ask, for how long, and how it is told and ended.

Each part is a function around an ASGI app, and works alone.
"""

from collections.abc import Sequence

from fastapi import FastAPI

from galago.server.errors import Reply
from galago.server.guard.keys import with_keys
from galago.server.guard.logs import with_failures, with_log
from galago.server.guard.origins import with_hosts, with_origins
from galago.server.guard.pages import with_page_headers
from galago.server.guard.stopping import Underway, with_underway


def install(
    app: FastAPI,
    reply: Reply,
    underway: Underway,
    *,
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    log_content: bool = False,
) -> None:
    """Put all of it around an app.

    `origins` are those of pages that may use the server beside the ones of this machine, or "*". `hosts` are the
    names that it may be called by beside localhost and its addresses; None is any.
    """
    # The last is the outermost: what is refused further in has its id, its line in the log, and headers of CORS.
    app.add_middleware(with_failures, reply=reply)
    app.add_middleware(with_page_headers)
    app.add_middleware(with_underway, underway=underway, reply=reply)
    if keys:
        app.add_middleware(with_keys, keys=keys, reply=reply)
    app.add_middleware(with_origins, origins=origins, reply=reply)
    if hosts is not None:
        app.add_middleware(with_hosts, names=hosts, reply=reply)
    app.add_middleware(with_log, content=log_content)
