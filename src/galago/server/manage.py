"""Listing, loading and unloading models over HTTP."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from galago.backends.memory_estimate import peak_bytes
from galago.errors import InvalidRequest
from galago.fleet.routing import ResolvedRoute
from galago.server.bodies import Json, load_json, validate
from galago.server.errors import to_failure
from galago.server.fields import Fields, Text
from galago.server.models import Models, ModelStatus
from galago.server.openai import error_body
from galago.server.serving import ServerContext, run_blocking
from galago.server.streaming import Framing, sse_event, stream_response
from galago.store.catalog import Bundled, entry_of
from galago.system.progress import Progress

LOAD, UNLOAD = "/models/load", "/models/unload"
KEEPALIVE_S = 15.0
"""Seconds without progress after which a comment in the stream keeps the connection alive"""


SKILLS_OF = {
    "objects": ("detect", "point", "gaze"),
    "boxes": ("detect",),
    "reasoning": ("reasoning",),
    "video": ("video",),
}
"""What the catalogue's words for what not every model does stand for"""


class ModelCommand(Fields):
    """The body of a load or unload request."""

    model: Text
    stream: bool | None = None


def add_routes(app: FastAPI, context: ServerContext) -> None:
    models = context.models

    # Without the /v1 too, for clients whose base URL lacks it.
    @app.get("/models")
    @app.get("/v1/models")
    async def list_models() -> Response:
        statuses = await run_blocking(models.statuses)
        data = [entry for status in statuses for entry in _entries(status, models)]
        return JSONResponse({"object": "list", "data": data, "models": [_station_entry(status) for status in statuses]})

    @app.post(LOAD)
    @app.post(f"/v1{LOAD}")
    async def load_model(http: Request) -> Response:
        command = await _parse_command(http, context)
        route = await run_blocking(partial(models.find_loadable, command.model))
        if command.stream:
            return await stream_response(_load_events(models, route), _FRAMING, context.silence)
        async for _ in _load_progress(models, route):
            pass
        return JSONResponse(await _current_entry(models, route))

    @app.post(UNLOAD)
    @app.post(f"/v1{UNLOAD}")
    async def unload_model(http: Request) -> Response:
        command = await _parse_command(http, context)
        route = await run_blocking(partial(models.find_loadable, command.model))
        were_loaded = [await run_blocking(partial(_unload, models, key)) for key in route.models]
        return JSONResponse({**await _current_entry(models, route), "unloaded": any(were_loaded)})

    @app.get("/models/{name:path}")
    @app.get("/v1/models/{name:path}")
    async def get_model(http: Request, name: str) -> Response:
        if http.url.path.removeprefix("/v1") in (LOAD, UNLOAD):
            raise HTTPException(405, "Method Not Allowed", {"Allow": "POST"})
        route = await run_blocking(partial(models.find_loadable, name))
        return JSONResponse(await _current_entry(models, route))


def _unload(models: Models, key: str) -> bool:
    """Unload a model, or give up its load; whether there was one. Raises ModelInUse for one in use.

    Those of a route that left before it come back when they are asked for.
    """
    return models.give_up_load(key) or models.pool.unload(key)


async def _parse_command(http: Request, context: ServerContext) -> ModelCommand:
    # A page of another site can send JSON without this type, and so unload a model behind its visitor's back.
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("the request must have the header Content-Type: application/json")
    context.models.check_ready()
    return await context.parse_body(http, lambda raw: validate(ModelCommand, load_json(raw)))


async def _current_entry(models: Models, route: ResolvedRoute) -> Json:
    return _entry(await run_blocking(partial(models.status, route.name)), models)


def _entry(status: ModelStatus, models: Models) -> Json:
    return {
        "id": status.id,
        "object": "model",
        "created": models.started_at,
        "owned_by": "galago",
        "loaded": status.loaded,
        "loading": status.loading,
        "installed": status.installed,
        "precision": status.precision,
        "memory_bytes": status.bytes,
        "in_use": status.in_use,
        **_described(status, models),
        **({"ways": [asdict(way) for way in status.ways]} if status.ways else {}),
    }


def _described(status: ModelStatus, models: Models) -> Json:
    """What helps to choose a model: of a catalogue's what it does and takes, and whether that fits beside nothing."""
    entry = entry_of(status.id)
    if entry is None or status.ways:
        return {"description": status.description}
    hosted = not isinstance(entry.source, Bundled)
    return {
        "description": entry.description,
        "skills": [
            *(skill for skill in ("query", "caption") if skill not in entry.cannot),
            *(skill for one in entry.can for skill in SKILLS_OF[one]),
        ],
        "license": entry.license,
        "parameters": entry.parameters,
        "bundled": not hosted,
        # Published in 16 bits.
        "download_bytes": 2 * entry.parameters if hosted and not status.installed else 0,
        "memory_by_precision": {name: peak_bytes(entry, name) for name in entry.precisions},
        "fits": status.bytes is None or status.bytes <= models.pool.budget,
    }


def _entries(status: ModelStatus, models: Models) -> list[Json]:
    """The entries of a model and its aliases."""
    entry = _entry(status, models)
    return [entry, *({**entry, "id": name, "root": status.id} for name in status.aliases)]


def _station_entry(status: ModelStatus) -> Json:
    """The entry as clients of Moondream Station read it."""
    return {"id": status.id, "name": status.id, "description": status.description, "version": status.revision or ""}


def _load_progress(models: Models, route: ResolvedRoute) -> AsyncIterator[tuple[int, int] | None]:
    return run_with_progress(partial(models.load, route.models))


async def run_with_progress(call: Callable[[Progress], None]) -> AsyncIterator[tuple[int, int] | None]:
    """Run a call in a thread; yields what it tells of its progress, and None after KEEPALIVE_S without news.

    Raises what it raises. It goes on when the client has gone, since others may wait for it.
    """
    loop = asyncio.get_running_loop()
    updates: asyncio.Queue[tuple[int, int] | Exception | None] = asyncio.Queue()
    percent = -1

    def put(item: tuple[int, int] | Exception | None) -> None:
        # The loop is closed when the server ends before the load does.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(updates.put_nowait, item)

    def progress(done: int, total: int) -> None:
        nonlocal percent
        if (now := 100 * done // max(total, 1)) != percent:
            percent = now
            put((done, total))

    def load() -> None:
        try:
            call(progress)
        except Exception as error:
            put(error)
        else:
            put(None)

    # Not one of the pool of threads, for whose end the process would wait.
    threading.Thread(target=load, name="galago-load", daemon=True).start()
    while True:
        try:
            item = await asyncio.wait_for(updates.get(), KEEPALIVE_S)
        except TimeoutError:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        yield item


async def _load_events(models: Models, route: ResolvedRoute) -> AsyncIterator[str]:
    """Load as server-sent events."""
    async for step in _load_progress(models, route):
        if step is None:
            yield _FRAMING.keep_alive()
        else:
            yield sse_event({"status": "loading", "bytes_done": step[0], "bytes_total": step[1]})
    yield sse_event({"status": "loaded", "model": await _current_entry(models, route)})


class _LoadFraming(Framing):
    def keep_alive(self) -> str:
        return ": still loading\n\n"

    def failed(self, error: Exception) -> tuple[str]:
        return (sse_event({"status": "failed", **error_body(to_failure(error))}),)


_FRAMING = _LoadFraming()
