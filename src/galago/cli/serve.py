"""galago serve"""

import errno
import socket

import typer

from galago.cli.options import takes_groups
from galago.cli.server_flags import Config, Name, ServerFlags, in_force
from galago.errors import InvalidRequest

EXAMPLES = """\b
Examples:
  galago serve
  galago serve moondream2 --port 2020 --precision bfloat16
  galago serve --config galago.toml"""


@takes_groups
def serve(name: Name = None, config: Config = None, *, flags: ServerFlags) -> None:
    """Answer over HTTP, to clients of OpenAI's chat completions and of Moondream's API."""
    found = in_force(name, flags, config)
    settings = found.settings
    if len(settings.model) > 1:
        names = ", ".join(settings.model)
        raise InvalidRequest(f"this version serves one model, not {names} ({found.origins['model']})", "model")
    # Before the model: a port that is taken should not be found out a minute later.
    listener = _bound(settings.host, settings.port)
    with listener:
        import uvicorn

        import galago
        from galago.server.app import create_app

        model = galago.load(
            settings.model[0],
            precision=settings.precision,
            profile=settings.profile,
            device=settings.device,
            revision=settings.revision,
            threads=settings.threads,
            limits=galago.Limits(waiting=settings.max_queue, running=settings.max_batch_size),
        )
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{shown}:{listener.getsockname()[1]}"

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets=sockets)
                typer.echo(f"listening on {address} with {model.name}", err=True)

        with model:
            served = create_app(model, settings)
            options = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=settings.grace_s)
            Server(options).run(sockets=[listener])


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
