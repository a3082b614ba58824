"""Jobs over HTTP: requests that are carried out later, and outlive the server (galago.jobs has the queue)."""

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from galago.errors import InvalidRequest, UnsupportedTask, quoted
from galago.jobs.records import STATES, Job, NewJob
from galago.jobs.sending import check_callback
from galago.jobs.telling import delivery_json, job_json
from galago.server import openai_reply
from galago.server.bodies import Json, load_json, validate
from galago.server.dialect import Route, read
from galago.server.dialects import ROUTES
from galago.server.errors import Failure, Refused
from galago.server.fields import WHOLE, Fields, Name
from galago.server.serving import ServerContext, run_blocking

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

PATH = "/v1/jobs"
MAX_LISTED = 1000
"""Callbacks of a job that are told of: it has a handful, unless it is retried again and again"""


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


def queue_of(store: "JobStore | None") -> "JobStore":
    """The queue, if this server has one. Raises UnsupportedTask."""
    if store is None:
        raise UnsupportedTask("this server keeps no jobs: galago serve --jobs does")
    return store


def add_routes(app: FastAPI, context: ServerContext, kept: "JobStore | None") -> None:
    settings = context.settings

    def store() -> "JobStore":
        return queue_of(kept)

    def new_job(raw: bytes) -> NewJob:
        given = load_json(raw)
        beside = validate(JobBody, given)
        route = _route(beside.path)
        asked = {name: value for name, value in given.items() if name not in JobBody.model_fields and name != "stream"}
        body = json.dumps(asked)
        # What could never be carried out is refused now.
        if read(route.body, body.encode()).is_idle:
            raise InvalidRequest("a job must ask a model for something; this loads one or lets it go", "path")
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

    def no_job(job_id: str) -> Refused:
        return Refused("not_found", f"there is no job {quoted(job_id)}", "id")

    async def change(job_id: str, what: Callable[[str], Job | None]) -> Response:
        job = await run_blocking(partial(what, job_id))
        if job is None:
            raise no_job(job_id)
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

    @app.get(f"{PATH}/{{id}}/deliveries")
    async def deliveries(id: str) -> Response:
        queue = store()
        if await run_blocking(partial(queue.get, id)) is None:
            raise no_job(id)
        page = await run_blocking(partial(queue.deliveries.page, job_id=id, limit=MAX_LISTED, newest_first=False))
        told = [delivery_json(delivery) for delivery in page.deliveries]
        return JSONResponse({"object": "list", "data": told, "after": page.after, "has_more": page.after is not None})

    @app.post(f"{PATH}/deliveries/{{id}}/replay")
    async def replay(id: str) -> Response:
        delivery = await run_blocking(partial(store().deliveries.replay, id))
        if delivery is None:
            raise Refused("not_found", f"there is no callback {quoted(id)}", "id")
        return JSONResponse(delivery_json(delivery))


def _route(path: str) -> Route:
    route = ROUTES.get(path)
    if route is None or not route.gives:
        raise InvalidRequest(f"path must be that of a request, such as /v1/caption; got {quoted(path)}", "path")
    return route
