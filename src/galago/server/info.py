"""What the server says of itself: health, counts, metrics, and a screen for people."""

from dataclasses import asdict
from functools import partial

import torch
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from galago.backends.backend import Facts
from galago.engine.decoding import CLIPS, DECODING
from galago.engine.metrics import CONTENT_TYPE, exposition
from galago.server import moondream_reply
from galago.server.bodies import Json
from galago.server.models import Models, id_of
from galago.server.openapi import document
from galago.server.pages import docs_page, start_page, style
from galago.server.running import Host, waited
from galago.system.device import memory_in_use, pick_device
from galago.version import VERSION


def add_routes(app: FastAPI, host: Host) -> None:
    models = host.models

    @app.get("/health")
    async def health() -> Response:
        said = {"server": "galago", "model": id_of(models.default), "version": VERSION}
        if host.why:
            said["model_choice"] = host.why
        if not models.opened.done():
            return JSONResponse({"status": "loading", **said}, 503, {"Retry-After": "5"})
        if error := models.opened.exception():
            return JSONResponse({"status": "failed", **said, "error": str(error)}, 503, {"Retry-After": "5"})
        if host.in_flight.stopping:
            return JSONResponse({"status": "stopping", **said}, 503, {"Retry-After": "5"})
        if error := models.trouble():
            return JSONResponse({"status": "failed", **said, "error": str(error)}, 503, {"Retry-After": "5"})
        facts = models.facts(models.default)
        assert facts is not None
        return JSONResponse(
            {
                "status": "healthy",
                **said,
                **_told(facts),
                "memory": _memory(facts.device),
                "performance": host.served.report(),
                "models": await waited(partial(loaded_models, models)),
                "routes": {plan.name: [asdict(lane) for lane in plan.lanes] for plan in models.routes},
            }
        )

    @app.get("/v1/stats")
    async def stats() -> Response:
        found = await waited(models.stats)
        return JSONResponse(moondream_reply.stats(id_of(models.default), found, host.served, host.settings.timeout))

    @app.get("/stats")
    async def statistics() -> Response:
        # The members of the AI Manual Assistant's Moondream2 server; its times are numbers here, unlike in /health.
        served, facts = host.served, models.facts(models.default)
        counted = {**served.report(), "total_time": served.seconds, "avg_time": served.average}
        used = {
            "mps_acceleration": facts is not None and facts.device.startswith("mps"),
            "image_caching": True,
            "response_caching": False,
            "memory_management": True,
        }
        return JSONResponse({"model": id_of(models.default), "statistics": counted, "optimizations": used})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await waited(exposition), media_type=CONTENT_TYPE)

    @app.get("/")
    async def root(http: Request) -> Response:
        ready, name = models.opened.done() and not models.opened.exception(), id_of(models.default)
        status = "running" if ready else "not loaded"
        headers = {"Vary": "Accept"}
        if "text/html" not in http.headers.get("accept", ""):
            message = "Galago is running; clients of OpenAI's and Moondream's API use /v1 as their base URL."
            return JSONResponse({"message": message, "version": VERSION, "status": status, "model": name}, 200, headers)
        rows = await waited(models.rows)
        used = _memory(str(pick_device(models.pool.choice.get("device"))))
        held = await waited(models.memory)
        address = str(http.base_url).rstrip("/")
        page = partial(start_page, address, VERSION, status, rows, models.pool.budget, used, held, host.served)
        return HTMLResponse(await waited(page), 200, headers)

    @app.get("/openapi.json")
    async def openapi() -> Response:
        return JSONResponse(document(VERSION))

    @app.get("/docs")
    async def docs() -> Response:
        return HTMLResponse(await waited(lambda: docs_page(document(VERSION))))

    @app.get("/style.css")
    async def stylesheet() -> Response:
        return Response(style(), media_type="text/css")


def loaded_models(models: Models) -> list[Json]:
    """The models in memory, each with what computes it and what it takes: measured, and what is set aside for it."""
    held = models.memory()
    return [
        {
            "name": facts.name,
            **_told(facts),
            "memory": {**held.get(facts.name, {}), "set_aside_bytes": row.bytes},
            "in_use": row.in_use,
            **({"error": str(row.ended)} if row.ended else {}),
        }
        for facts, row in models.loaded()
    ]


def _told(facts: Facts) -> Json:
    return {
        name: getattr(facts, name) for name in ("device", "precision", "revision", "commit", "kernels", "fallbacks")
    }


def _memory(device: str) -> Json:
    """Of the process, or on an accelerator of its memory there; and what decoded pictures take of it."""
    used = memory_in_use(torch.device(device))
    budgets = {"pictures": DECODING, "clips": CLIPS}
    decoding = {name: {"used_bytes": budget.taken, "allowed_bytes": budget.most} for name, budget in budgets.items()}
    return {"used_bytes": used.used, "peak_bytes": used.peak, "of": used.of, "decoding": decoding}
