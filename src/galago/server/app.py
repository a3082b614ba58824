"""The ASGI app: its models, middleware and routes."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.routing import Route

from galago.errors import UnsupportedTask
from galago.fleet.pool import ModelPool
from galago.server import dialect, errors, info, job_events, job_work, jobs, manage, meme_search, ollama_models
from galago.server.dialects import DIALECTS, OLLAMA, OPENAI
from galago.server.guard.gate import GateMiddleware, is_loopback
from galago.server.guard.record import RecordMiddleware
from galago.server.guard.stopping import InFlight
from galago.server.models import configured_models
from galago.server.serving import ServerContext, run_blocking
from galago.server.settings import ServerSettings
from galago.server.streaming import Silence

log = logging.getLogger(__name__)


def create_app(
    pool: ModelPool,
    settings: ServerSettings = ServerSettings(),
    in_flight: InFlight | None = None,
    silence: Silence = Silence(),
) -> FastAPI:
    """An app that serves the models of a pool, and closes the pool at its shutdown.

    The models of the settings are loaded at startup; until then requests get 503, and `app.state.startup` is a Future
    of it. Where the settings name none, one is chosen; the log and GET /health say why. The first model is the default:
    clients ask for models that they know from elsewhere, so any unknown name means that one, and the reply says which
    it was; `strict_model_names` refuses such names. Through `in_flight` a server stops the app's requests.
    """
    models, why = configured_models(pool, settings)
    store = job_work.open_jobs(settings) if settings.keeps_jobs else None
    context = ServerContext(models, InFlight() if in_flight is None else in_flight, settings, why, silence)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Not one of the pool of threads, for whose end the process would wait.
        threading.Thread(target=models.load_configured, name="galago-open", daemon=True).start()
        async with job_work.working(context, store) if store else nullcontext():
            yield
        if store:
            await run_blocking(store.close)
        # Past the deadline of a stop this is cancelled, and what is left ends with the process.
        with suppress(asyncio.CancelledError):
            # At the same time, so that neither an engine in a long step nor a load delays the other.
            await asyncio.gather(run_blocking(pool.close), run_blocking(models.cancel_loads))

    app = FastAPI(title="Galago", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    app.state.models, app.state.startup = models, models.startup
    formats = {path: one.error_body for one in DIALECTS for route in one.routes for path in route.paths}
    formats |= {"/api/": OLLAMA.error_body, jobs.PATH: jobs.error_body, job_events.PATH: jobs.error_body}
    unknown = OPENAI.error_body
    if settings.meme_search:
        formats |= dict.fromkeys(meme_search.PATHS, meme_search.error_body)
        unknown = meme_search.error_bodies
    reply = errors.install(app, unknown, formats)
    # Without a key nobody but this machine's own programs and pages may use a server that listens to it alone.
    alone = not settings.api_keys and (settings.host == "localhost" or is_loopback(settings.host))
    # The last is the outermost: what the gate refuses has its id and its line in the log.
    app.add_middleware(
        GateMiddleware,
        in_flight=context.in_flight,
        reply=reply,
        keys=settings.api_keys or None,
        origins=settings.cors_origins,
        hosts=(settings.host,) if alone else None,
    )
    app.add_middleware(RecordMiddleware, in_flight=context.in_flight, reply=reply, log_content=settings.log_content)
    _dialect_routes(app, context)
    ollama_models.add_routes(app, context)
    manage.add_routes(app, context)
    job_events.add_routes(app, context, store)  # before the ids of jobs
    jobs.add_routes(app, context, store)
    if settings.meme_search and store:
        meme_search.add_routes(app, context, store)
    info.add_routes(app, context, store)
    _answer_head(app)
    return app


def _answer_head(app: FastAPI) -> None:
    """Let every GET route answer HEAD too, as monitors send it; uvicorn leaves the body out."""
    for route in app.routes:
        if isinstance(route, Route) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")


def _dialect_routes(app: FastAPI, context: ServerContext) -> None:
    def add(route: dialect.Route) -> None:
        async def answer(http: Request) -> Response:
            return await context.answer(http, route)

        for path in route.paths:
            app.post(path)(answer)

    for one in DIALECTS:
        for route in one.routes:
            add(route)

    # Until a model here makes any; clients of documents try it, and are not to look for another address.
    @app.post("/embeddings")
    @app.post("/v1/embeddings")
    async def embeddings() -> Response:
        raise UnsupportedTask("no model of this server makes embeddings")
