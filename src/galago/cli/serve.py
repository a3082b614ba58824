"""galago serve"""

import asyncio
import errno
import socket
from dataclasses import asdict
from typing import Annotated

import typer

from galago.cli.options import Loading, takes_groups
from galago.errors import InvalidRequest

EXAMPLES = """\b
Examples:
  galago serve
  galago serve moondream2 --port 2020 --precision bfloat16
  galago serve moondream2-int8 moondream2-int4"""


@takes_groups
def serve(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", help="The same as --model; the first is the default.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free, and tells it.")] = 8080,
    strict_model_names: Annotated[
        bool, typer.Option("--strict-model-names", help="Refuse requests that name another model (404).")
    ] = False,
    *,
    loading: Loading,
) -> None:
    """Answer over HTTP, to clients of OpenAI's chat completions and of Moondream's API."""
    # Before the models: a port that is taken should not be found out a minute later.
    listener = _bound(host, port)
    with listener:
        import uvicorn

        from galago.pool import ModelPool
        from galago.server.app import create_app

        options = asdict(loading)
        models = names or [options["model"]]
        del options["model"]
        pool = ModelPool(keep_alive=None, options=options)
        for model in models:
            pool.need(model)  # what is wrong with a name or an option is told before anything is loaded
        app = create_app(pool, models, strict_names=strict_model_names)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                asyncio.wrap_future(app.state.opened).add_done_callback(self.opened)

            def opened(self, done: asyncio.Future[None]) -> None:
                if done.cancelled() or done.exception():
                    self.should_exit = True
                else:
                    typer.echo(f"listening on {address} with {', '.join(models)}", err=True)

        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)).run(sockets=[listener])
        if app.state.opened.done():
            app.state.opened.result()


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
