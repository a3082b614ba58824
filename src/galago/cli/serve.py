"""galago serve"""

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

import typer

from galago.cli.options import takes_groups
from galago.cli.server_flags import Config, Names, ServerFlags, in_force
from galago.errors import InvalidRequest

if TYPE_CHECKING:
    from galago.pool import ModelPool
    from galago.server.settings import Settings

EXAMPLES = """\b
Examples:
  galago serve
  galago serve moondream2 --port 2020 --precision bfloat16
  galago serve moondream2-int8 moondream2-int4
  galago serve --config galago.toml"""


@takes_groups
def serve(names: Names = None, config: Config = None, *, flags: ServerFlags) -> None:
    """Answer over HTTP, to clients of OpenAI's chat completions and of Moondream's API."""
    settings = in_force(names, flags, config).settings
    # Before the models: a port that is taken should not be found out a minute later.
    listener = _bound(settings.host, settings.port)
    with listener:
        import uvicorn

        from galago.server.app import create_app

        app = create_app(_pool(settings), settings)
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{shown}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                asyncio.wrap_future(app.state.opened).add_done_callback(self.opened)

            def opened(self, done: asyncio.Future[None]) -> None:
                if done.cancelled() or done.exception():
                    self.should_exit = True
                else:
                    typer.echo(f"listening on {address} with {', '.join(settings.model)}", err=True)

        options = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=settings.grace_s)
        Server(options).run(sockets=[listener])
        if app.state.opened.done():
            app.state.opened.result()


def _pool(settings: "Settings") -> "ModelPool":
    """Where the models will be; what is wrong with a name or an option is told before anything is loaded."""
    import galago
    from galago.pool import ModelPool

    options = {name: getattr(settings, name) for name in ("precision", "profile", "device", "revision", "threads")}
    options["limits"] = galago.Limits(waiting=settings.max_queue, running=settings.max_batch_size)
    budget = None if settings.max_memory_gb is None else int(settings.max_memory_gb * 1e9)
    pool = ModelPool(budget, keep_alive=None, options=options)
    for model in settings.model:
        pool.need(model)
    return pool


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
