"""Jobs over HTTP: requests that are carried out later, and outlive the server (galago.jobs has the queue)."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from galago.errors import InvalidRequest, UnsupportedTask, quoted
from galago.jobs.records import CANCELLED, DONE, FAILED, QUEUED, RUNNING, STATES, Callback, Job, JobInput, NewJob
from galago.jobs.sending import Event, check_callback, check_secret, event_body
from galago.server import openai_reply
from galago.server.bodies import Json, load_json, validate
from galago.server.dialect import Route, read
from galago.server.dialects import DIALECTS
from galago.server.errors import Failure, Refused
from galago.server.fields import WHOLE, Fields, Name
from galago.server.serving import ServerContext, run_blocking
from galago.server.settings import ServerSettings

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

EVENTS: dict[str, Event] = {
    QUEUED: "job.queued",
    RUNNING: "job.started",
    DONE: "job.done",
    FAILED: "job.failed",
    CANCELLED: "job.cancelled",
}
PATH = "/v1/jobs"
ROUTES = {path: route for dialect in DIALECTS for route in dialect.routes for path in route.paths if route.gives}
"""What a job may be, by path"""


class JobBody(Fields):
    """What stands beside the fields of a request that is to be carried out later."""

    path: Annotated[Name, Field(description="the path of the request, such as /v1/caption")]
    callback_url: Annotated[Name, Field(description="is posted each change of the job's state")] | None = None
    idempotency_key: Annotated[Name, Field(description="a second job of this key is the first")] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000, description="the highest goes first"), WHOLE] | None = None
    expires_after: Annotated[float, Field(ge=0, le=10**9, description="seconds that its result is kept")] | None = None


def error_body(failed: Failure) -> Json:
    """OpenAI's error object; what is at fault is called as the request calls it, of whichever dialect that is."""
    return {"error": {**openai_reply.error_body(failed)["error"], "param": failed.param}}


def queue_json(store: "JobStore") -> Json:
    """How the queue and its callbacks stand, for /health."""
    told = {"jobs": store.counts(), "callbacks": store.deliveries.counts()}
    return {name: {**counts.by_state, "oldest_s": counts.oldest_s} for name, counts in told.items()}


def open_jobs(settings: ServerSettings) -> "JobStore":
    """The queue of the settings. Raises JobsDatabaseError, and InvalidRequest for a secret that cannot sign."""
    from galago.jobs import open_store

    if settings.webhook_secret is not None:
        check_secret(settings.webhook_secret)
    return open_store(settings.jobs_db or "", callbacks=callbacks)


def callbacks(job: Job) -> list[Callback]:
    """What is posted about a change of a job's state; a job that waits for another attempt is no news."""
    if job.callback_url is None or (job.state == QUEUED and job.attempts):
        return []
    event = EVENTS[job.state]
    at = datetime.fromtimestamp(job.finished_at or job.started_at or job.created_at, UTC)
    return [Callback(job.callback_url, event, event_body(event, job_json(job), at))]


def job_json(job: Job) -> Json:
    """A job as clients see it. Times are seconds since 1970."""
    error = None if job.error is None else {"message": job.error, "permanent": job.error_is_permanent}
    return {
        "id": job.id,
        "object": "job",
        "path": job.path,
        "status": job.state,
        "attempts": job.attempts,
        "priority": job.priority,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "expires_at": job.expires_at,
        "result": None if job.result is None else json.loads(job.result),
        "error": error,
    }


def add_routes(app: FastAPI, context: ServerContext, kept: "JobStore | None") -> None:
    settings = context.settings

    def store() -> "JobStore":
        if kept is None:
            raise UnsupportedTask("this server keeps no jobs: galago serve --jobs-db FILE does")
        return kept

    def new_job(raw: bytes) -> NewJob:
        given = load_json(raw)
        beside = validate(JobBody, given)
        route = _route(beside.path)
        asked = {name: value for name, value in given.items() if name not in JobBody.model_fields and name != "stream"}
        body = json.dumps(asked)
        # What could never be carried out is refused now.
        read(route.body, body.encode())
        if beside.callback_url is not None:
            check_callback(beside.callback_url, settings.allow_callback_hosts)
        return NewJob(
            beside.path,
            body,
            priority=beside.priority or 0,
            keep_s=beside.expires_after,
            idempotency_key=beside.idempotency_key,
            callback_url=beside.callback_url,
        )

    async def change(job_id: str, what: Callable[[str], Job | None]) -> Response:
        job = await run_blocking(partial(what, job_id))
        if job is None:
            raise Refused("not_found", f"there is no job {quoted(job_id)}", "id")
        return JSONResponse(job_json(job))

    @app.post(PATH)
    async def add(http: Request) -> Response:
        queue = store()
        new = await context.parse_body(http, new_job)
        job, is_new = await run_blocking(partial(queue.add, new))
        return JSONResponse(job_json(job), 202 if is_new else 200, {"Location": f"{PATH}/{job.id}"})

    @app.get(PATH)
    async def listed(http: Request) -> Response:
        queue, query, limit = store(), http.query_params, http.query_params.get("limit", "50")
        if not limit.isdecimal():
            raise InvalidRequest(f"limit must be a whole number, not {quoted(limit)}", "limit")
        states = query.getlist("status") or STATES
        if unknown := next((one for one in states if one not in STATES), None):
            raise InvalidRequest(f"status must be one of {', '.join(STATES)}; got {quoted(unknown)}", "status")
        page = await run_blocking(partial(queue.page, states, after=query.get("after"), limit=int(limit[:9])))
        more = {"after": page.after, "has_more": page.after is not None}
        return JSONResponse({"object": "list", "data": [job_json(job) for job in page.jobs], **more})

    @app.get(f"{PATH}/{{id}}")
    async def one(id: str) -> Response:
        return await change(id, store().get)

    @app.delete(f"{PATH}/{{id}}")
    async def cancel(id: str) -> Response:
        return await change(id, store().cancel)

    @app.post(f"{PATH}/{{id}}/retry")
    async def retry(id: str) -> Response:
        return await change(id, store().retry)


@asynccontextmanager
async def working(context: ServerContext, store: "JobStore") -> AsyncIterator[None]:
    """Work the queue while the server runs; jobs under way at its end are given back."""
    from galago.jobs.worker import run_worker

    async def perform(job: Job, given: JobInput) -> str:
        while not context.models.startup.done():
            await anyio.sleep(0.1)
        reply = await context.carry_out(_route(job.path), given.body.encode())
        return json.dumps(reply, allow_nan=False)

    settings = context.settings
    run = partial(
        run_worker,
        store,
        perform,
        slots=settings.max_batch_size,
        allowed_hosts=settings.allow_callback_hosts,
        secret=settings.webhook_secret,
    )
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield
        tasks.cancel_scope.cancel()


def _route(path: str) -> Route:
    route = ROUTES.get(path)
    if route is None:
        raise InvalidRequest(f"path must be that of a request, such as /v1/caption; got {quoted(path)}", "path")
    return route
