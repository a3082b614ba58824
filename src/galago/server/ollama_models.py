"""Ollama's API for models: which there are, which are in memory, and downloading those of the catalogue."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AliasChoices, Field
from typing_extensions import TypedDict

from galago.backends.memory_estimate import model_entry
from galago.errors import UnsupportedTask
from galago.server.bodies import Json, load_json, validate
from galago.server.errors import Failure, Refused, to_failure
from galago.server.fields import Fields, Name
from galago.server.manage import run_with_progress
from galago.server.models import Models, id_of
from galago.server.serving import ServerContext, run_blocking
from galago.server.streaming import Framing, stream_response
from galago.store.catalog import entry_of
from galago.store.hub import fetch, files_of

VERSION = "0.11.0"
"""Of Ollama, whose clients ask for features by it."""
NDJSON = "application/x-ndjson"
FORMATS = {"llama_server": "gguf", "onnx": "onnx"}
"""Of a model's files, by the backend that runs them; those of all others are safetensors."""
FOR_EVER = timedelta(days=365 * 290)
NOT_THERE = "pull model manifest: file does not exist; `galago models` lists what can be pulled"
UNSUPPORTED = {
    "/api/embed": "no model of this server makes embeddings",
    "/api/embeddings": "no model of this server makes embeddings",
    "/api/create": "models are not made here",
    "/api/copy": "models have the names of the catalogue here",
    "/api/push": "models are not published from here",
    "/api/delete": "models are removed on the server's machine: galago models remove NAME",
}


class PullBody(Fields):
    """The body of /api/pull and /api/show."""

    model: Name = Field(validation_alias=AliasChoices("model", "name"))
    stream: bool | None = None


class OllamaError(TypedDict):
    """The error as a text, which Ollama's clients show."""

    error: str


def error_body(failed: Failure) -> Json:
    """The error as a text, which Ollama's clients show; it tells the field at fault too."""
    message, param = failed.message, failed.param or ""
    if "." in param and param not in message:
        message = f"{param}: {message}"
    return {"error": message}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def line(value: Json) -> str:
    """A record of a stream."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"


def plain_name(name: str) -> str:
    """A model's name as the others of this server have it: vl:latest is vl, and moondream2:int8 is moondream2-int8."""
    return re.sub(r":latest$", "", name.strip(), flags=re.IGNORECASE).replace(":", "-")


def served_key(models: Models, name: str) -> str:
    """The key of a model that is served. Raises Refused, as there is no default for Ollama's clients."""
    found = models.match(plain_name(name))
    if found is None:
        raise Refused("model_not_found", f"model '{name[:100]}' not found", "model")
    return models.route_of(found).models[0]


def size_in_words(parameters: int) -> str:
    return f"{parameters / 1e9:.1f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def describe(models: Models, key: str) -> Json:
    """A model as the lists have it, and what /api/show tells of it besides. Reads files."""
    entry, precision = model_entry(key), models.status(key).precision or ""
    files = files_of(entry) or ()
    return {
        "name": f"{id_of(key)}:latest",
        "model": f"{id_of(key)}:latest",
        "modified_at": datetime.fromtimestamp(models.started_at, UTC).isoformat(),
        "size": sum(file.stat().st_size for file in files),
        "digest": hashlib.sha256(repr((id_of(key), precision, entry.commit or entry.revision)).encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": FORMATS.get(entry.backend, "safetensors"),
            "family": entry.family,
            # By which many programs tell that a model sees.
            "families": [entry.family, "clip"],
            "parameter_size": size_in_words(entry.parameters),
            "quantization_level": precision.upper(),
        },
        "capabilities": ["completion", "vision"],
    }


def show(models: Models, key: str) -> Json:
    """What /api/show answers."""
    entry, told = model_entry(key), describe(models, key)
    arch = entry.family or entry.backend
    info = {"general.architecture": arch, "general.basename": id_of(key), "general.parameter_count": entry.parameters}
    return {
        "license": entry.license,
        "modelfile": f"# {entry.description or id_of(key)}\nFROM {id_of(key)}",
        "parameters": "",
        "template": "{{ .Prompt }}",
        "details": told["details"],
        "model_info": info | {f"{arch}.context_length": entry.context},
        "projector_info": {"clip.has_vision_encoder": True},
        "capabilities": told["capabilities"],
        "modified_at": told["modified_at"],
    }


def in_memory(models: Models) -> list[Json]:
    """What /api/ps answers. Reads files."""
    found = []
    for facts, held in models.loaded():
        known = describe(models, held.name)
        left = FOR_EVER if held.expires_in_s is None else timedelta(seconds=held.expires_in_s)
        on_device = 0 if facts.device == "cpu" else held.bytes
        sizes = {"size": held.bytes, "size_vram": on_device, "context_length": model_entry(held.name).context}
        told = {name: known[name] for name in ("name", "model", "digest", "details")}
        found.append(told | sizes | {"expires_at": (datetime.now(UTC) + left).isoformat()})
    return found


def add_routes(app: FastAPI, context: ServerContext) -> None:
    models = context.models

    @app.get("/api/version")
    async def version() -> Response:
        return JSONResponse({"version": VERSION})

    @app.get("/api/tags")
    async def tags() -> Response:
        keys = dict.fromkeys(key for name in models.served_names() for key in models.route_of(name).models)
        return JSONResponse({"models": await run_blocking(lambda: [describe(models, key) for key in keys])})

    @app.get("/api/ps")
    async def ps() -> Response:
        return JSONResponse({"models": await run_blocking(lambda: in_memory(models))})

    @app.post("/api/show")
    async def show_model(http: Request) -> Response:
        body = await context.parse_body(http, _read)
        return JSONResponse(await run_blocking(lambda: show(models, served_key(models, body.model))))

    @app.post("/api/pull")
    async def pull(http: Request) -> Response:
        body = await context.parse_body(http, _read)
        lines = _pull(body.model)
        if body.stream is not False:
            return await stream_response(lines, _PullFraming())
        if entry_of(plain_name(body.model)) is None:
            raise Refused("model_not_found", NOT_THERE, "model")
        *_, last = [json.loads(one) async for one in lines]
        return JSONResponse(last, 200 if "status" in last else 500)

    def refuse(path: str, why: str) -> None:
        @app.api_route(path, methods=["DELETE"] if path == "/api/delete" else ["POST"])
        async def unsupported() -> Response:
            raise UnsupportedTask(why)

    for path, why in UNSUPPORTED.items():
        refuse(path, why)


def _read(raw: bytes) -> PullBody:
    return validate(PullBody, load_json(raw))


class _PullFraming(Framing):
    content_type = NDJSON

    def keep_alive(self) -> str:
        return line({"status": "pulling manifest"})


async def _pull(name: str) -> AsyncIterator[str]:
    """The download of a model of the catalogue, a record each time that another hundredth is there."""
    yield line({"status": "pulling manifest"})
    entry = entry_of(plain_name(name))
    if entry is None:
        yield line({"error": NOT_THERE})
        return
    digest = hashlib.sha256(entry.id.encode()).hexdigest()
    try:
        async for step in run_with_progress(partial(fetch, entry)):
            counts = {"total": step[1], "completed": step[0]} if step else {}
            yield line({"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", **counts})
        size = sum(file.stat().st_size for file in files_of(entry) or ())
        yield line({"status": f"pulling {digest[:12]}", "digest": f"sha256:{digest}", "total": size, "completed": size})
        for status in ("verifying sha256 digest", "writing manifest", "success"):
            yield line({"status": status})
    except Exception as error:
        yield line(error_body(to_failure(error)))
