"""galago serve"""

import asyncio
import errno
import logging
import queue
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from galago.cli.options import expand_groups
from galago.cli.server_flags import ConfigOption, ModelNames, ServerFlags, read_server_settings
from galago.errors import InvalidRequest, quoted
from galago.store.catalog import check_revision
from galago.store.hub import check_models
from galago.system.signals import exit_code

if TYPE_CHECKING:
    from galago.server.settings import ServerSettings

log = logging.getLogger(__name__)

EXAMPLES = """\b
Examples:
  galago serve
  galago serve moondream2 --port 2020 --precision bfloat16
  galago serve moondream2-int8 moondream2-int4
  galago serve --config galago.toml
  galago serve moondream2-int8 --on ray://head:10001 --replicas 2..16 --host 0.0.0.0 --api-key-file keys"""


@expand_groups
def serve(
    names: ModelNames = None,
    config: ConfigOption = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="ray[://HOST:PORT]",
            help="Serve from replicas on a Ray cluster, which goes on when this ends, or from processes of this "
            "machine. GET /health, /metrics and loads are then of one replica; --meme-search and --max-connections "
            "are not supported.",
            show_default=False,
        ),
    ] = None,
    replicas: Annotated[
        str | None,
        typer.Option(
            metavar="N|MIN..MAX",
            help="Copies of the models on Ray, each with --threads cores (4), or a GPU by --device cuda; by default 1.",
            show_default=False,
        ),
    ] = None,
    *,
    flags: ServerFlags,
) -> None:
    """Answer over HTTP, to clients of OpenAI's chat completions and of Moondream's API."""
    settings = read_server_settings(names, flags, config).settings
    if on is not None:
        _serve_on_cluster(on, replicas, settings)
        return
    if replicas is not None:
        raise InvalidRequest("--replicas is of --on ray", "replicas")
    # Before the models: a port that is taken should not be found out a minute later.
    listener = _bind(settings.host, settings.port)
    with listener:
        # And a wrong name not seconds later, when all is imported.
        check_models(settings.model or (), routes=True)
        check_revision(settings.revision)
        from galago.server.app import create_app
        from galago.server.guard import logs
        from galago.server.guard.gate import is_loopback
        from galago.server.guard.stopping import InFlight, Server
        from galago.server.pool import make_pool

        logs.configure_logging(settings.log_format, logging.getLevelNamesMapping()[settings.log_level.upper()])
        if not is_loopback(listener.getsockname()[0]) and not settings.api_keys:
            who = "can be reached by other machines, and whoever reaches it may use it"
            log.warning("%s %s: set --api-key", settings.host, who)
        in_flight = InFlight()
        app = create_app(make_pool(settings), settings, in_flight)
        shown = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{shown}:{listener.getsockname()[1]}"

        def started() -> None:
            asyncio.wrap_future(app.state.startup).add_done_callback(opened)

        def opened(done: "asyncio.Future[None]") -> None:
            if done.cancelled() or done.exception():
                server.should_exit = True
                return
            server.stop.has_served = True
            announce(f"listening on {address} with {', '.join(app.state.models.describe_configured())}", settings)

        server = Server(app, in_flight, grace=settings.grace_s, connections=settings.max_connections, on_ready=started)
        server.run(sockets=[listener])
        if server.stop.ended_by is not None:
            raise typer.Exit(server.stop.code)
        app.state.startup.result()


def _serve_on_cluster(on: str, replicas: str | None, settings: "ServerSettings") -> None:
    """Deploy to a cluster, which goes on serving; or serve from one that is started here, until a signal."""
    from galago.cluster import serving
    from galago.cluster.connection import Workers, check_address, connect, import_ray, parse_workers
    from galago.system.signals import handle_stop_signals

    check_address(on)
    wanted = parse_workers(replicas, "replicas") if replicas else Workers(1, 1)
    check_models(settings.model or (), routes=True)
    check_revision(settings.revision)
    import_ray()
    with connect(on) as cluster:
        if cluster.is_own:
            with _bind(settings.host, settings.port) as free:
                settings = replace(settings, port=free.getsockname()[1])
        address = serving.deploy(cluster, settings, wanted)
        if not cluster.is_own:
            announce(f"deployed: the cluster listens at {address}, until `serve shutdown`", settings)
            return
        heard = queue.SimpleQueue[int]()
        with handle_stop_signals(heard.put):
            announce(f"listening on {address}", settings)
            ended_by = heard.get()
        serving.stop()
    raise typer.Exit(exit_code(ended_by) if ended_by == signal.SIGINT else 0)


def announce(told: str, settings: "ServerSettings") -> None:
    """Say that the models are loaded, and what now goes on."""
    if settings.log_format == "json":
        log.info(told)  # a program that reads JSON should not meet a line that is none
    else:
        typer.echo(told, err=True)


def _bind(host: str, port: int) -> socket.socket:
    """A socket that holds the port. Raises InvalidRequest that names it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except UnicodeError as error:
        raise InvalidRequest(f"cannot listen at {quoted(host)}: no host has such a name", "host") from error
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                raise InvalidRequest(f"port {port} is in use; choose another with --port", "port") from error
            case errno.EACCES:
                raise InvalidRequest(f"port {port} is not yours to use; choose one above 1023 with --port") from error
        raise InvalidRequest(f"cannot listen at {quoted(host)}: {error.strerror or error}", "host") from error
    return listener
