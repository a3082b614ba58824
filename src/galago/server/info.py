"""Routes about the server itself: health, statistics, metrics, and HTML pages."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from galago.backends.backend import Facts
from galago.engine.decoding import CLIPS, DECODING
from galago.engine.metrics import CONTENT_TYPE, exposition
from galago.errors import InvalidRequest, quoted
from galago.jobs.metrics import QueueWatch, queue_exposition, queue_json
from galago.server import meme_search
from galago.server.bodies import Json, load_json, validate
from galago.server.fields import Fields, Text
from galago.server.models import Models, id_of
from galago.server.openapi import document
from galago.server.pages import app_file, docs_page, html_response, picture_response, start_page, style
from galago.server.request_target import PAGE_FILES
from galago.server.serving import RequestStats, ServerContext, run_blocking
from galago.server.settings import MAX_TIMEOUT
from galago.server.shown import MediaRef
from galago.system.device import device_of, memory_in_use
from galago.version import VERSION

if TYPE_CHECKING:
    from galago.jobs.store import JobStore


class FetchBody(Fields):
    """What the page asks for, since it may load nothing from elsewhere itself."""

    url: Text


def add_routes(app: FastAPI, context: ServerContext, store: "JobStore | None" = None) -> None:
    models, queue = context.models, QueueWatch(store) if store else None

    @app.get("/health")
    @app.get("/readyz")
    async def health() -> Response:
        identity = {"server": "galago", "model": id_of(models.default), "version": VERSION}
        if context.choice_reason:
            identity["model_choice"] = context.choice_reason
        if not models.startup.done():
            return JSONResponse({"status": "loading", **identity}, 503, {"Retry-After": "5"})
        if error := models.startup.exception():
            return JSONResponse({"status": "failed", **identity, "error": str(error)}, 503, {"Retry-After": "5"})
        if context.in_flight.stopping:
            return JSONResponse({"status": "stopping", **identity}, 503, {"Retry-After": "5"})
        if error := models.current_error():
            return JSONResponse({"status": "failed", **identity, "error": str(error)}, 503, {"Retry-After": "5"})
        facts = models.facts(models.default)
        assert facts is not None
        return JSONResponse(
            {
                "status": "healthy",
                **identity,
                **_facts_json(facts),
                "memory": {
                    **_memory(facts.device),
                    "budget_bytes": models.pool.budget,
                    "free_bytes": models.free_bytes(),
                },
                "performance": context.stats.report(),
                "models": await run_blocking(partial(describe_loaded, models)),
                **({"queue": queue_json(await queue.read())} if queue else {}),
                **({"meme_search": meme_search.models_behind(models)} if context.settings.meme_search else {}),
                "routes": {route.name: [asdict(way) for way in route.ways] for route in models.routes},
            }
        )

    @app.get("/v1/stats")
    async def stats() -> Response:
        by_model, timeout = await run_blocking(models.stats), context.settings.timeout
        return JSONResponse(_station_stats(id_of(models.default), by_model, context.stats, timeout))

    @app.get("/stats")
    async def statistics() -> Response:
        # The members of the AI Manual Assistant's Moondream2 server; its times are numbers here, unlike in /health.
        stats, facts = context.stats, models.facts(models.default)
        counted = {**stats.report(), "total_time": stats.seconds, "avg_time": stats.average_s}
        flags = {
            "mps_acceleration": facts is not None and facts.device.startswith("mps"),
            "image_caching": True,
            "response_caching": False,
            "memory_management": True,
        }
        return JSONResponse({"model": id_of(models.default), "statistics": counted, "optimizations": flags})

    @app.get("/metrics")
    async def metrics() -> Response:
        of_queue = queue_exposition(await queue.read()) if queue else b""
        return Response(await run_blocking(exposition) + of_queue, media_type=CONTENT_TYPE)

    @app.get("/")
    async def root(http: Request) -> Response:
        ready, name = models.startup.done() and not models.startup.exception(), id_of(models.default)
        status = "running" if ready else "not loaded"
        headers = {"Vary": "Accept"}
        if "text/html" not in http.headers.get("accept", ""):
            if context.settings.meme_search:
                return JSONResponse(meme_search.ROOT, 200, headers)
            message = "Galago is running; clients of OpenAI's and Moondream's API use /v1 as their base URL."
            return JSONResponse({"message": message, "version": VERSION, "status": status, "model": name}, 200, headers)
        response = start_page()
        response.headers.update(headers)
        return response

    @app.get(f"{PAGE_FILES}{{name}}")
    async def page_file(name: str) -> Response:
        return app_file(name)

    @app.post(f"{PAGE_FILES}fetch")
    async def fetch_picture(http: Request) -> Response:
        # No other site may have a visitor's browser send this type.
        if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise InvalidRequest("the request must have the header Content-Type: application/json")
        body = await context.parse_body(http, lambda raw: validate(FetchBody, load_json(raw)))
        data = await context.fetch(MediaRef(body.url, "url"))
        if data is None:
            raise InvalidRequest(f"url must be an http:// or https:// URL, not {quoted(body.url)}", "url")
        return picture_response(data)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document(VERSION))

    @app.get("/docs")
    async def docs() -> Response:
        return html_response(await run_blocking(lambda: docs_page(document(VERSION))))

    @app.get("/style.css")
    async def stylesheet() -> Response:
        return Response(style(), media_type="text/css")


def _station_stats(model: str, found: Mapping[str, Json], stats: RequestStats, timeout: float | None) -> Json:
    """How the server stands, with the members that Moondream Station has; `found` is Model.stats() by model.

    Queues are those of all models in memory together; `models` has each. Station always has a limit of time; where
    there is none here, it is the longest that a request may name.
    """
    return {
        "workers": 1,
        "queue_size": sum(one["queue"]["waiting"] for one in found.values()),
        "max_queue_size": sum(one["limits"]["waiting"] for one in found.values()),
        "processing": sum(one["queue"]["running"] for one in found.values()),
        "timeouts": stats.timeouts,
        "default_timeout": MAX_TIMEOUT if timeout is None else timeout,
        "model": model,
        "status": "running",
        "requests_processed": stats.requests,
        "models": found,
    }


def describe_loaded(models: Models) -> list[Json]:
    """The models in memory: device, precision and kernels of each, and its memory, measured and reserved."""
    memory_by_model = models.memory()
    return [
        {
            "name": facts.name,
            **_facts_json(facts),
            "memory": {**memory_by_model.get(facts.name, {}), "set_aside_bytes": entry.bytes},
            "in_use": entry.in_use,
            **({"error": str(entry.ended)} if entry.ended else {}),
        }
        for facts, entry in models.loaded()
    ]


def _facts_json(facts: Facts) -> Json:
    return {
        name: getattr(facts, name) for name in ("device", "precision", "revision", "commit", "kernels", "fallbacks")
    }


def _memory(device: str) -> Json:
    """Memory of the process (on an accelerator, of its memory there), and what decoded images and clips take of it."""
    used = memory_in_use(device_of(device))
    rooms = {"pictures": DECODING, "clips": CLIPS}
    decoding = {name: {"used_bytes": room.taken, "allowed_bytes": room.most} for name, room in rooms.items()}
    return {"used_bytes": used.used, "peak_bytes": used.peak, "of": used.of, "decoding": decoding}
