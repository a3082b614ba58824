"""The server's routes."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.routing import Route

from galago.errors import UnsupportedTask
from galago.fleet.default_model import choose
from galago.fleet.pool import ModelPool
from galago.server import errors, guard, info, manage, moondream, moondream_reply, openai_reply
from galago.server.guard.origins import is_loopback
from galago.server.guard.stopping import InFlight
from galago.server.models import Models
from galago.server.openai import read_chat
from galago.server.request_target import normalise_target
from galago.server.running import Host, ran, streamed, waited
from galago.server.settings import Settings
from galago.version import VERSION

log = logging.getLogger(__name__)


def create_app(pool: ModelPool, settings: Settings = Settings(), in_flight: InFlight | None = None) -> FastAPI:
    """An app that serves the models of a pool, and closes it when it shuts down.

    Those of the settings are loaded when it starts up, and answered for with 503 meanwhile; `app.state.opened`
    is a Future that is done then. Where the settings name none, one is chosen; the log and GET /health tell why it is
    that one. The first is the default: clients ask for models that they know from elsewhere, so any name that is none
    here means that one, and the reply tells which it was;
    `strict_model_names` refuses such names. `in_flight` is what a server shares with the app to stop it.
    """
    models, why = _models(pool, settings)
    host = Host(models, InFlight() if in_flight is None else in_flight, settings, why)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Not one of the pool of threads, for whose end the process would wait.
        threading.Thread(target=models.open, name="galago-open", daemon=True).start()
        yield
        # Side by side: neither an engine in a long step nor a load is to hold up the other.
        await asyncio.gather(waited(pool.close), waited(models.end_loads))

    app = FastAPI(title="Galago", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.state.models, app.state.opened = models, models.opened
    reply = errors.install(app, openai_reply.error_body, dict.fromkeys(moondream.PATHS, moondream_reply.error_body))
    # Without a key nobody but this machine's own programs and pages may use a server that listens to it alone.
    alone = not settings.api_keys and (settings.host == "localhost" or is_loopback(settings.host))
    guard.install(
        app,
        reply,
        host.in_flight,
        keys=settings.api_keys,
        origins=settings.cors_origins,
        hosts=(settings.host,) if alone else None,
        log_content=settings.log_content,
    )
    app.add_middleware(normalise_target)
    _openai_routes(app, host)
    _moondream_routes(app, host)
    manage.add_routes(app, host)
    info.add_routes(app, host)
    _answer_head(app)
    return app


def _models(pool: ModelPool, settings: Settings) -> tuple[Models, str | None]:
    """The models of the settings; or where those name none one that is chosen, and why it is that one."""
    names, why = settings.model, None
    if names is None:
        chosen = choose(pool.budget, choice=pool.choice)
        names, why = (chosen.name,), chosen.why
        log.warning("%s", why)
    return Models(pool, names, settings.strict_model_names), why


def _answer_head(app: FastAPI) -> None:
    """Monitors ask for the head alone of what they could GET; the body is left out by who sends it."""
    for route in app.routes:
        if isinstance(route, Route) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _openai_routes(app: FastAPI, host: Host) -> None:
    # The newest of Moondream's clients use it too, with an endpoint that may lack the /v1.
    @app.post("/chat/completions")
    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        arrived = time.perf_counter()
        answer = await host.answer(http, read_chat)
        facts, asked = answer.facts, answer.asked
        fingerprint = f"{facts.revision}-{facts.precision}-galago{VERSION}"
        head = openai_reply.Head(facts.name, fingerprint, arrived, host.settings.assistant_compat)
        if asked.stream:
            return await streamed(openai_reply.chunks(head, asked, answer.events), ran(facts))
        whole = openai_reply.completion(head, asked, [event async for event in answer.events])
        return JSONResponse(whole, headers=ran(facts))

    # Until a model here makes any; clients of documents try it, and are not to look for another address.
    @app.post("/embeddings")
    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        raise UnsupportedTask("no model of this server makes embeddings")


def _moondream_routes(app: FastAPI, host: Host) -> None:
    def add(path: str, reader: moondream.Reader) -> None:
        @app.post(path)
        async def skill(http: Request) -> Response:
            answer = await host.answer(http, reader)
            asked, headers = answer.asked, ran(answer.facts)
            events = (event async for _, event in answer.events)
            if asked.stream:
                return await streamed(moondream_reply.chunks(events), headers)
            return JSONResponse(moondream_reply.reply(asked.request.skill, [e async for e in events]), headers=headers)

    for path, reader in moondream.PATHS.items():
        add(path, reader)
