"""Carrying out jobs with the models of a server, or of a `galago worker` that answers no requests."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import anyio

from galago.jobs import QueueSettings, meme_search, open_store
from galago.jobs.records import Job, JobInput
from galago.jobs.sending import check_secret, host_of
from galago.jobs.settings import default_location
from galago.jobs.telling import callbacks
from galago.server.dialects import ROUTES
from galago.server.guard.stopping import GracefulStop
from galago.server.meme_search import callback_url, check_meme_search, describe, new_job
from galago.server.serving import ServerContext, run_blocking
from galago.server.settings import ServerSettings

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

LOOK_S = 0.1
"""Between looks whether the models are loaded, or a stop has begun"""


def open_jobs(settings: ServerSettings) -> "JobStore":
    """The queue of the settings. Raises JobsDatabaseError, and InvalidRequest for settings that cannot be kept to."""
    if settings.webhook_secret is not None:
        check_secret(settings.webhook_secret)
    if settings.meme_search:
        check_meme_search(settings)
    kept = QueueSettings(keep_s=settings.jobs_keep_s)
    store = open_store(settings.jobs_db or default_location(), settings=kept, callbacks=callbacks)
    if settings.meme_search:
        try:
            store.take_over_old_jobs(lambda added, key: store.add(new_job(added, settings, key)))
        except BaseException:
            store.close()
            raise
    return store


async def perform(context: ServerContext, job: Job, given: JobInput) -> str:
    """Carry a job out, once the models are loaded; its result as JSON text."""
    while not context.models.startup.done():
        await anyio.sleep(LOOK_S)
    if job.path == meme_search.PATH:
        reply = await describe(context, meme_search.AddJob.model_validate_json(given.body))
    else:
        reply = await context.carry_out(ROUTES[job.path], given.body.encode())
    return json.dumps(reply, allow_nan=False)


@asynccontextmanager
async def working(context: ServerContext, store: "JobStore") -> AsyncIterator[None]:
    """Work the queue meanwhile; jobs under way at the end are given back."""
    from galago.jobs.worker import run_worker

    settings = context.settings
    hosts = settings.allow_callback_hosts
    if settings.meme_search:
        hosts += (host_of(callback_url(settings)),)
    run = partial(
        run_worker,
        store,
        partial(perform, context),
        slots=settings.max_batch_size,
        # Where their images are is known to those that are told.
        without=() if settings.meme_search else (meme_search.PATH,),
        allowed_hosts=hosts,
        secret=settings.webhook_secret,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield
        tasks.cancel_scope.cancel()


async def work_until_stopped(
    context: ServerContext, store: "JobStore", stop: GracefulStop, on_ready: Callable[[], None]
) -> None:
    """Load the models, then work the queue until a stop begins, and close the models. Raises what a load raises."""
    models = context.models
    threading.Thread(target=models.load_configured, name="galago-open", daemon=True).start()
    try:
        # Jobs that wait for this load are for workers that have theirs.
        while stop.ended_by is None and not models.startup.done():
            await anyio.sleep(LOOK_S)
        if stop.ended_by is not None:
            return
        models.startup.result()
        stop.has_served = True
        on_ready()
        async with working(context, store):
            while stop.ended_by is None:
                await anyio.sleep(LOOK_S)
    finally:
        await asyncio.gather(run_blocking(models.pool.close), run_blocking(models.cancel_loads))
