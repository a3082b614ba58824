"""The job API of meme-search, a captioning application, in the place of its own image_to_text_generator."""

import base64
import json
import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from galago.errors import InvalidRequest, quoted
from galago.jobs.meme_search import (
    MAX_ATTEMPTS,
    MODELS,
    PATH,
    AddJob,
    Unprocessable,
    callback_base,
    describe_test,
    permanent_message,
    read_add_job,
    read_image,
    read_remove_id,
)
from galago.jobs.records import QUEUED, RUNNING, NewJob
from galago.jobs.sending import host_of
from galago.server.bodies import Json
from galago.server.dialects import OPENAI, ROUTES
from galago.server.errors import Failure
from galago.server.models import Models, id_of
from galago.server.serving import ServerContext, run_blocking
from galago.server.settings import ServerSettings

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

log = logging.getLogger(__name__)
PATHS = (PATH, "/check_queue", "/remove_job/")
ROOT = {"status": "HELLO WORLD"}
"""What GET / answers"""
OPEN = (QUEUED, RUNNING)
TEST_S = 1.0
"""Seconds that the model `test` takes: the application's tests look at the queue meanwhile"""
_WORDS = {404: "Not Found", 405: "Method Not Allowed"}


def error_body(failed: Failure) -> Json:
    """As FastAPI has it."""
    return {"detail": _WORDS.get(failed.status, failed.message)}


def error_bodies(failed: Failure) -> Json:
    """Of a path that nobody knows: for the application, and for everybody else."""
    return {**error_body(failed), **OPENAI.error_body(failed)}


def callback_url(settings: ServerSettings) -> str:
    """The address of the application's receivers, before /status_receiver."""
    return (settings.callback_url or callback_base(os.environ)).rstrip("/")


def check_meme_search(settings: ServerSettings) -> None:
    """Raise InvalidRequest if there is no folder of images, or nobody to call back."""
    root = Path(settings.image_root)
    if not root.is_dir():
        raise InvalidRequest(f"there is no folder {quoted(str(root))} of images: --image-root names it", "image_root")
    host_of(callback_url(settings))


def models_behind(models: Models) -> dict[str, str]:
    """By the application's names of models, the ids of those that answer: the one that is meant, or the default."""
    meant = {name: asked.model for name, asked in MODELS.items() if asked}
    return {name: id_of(models.match(model) or models.default) for name, model in meant.items()}


def add_routes(app: FastAPI, context: ServerContext, store: "JobStore") -> None:
    settings, models = context.settings, context.models
    if others := [name for name, asked in MODELS.items() if asked and models.match(asked.model) is None]:
        log.warning("meme-search: %s answers for %s", id_of(models.default), ", ".join(others))

    @app.post(PATH)
    async def add(http: Request) -> Response:
        try:
            added = await context.parse_body(http, partial(read_add_job, legacy=settings.meme_search_legacy))
        except Unprocessable as error:
            return JSONResponse(error.body, 422)
        await run_blocking(partial(store.add, new_job(added, settings)))
        return JSONResponse({"status": "Job added to queue"})

    @app.get("/check_queue")
    async def check_queue() -> Response:
        counts = await run_blocking(partial(store.counts, PATH))
        return JSONResponse({"queue_length": sum(counts.by_state[state] for state in OPEN)})

    @app.delete("/remove_job/{image_core_id}")
    async def remove(image_core_id: str) -> Response:
        try:
            await run_blocking(partial(_remove, store, read_remove_id(image_core_id)))
        except Unprocessable as error:
            return JSONResponse(error.body, 422)
        return JSONResponse({"status": "Job removed from queue"})


def new_job(added: AddJob, settings: ServerSettings, idempotency_key: str | None = None) -> NewJob:
    """The job as the queue has it."""
    told = added.model_dump_json()
    return NewJob(
        PATH,
        told,
        image_path=added.image_path,
        max_attempts=MAX_ATTEMPTS,
        delay_s=settings.job_delay,
        callback_url=callback_url(settings),
        external_id=str(added.image_core_id),
        extra=told,
        idempotency_key=idempotency_key,
    )


def _remove(store: "JobStore", image_core_id: int) -> None:
    """Cancel all jobs about this image."""
    while open_jobs := store.page(OPEN, path=PATH, external_id=str(image_core_id), limit=1000).jobs:
        for job in open_jobs:
            store.cancel(job.id)


async def describe(context: ServerContext, added: AddJob) -> Json:
    """The description of a job's image. Raises InvalidRequest, with the sentence that the application shows."""
    began = time.monotonic()
    if added.model not in MODELS:
        raise InvalidRequest(f"there is no model {quoted(added.model)}; there are {', '.join(MODELS)}", "model")
    try:
        data = await run_blocking(partial(read_image, Path(context.settings.image_root), added.image_path))
        asked = MODELS[added.model]
        if asked is None:
            await anyio.sleep(max(0.0, began + TEST_S - time.monotonic()))
            return {"description": describe_test(added)}
        model = context.models.match(asked.model)
        if model is None:
            asked = asked.of_another(context.models.default)
        shown = {"model": id_of(model or asked.model), "image_url": base64.b64encode(data).decode()}
        reply = await context.carry_out(ROUTES[asked.path], json.dumps({**asked.fields, **shown}).encode())
    except InvalidRequest as error:
        raise InvalidRequest(permanent_message(added, error), error.param) from error
    return {"description": reply[asked.member].strip()}
