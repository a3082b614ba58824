"""galago worker"""

import asyncio
import logging
from contextlib import closing

import typer

from galago.cli.options import expand_groups
from galago.cli.serve import announce
from galago.cli.server_flags import ConfigOption, ModelNames, WorkerFlags, read_server_settings
from galago.store.catalog import check_revision
from galago.store.hub import check_models

EXAMPLES = """\b
Examples:
  galago worker moondream2 --jobs-db postgresql://galago@box/jobs
  galago worker scenes --jobs-db jobs.db --max-batch-size 4
  galago worker --config galago.toml"""


@expand_groups
def worker(names: ModelNames = None, config: ConfigOption = None, *, flags: WorkerFlags) -> None:
    """Carry out the jobs that `galago serve --jobs-db` takes, here or on another machine, and answer no requests.

    It takes the settings of `galago serve` from GALAGO_* and --config too. A stop gives back what is not finished.
    """
    settings = read_server_settings(names, flags, config).settings
    check_models(settings.model or (), routes=True)
    check_revision(settings.revision)
    from galago.server import job_work
    from galago.server.guard import logs
    from galago.server.guard.stopping import CLOSING_S, GracefulStop, InFlight
    from galago.server.models import configured_models
    from galago.server.pool import make_pool
    from galago.server.serving import ServerContext
    from galago.system.signals import handle_stop_signals

    logs.configure_logging(settings.log_format, logging.getLevelNamesMapping()[settings.log_level.upper()])
    stop = GracefulStop(max(settings.grace_s, CLOSING_S))
    with closing(job_work.open_jobs(settings)) as store:
        models, why = configured_models(make_pool(settings), settings)

        def ready() -> None:
            announce(f"working the jobs of {store.name} with {', '.join(models.describe_configured())}", settings)

        context = ServerContext(models, InFlight(), settings, why)
        with handle_stop_signals(stop.begin):
            asyncio.run(job_work.work_until_stopped(context, store, stop, ready))
    if stop.ended_by is not None:
        raise typer.Exit(stop.code)
