"""The server's routes."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from galago.engine.metrics import CONTENT_TYPE, exposition
from galago.nn.device import memory
from galago.request import Done, Event
from galago.server import errors, openai_reply
from galago.server.openai import read_chat
from galago.server.running import events_of, read_body, waited

if TYPE_CHECKING:
    from galago.model import Model

BODY_LIMIT = 32 << 20
try:
    VERSION = version("galago")
except PackageNotFoundError:  # run from a source tree that is not installed
    VERSION = "0+source"


@dataclass
class Served:
    """What has been answered since the start."""

    requests: int = 0
    seconds: float = 0.0
    cache_hits: int = 0

    async def counted(self, events: AsyncIterator[Event]) -> AsyncIterator[Event]:
        """The same events, with the run added up when it is done."""
        async for event in events:
            if isinstance(event, Done):
                self.requests += 1
                self.seconds += event.timings.total_s
                self.cache_hits += event.usage.cached_tokens > 0
            yield event

    def report(self) -> dict[str, Any]:
        average = self.seconds / max(self.requests, 1)
        return {"requests": self.requests, "avg_time": f"{average:.2f}s", "cache_hits": self.cache_hits}


def create_app(model: "Model", body_limit: int = BODY_LIMIT, strict_names: bool = False) -> FastAPI:
    """An app that serves one model and closes it when it shuts down. `body_limit` is in bytes.

    Clients ask for models that they know from elsewhere, so any name means the one that is served,
    and the reply tells which it was; with `strict_names` another name is refused.
    """
    served = Served()
    # A decoded photo takes up to 200 MB, so no more of them than can be worked on at once.
    decoding = anyio.CapacityLimiter(os.cpu_count() or 1)
    entry = {"id": model.name, "object": "model", "created": int(time.time()), "owned_by": "galago"}
    fingerprint = f"{model.revision}-{model.precision}-galago{VERSION}"

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await waited(model.close)

    def known(name: str | None) -> None:
        if name not in (None, model.name):
            raise errors.Refused("model_not_found", f"no model {name!r} here; there is {model.name!r}", "model")

    app = FastAPI(title="Galago", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    errors.install(app)

    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        head = openai_reply.Head(model.name, fingerprint, time.perf_counter())
        body = await read_body(http, body_limit)
        asked = await anyio.to_thread.run_sync(read_chat, body, limiter=decoding)
        if strict_names:
            known(asked.model)
        run = await waited(partial(model.submit, asked.request))
        events = served.counted(events_of(http, run))
        if not asked.stream:
            return JSONResponse(openai_reply.completion(head, [event async for event in events]))
        lines = openai_reply.chunks(head, events, asked.include_usage)
        # The status line is sent after this: until the first event the request can still fail properly.
        first = await anext(lines)
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        return StreamingResponse(_chain(first, lines), headers=headers)

    @app.get("/v1/models")
    async def models() -> Response:
        described = {"id": model.name, "name": model.name, "description": "", "version": model.revision}
        return JSONResponse({"object": "list", "data": [entry], "models": [described]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        known(name)
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
                "performance": served.report(),
            }
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await waited(exposition), media_type=CONTENT_TYPE)

    @app.get("/")
    async def root() -> Response:
        message = "Galago is running; clients of OpenAI's API use /v1 as their base URL."
        return JSONResponse({"message": message, "version": VERSION, "status": "running", "model": model.name})

    return app


async def _chain(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for line in rest:
        yield line
