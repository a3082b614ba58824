"""The server's routes."""

import re
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from galago.engine.metrics import CONTENT_TYPE, exposition
from galago.nn.device import memory
from galago.server import errors, moondream, moondream_reply, openai_reply
from galago.server.openai import choices, read_chat
from galago.server.running import Host, streamed, waited

if TYPE_CHECKING:
    from galago.model import Model

BODY_LIMIT = 32 << 20
try:
    VERSION = version("galago")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+source"


def create_app(
    model: "Model",
    body_limit: int = BODY_LIMIT,
    strict_names: bool = False,
    remote_images: bool = True,
    allow_hosts: Collection[str] = (),
) -> FastAPI:
    """An app that serves one model and closes it when it shuts down. `body_limit` is in bytes.

    Clients ask for models that they know from elsewhere, so any name means the one that is served,
    and the reply tells which it was; with `strict_names` another name is refused.

    Images are fetched by URL from public addresses, and from hosts named in `allow_hosts` wherever they are;
    without `remote_images` from nowhere.
    """
    host = Host(model, body_limit, strict_names, remote_images, frozenset(map(str.lower, allow_hosts)))
    entry = {"id": model.name, "object": "model", "created": int(time.time()), "owned_by": "galago"}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await waited(model.close)

    app = FastAPI(title="Galago", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.add_middleware(_single_slashes)
    errors.install(app, openai_reply.error_body, dict.fromkeys(moondream.PATHS, moondream_reply.error_body))
    _openai_routes(app, host, f"{model.revision}-{model.precision}-galago{VERSION}")
    _moondream_routes(app, host)

    @app.get("/v1/models")
    async def models() -> Response:
        described = {"id": model.name, "name": model.name, "description": "", "version": model.revision}
        return JSONResponse({"object": "list", "data": [entry], "models": [described]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        host.known(name)
        return JSONResponse(entry)

    @app.get("/health")
    async def health() -> Response:
        used = memory(torch.device(model.device))
        return JSONResponse(
            {
                "status": "healthy",
                "server": "galago",
                "model": model.name,
                "version": VERSION,
                "device": model.device,
                "precision": model.precision,
                "revision": model.revision,
                "kernels": model.kernels,
                "fallbacks": model.fallbacks,
                "memory": {"used_bytes": used.used, "peak_bytes": used.peak},
                "performance": host.served.report(),
            }
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await waited(exposition), media_type=CONTENT_TYPE)

    @app.get("/")
    async def root() -> Response:
        message = "Galago is running; clients of OpenAI's and Moondream's API use /v1 as their base URL."
        return JSONResponse({"message": message, "version": VERSION, "status": "running", "model": model.name})

    return app


def _openai_routes(app: FastAPI, host: Host, fingerprint: str) -> None:
    # The newest of Moondream's clients use it too, with an endpoint that may lack the /v1.
    @app.post("/chat/completions")
    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        head = openai_reply.Head(host.model.name, fingerprint, time.perf_counter())
        asked = await host.read(http, read_chat)
        events = await host.run_all(http, choices(asked), asked.model)
        if asked.stream:
            return await streamed(openai_reply.chunks(head, asked, events))
        return JSONResponse(openai_reply.completion(head, asked, [event async for event in events]))


def _moondream_routes(app: FastAPI, host: Host) -> None:
    def add(path: str, reader: moondream.Reader) -> None:
        @app.post(path)
        async def skill(http: Request) -> Response:
            asked = await host.read(http, reader)
            events = await host.run(http, asked.request, asked.model)
            if asked.stream:
                return await streamed(moondream_reply.chunks(events))
            return JSONResponse(moondream_reply.reply(asked.request.skill, [event async for event in events]))

    for path, reader in moondream.PATHS.items():
        add(path, reader)

    @app.get("/v1/stats")
    async def stats() -> Response:
        found = await waited(host.model.stats)
        return JSONResponse(moondream_reply.stats(found, host.served))


def _single_slashes(app: ASGIApp) -> ASGIApp:
    """Moondream's client puts a slash behind an address that may end in one."""

    async def collapsed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = re.sub("/{2,}", "/", scope["path"])
        await app(scope, receive, send)

    return collapsed
