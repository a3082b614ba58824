"""Listing, loading and unloading models over HTTP."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from galago.errors import InvalidRequest
from galago.fleet.routing import Plan
from galago.server import openai_reply
from galago.server.bodies import Json, load_json
from galago.server.errors import failure
from galago.server.fields import read, required
from galago.server.models import Models, Row
from galago.server.running import Host, line, streamed, waited

LOAD, UNLOAD = "/models/load", "/models/unload"
QUIET_S = 15.0
"""After so long without news a comment keeps the connection."""


@dataclass(frozen=True)
class Asked:
    model: str
    stream: bool


def read_asked(body: bytes) -> Asked:
    given = load_json(body)
    return Asked(required(read(given, "model", str), "model"), read(given, "stream", bool) or False)


def add_routes(app: FastAPI, host: Host) -> None:
    models = host.models

    # Without the /v1 too, for clients whose base URL lacks it.
    @app.get("/models")
    @app.get("/v1/models")
    async def listed() -> Response:
        rows = await waited(models.rows)
        data = [entry for row in rows for entry in _entries(row, models)]
        return JSONResponse({"object": "list", "data": data, "models": [_described(row) for row in rows]})

    @app.post(LOAD)
    @app.post(f"/v1{LOAD}")
    async def load(http: Request) -> Response:
        asked = await _asked(http, host)
        plan = await waited(partial(models.known, asked.model))
        if asked.stream:
            return await streamed(_told(models, plan))
        async for _ in _loading(models, plan):
            pass
        return JSONResponse(await _entry_of(models, plan))

    @app.post(UNLOAD)
    @app.post(f"/v1{UNLOAD}")
    async def unload(http: Request) -> Response:
        asked = await _asked(http, host)
        plan = await waited(partial(models.known, asked.model))
        # One in use is refused. Those of a route that left before it come back when they are asked for.
        were_loaded = [await waited(partial(models.pool.unload, key)) for key in plan.models]
        return JSONResponse({**await _entry_of(models, plan), "unloaded": any(were_loaded)})

    @app.get("/models/{name:path}")
    @app.get("/v1/models/{name:path}")
    async def one(http: Request, name: str) -> Response:
        if http.url.path.removeprefix("/v1") in (LOAD, UNLOAD):
            raise HTTPException(405, "Method Not Allowed", {"Allow": "POST"})
        plan = await waited(partial(models.known, name))
        return JSONResponse(await _entry_of(models, plan))


async def _asked(http: Request, host: Host) -> Asked:
    # A page of another site can send JSON without this type, and so unload a model behind its visitor's back.
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest("the request must have the header Content-Type: application/json")
    host.models.check_ready()
    return await host.parsed(http, read_asked)


async def _entry_of(models: Models, plan: Plan) -> Json:
    return _entry(await waited(partial(models.row, plan.name)), models)


def _entry(row: Row, models: Models) -> Json:
    return {
        "id": row.id,
        "object": "model",
        "created": models.started,
        "owned_by": "galago",
        "loaded": row.loaded,
        "installed": row.installed,
        "precision": row.precision,
        "memory_bytes": row.bytes,
        "in_use": row.in_use,
        **({"ways": [asdict(lane) for lane in row.lanes]} if row.lanes else {}),
    }


def _entries(row: Row, models: Models) -> list[Json]:
    """A model and its other names."""
    entry = _entry(row, models)
    return [entry, *({**entry, "id": name, "root": row.id} for name in row.aliases)]


def _described(row: Row) -> Json:
    """As the clients of Moondream Station read it."""
    return {"id": row.id, "name": row.id, "description": row.description, "version": row.revision or ""}


async def _loading(models: Models, plan: Plan) -> AsyncIterator[tuple[int, int] | None]:
    """Load what answers to a name: bytes of a model that are downloaded and of how many, None if nothing is new.

    Raises what the load raises. It goes on when nobody listens any more, since others may wait for it.
    """
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[tuple[int, int] | Exception | None] = asyncio.Queue()
    percent = -1

    def tell(item: tuple[int, int] | Exception | None) -> None:
        # The loop is closed when the server ends before the load does.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(news.put_nowait, item)

    def progress(done: int, total: int) -> None:
        nonlocal percent
        if (now := 100 * done // max(total, 1)) != percent:
            percent = now
            tell((done, total))

    def work() -> None:
        try:
            models.load(plan.models, progress)
        except Exception as error:
            tell(error)
        else:
            tell(None)

    # Not one of the pool of threads, for whose end the process would wait.
    threading.Thread(target=work, name="galago-load", daemon=True).start()
    while True:
        try:
            item = await asyncio.wait_for(news.get(), QUIET_S)
        except TimeoutError:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, Exception):
            raise item
        yield item


async def _told(models: Models, plan: Plan) -> AsyncIterator[str]:
    """A load as server-sent events; what fails before the first of them is raised, and gets its own status."""
    begun = False
    try:
        async for step in _loading(models, plan):
            begun = True
            if step is None:
                yield ": still loading\n\n"
            else:
                yield line({"status": "loading", "bytes_done": step[0], "bytes_total": step[1]})
        yield line({"status": "loaded", "model": await _entry_of(models, plan)})
    except Exception as error:
        if not begun:
            raise
        yield line({"status": "failed", **openai_reply.error_body(failure(error))})
