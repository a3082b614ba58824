"""galago serve"""

import errno
import logging
import signal
import socket
from dataclasses import replace
from functools import partial
from typing import Annotated, cast

import typer

from galago.cli.options import Loading, takes_groups
from galago.errors import InvalidRequest

log = logging.getLogger(__name__)

EXAMPLES = """\b
Examples:
  galago serve
  galago serve moondream2 --port 2020 --precision bfloat16"""


@takes_groups
def serve(
    name: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="The same as --model.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free, and tells it.")] = 8080,
    strict_model_names: Annotated[
        bool, typer.Option("--strict-model-names", help="Refuse requests that name another model (404).")
    ] = False,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="GALAGO_API_KEY", help="Answer only those who show it; may be given again."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages from there may use the server, beside this machine's; * is any. May be repeated."),
    ] = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that requests have to finish when the server is told to stop.")
    ] = 10,
    log_format: Annotated[str, typer.Option(metavar="text|json", help="How the log is written.")] = "text",
    log_content: Annotated[
        bool, typer.Option("--log-content", help="Write what was asked into the log, which else it never is.")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Answer over HTTP, to clients of OpenAI's chat completions and of Moondream's API."""
    # Before the model: a port that is taken should not be found out a minute later.
    from galago.server.guard.keys import check_keys
    from galago.server.guard.origins import check_origins, is_loopback

    check_keys(api_key or ())
    check_origins(cors_origin or ())
    listener = _bound(host, port)
    with listener:
        from galago.server.app import create_app
        from galago.server.guard import logs
        from galago.server.guard.stopping import Server, Underway

        logs.set_up(cast(logs.Form, log_format))
        address, number = listener.getsockname()[:2]
        local = is_loopback(address)
        if not local and not api_key:
            log.warning("%s can be reached by other machines, and whoever reaches it may use it: set --api-key", host)
        model = (replace(loading, model=name) if name else loading).open()
        shown = f"[{host}]" if ":" in host else host
        told = f"listening on http://{shown}:{number} with {model.name}"
        underway = Underway()
        with model:
            app = create_app(
                model,
                strict_names=strict_model_names,
                underway=underway,
                keys=api_key or (),
                origins=cors_origin or (),
                hosts=(host,) if local and not api_key else None,
                log_content=log_content,
            )
            # A program that reads JSON should not meet a line that is none; one that waits for this one wants it bare.
            ready = partial(log.info, told) if log_format == "json" else partial(typer.echo, told, err=True)
            server = Server(app, underway, grace=grace, ready=ready)
            server.run(sockets=[listener])
        if server.ended_by == signal.SIGINT:
            raise KeyboardInterrupt


def _bound(host: str, port: int) -> socket.socket:
    """A socket that holds the port. Raises InvalidRequest that names it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise InvalidRequest(f"port {port} is in use; choose another with --port", "port") from error
            case errno.EACCES:
                raise InvalidRequest(f"port {port} is not yours to use; choose one above 1023 with --port") from error
        raise InvalidRequest(f"cannot listen at {host}: {error.strerror or error}", "host") from error
    return listener
