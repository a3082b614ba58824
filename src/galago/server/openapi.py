"""The OpenAPI document: every route, what it takes and everything that it answers."""

from functools import partial
from typing import Any

from pydantic.json_schema import models_json_schema

from galago.server import ollama, ollama_models
from galago.server.bodies import Json
from galago.server.request_target import HEALTH_PATHS
from galago.server.responses import ResponsesBody
from galago.server.schema_parts import COUNT, FLAG, TEXT, record, ref
from galago.server.schemas import schemas

WHY = {
    400: "The body is no JSON, a field is missing or wrong, or the image cannot be read.",
    401: "The server wants a key, as Authorization: Bearer or X-Moondream-Auth.",
    403: "A page of this origin may not use the server.",
    404: "There is no such model here; names are strict.",
    408: "The request came too slowly.",
    409: "The model is in use.",
    413: "The body is too large.",
    415: "The body is compressed in a way that is not unpacked here.",
    421: "The server has no such name.",
    429: "The queue is full.",
    431: "The head of the request is too large.",
    500: "Something broke; the log of the server tells what.",
    501: "The model cannot do this.",
    503: "The model is being loaded or does not fit in memory, or the server is shutting down.",
    504: "The time limit ran out.",
}
RETRY: Json = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}, "required": True}}
RAN: Json = {"X-Galago-Model": {"description": "the model that answered", "schema": TEXT, "required": True}}
EVENTS: Json = {
    "text/event-stream": {
        "schema": {"type": "object", "properties": {"data": TEXT}, "description": "each event; its data is JSON"}
    }
}
ASKED = (400, 404, 413, 415, 429, 500, 501, 503, 504)
PREFIXES = (("/v1", ""), ("", "_unprefixed"))
"""of paths, and what the names of their operations end in"""
# What each skill takes, gives, and is.
SKILLS = {
    "caption": ("CaptionRequest", "Caption", "Describe an image", True),
    "query": ("QueryRequest", "Answer", "Answer a question, about an image or without one", True),
    "detect": ("DetectRequest", "Objects", "Find objects: their bounding boxes", False),
    "point": ("PointRequest", "Points", "Point at objects: one point in each", False),
    "detect_gaze": ("DetectGazeRequest", "Gaze", "Tell where a person looks", False),
    "segment": ("SegmentRequest", None, "Outline an object: not offered by any model yet", False),
}


def document(version: str) -> Json:
    """The document of the server of this version."""
    about = "Compact vision-language models behind the APIs of OpenAI, Moondream and Ollama."
    paths = {**_chat(), **_skills(), **_ollama(), **_models(), **_info()}
    for path, operations in paths.items():
        for operation in operations.values():
            shape = {"Moondream": "MoondreamError", "Ollama": "OllamaError"}.get(operation["tags"][0], "Error")
            guarded = (421,) if path in HEALTH_PATHS else (401, 403, 421, 503)
            # With these a connection is closed before it is known which dialect its client speaks.
            early = _errors((408, 431))
            operation["responses"] = {**_errors(guarded, shape), **early, **operation["responses"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Galago", "version": version, "description": about, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": schemas() | _declared_schemas()},
    }


def _reply(description: str, content: Json, headers: Json | None = None) -> Json:
    return {"description": description, "content": content} | ({"headers": headers} if headers else {})


def _json(name: str) -> Json:
    return {"application/json": {"schema": ref(name)}}


def _errors(statuses: tuple[int, ...], shape: str = "Error", **why: str) -> Json:
    retried = (429, 503)
    return {
        str(status): _reply(why.get(f"on_{status}", WHY[status]), _json(shape), RETRY if status in retried else None)
        for status in statuses
    }


def _operation(name: str, tag: str, summary: str, replies: Json, takes: str | None = None, **more: Any) -> Json:
    body = {"requestBody": {"required": True, "content": _json(takes)}} if takes else {}
    return {"operationId": name, "tags": [tag], "summary": summary, **more, **body, "responses": replies}


def _chat() -> Json:
    content = _json("ChatCompletion") | EVENTS
    told = (
        "As events (stream): chat.completion.chunk objects, then `data: [DONE]`. An `error` object in their place is a "
        "failure that came after the first of them."
    )
    replies = {"200": _reply("The answer, in one piece or as events.", content, RAN), **_errors(ASKED)}

    def chat(name: str) -> Json:
        summary = "Answer a conversation, about an image or without one"
        return {"post": _operation(name, "OpenAI", summary, replies, "ChatRequest", description=told)}

    def embeddings(name: str) -> Json:
        return {"post": _operation(name, "OpenAI", "Make embeddings: not offered by any model yet", _errors((501,)))}

    told_of = {"200": _reply("The response, in one piece or as events.", _json("AnyObject") | EVENTS, RAN)}

    def responses(name: str) -> Json:
        replies = told_of | _errors(ASKED)
        return {"post": _operation(name, "OpenAI", "Answer an input, without state", replies, "ResponsesBody")}

    return {
        "/v1/responses": responses("responses"),
        "/responses": responses("responses_unprefixed"),
        "/v1/chat/completions": chat("chat"),
        "/chat/completions": chat("chat_unprefixed"),
        "/v1/embeddings": embeddings("embeddings"),
        "/embeddings": embeddings("embeddings_unprefixed"),
    }


def _skills() -> Json:
    told = (
        "As events (stream): objects with `chunk`, then one with `completed` true, `finish_reason` and `metrics`. A "
        "failure that comes later is an event with `error`, then `data: [ERROR]`."
    )
    paths: Json = {}
    for prefix, suffix in PREFIXES:
        for name, (takes, gives, summary, streams) in SKILLS.items():
            replies = _errors(ASKED if gives else (400, 413, 415, 501, 503), "MoondreamError")
            if gives:
                content = _json(gives) | (EVENTS if streams else {})
                replies = {"200": _reply("The answer.", content, RAN)} | replies
            more = {"description": told} if streams else {}
            paths[f"{prefix}/{name}"] = {
                "post": _operation(name + suffix, "Moondream", summary, replies, takes, **more)
            }
    return paths


def _declared_schemas() -> Json:
    """What its bodies are is told by their models; of its replies, what all of them have."""
    kinds: list[Any] = [
        (kind, "validation") for kind in (ollama.ChatBody, ollama.GenerateBody, ollama_models.PullBody, ResponsesBody)
    ]
    _, taken = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    said = {"message": record({"role": TEXT, "content": TEXT}), "response": TEXT, "done_reason": TEXT}
    counts = ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration")
    told = dict.fromkeys((*counts, "eval_count", "eval_duration"), COUNT)
    return taken["$defs"] | {
        "OllamaError": record({"error": TEXT}),
        "OllamaRecord": record({"model": TEXT, "created_at": TEXT, "done": FLAG}, said | told),
        "AnyObject": {"type": "object"},
    }


def _ollama() -> Json:
    streamed = {"application/x-ndjson": {"schema": TEXT}}
    answer = {"200": _reply("The answer, a record a line (unless stream is false).", _json("OllamaRecord") | streamed)}
    told = {"200": _reply("What is told of it.", _json("AnyObject"))}
    errors = partial(_errors, shape="OllamaError")
    pulled = {"200": _reply("How far it is, a record a line.", _json("AnyObject") | streamed), **errors((500,))}
    asks = {"/api/chat": ("ChatBody", answer, ASKED), "/api/generate": ("GenerateBody", answer, ASKED)}
    named = {"/api/show": ("PullBody", told, (400, 404, 413, 415)), "/api/pull": ("PullBody", pulled, (400, 413, 415))}
    paths: Json = {}
    for path, (takes, replies, statuses) in {**asks, **named}.items():
        replies = {**replies, **errors(statuses)}
        paths[path] = {"post": _operation(f"ollama_{path[5:]}", "Ollama", f"Ollama's {path[5:]}", replies, takes)}
    for path in ("/api/version", "/api/tags", "/api/ps"):
        paths[path] = {"get": _operation(f"ollama_{path[5:]}", "Ollama", f"Ollama's {path[5:]}", told)}
    for path in ollama_models.UNSUPPORTED:
        method = "delete" if path == "/api/delete" else "post"
        refused = _operation(f"ollama_{path[5:]}", "Ollama", "Not offered here", errors((501,)))
        paths[path] = {method: refused}
    return paths


def _models() -> Json:
    listed = {"200": _reply("Those in memory, and those that can be loaded.", _json("ModelList"))}
    name = {"name": "id", "in": "path", "required": True, "schema": TEXT, "description": "may hold slashes"}
    gone = "There is no such model."
    one = {"200": _reply("The model.", _json("ModelEntry")), **_errors((404,), on_404=gone)}
    content = _json("ModelEntry") | EVENTS
    loaded = {
        "200": _reply("The model is in memory.", content),
        **_errors((400, 404, 413, 415, 429, 500, 503), on_404=gone, on_429="Too many wait for their models."),
    }
    unloaded = {
        "200": _reply("The model is not in memory.", _json("Unloaded")),
        **_errors((400, 404, 409, 413, 415, 503), on_404=gone),
    }
    load = (
        "Downloads the model where its files are not here. As events (stream): `status` is `loading`, with "
        "`bytes_done` and `bytes_total` of the download, then `loaded` with `model`, or `failed` with `error`. What "
        "does not fit in memory is refused with 503 and the figures; models that are not in use make room for it."
    )
    unload = "Takes a model out of memory. It is loaded again when a request names it, if the settings do."
    described: dict[str, dict[str, tuple[str, str, Json, str | None, Json]]] = {
        "/models": {"get": ("list_models", "List the models", listed, None, {})},
        "/models/{id}": {"get": ("get_model", "Tell of one model", one, None, {"parameters": [name]})},
        "/models/load": {"post": ("load_model", "Load a model", loaded, "LoadRequest", {"description": load})},
        "/models/unload": {
            "post": ("unload_model", "Unload a model", unloaded, "UnloadRequest", {"description": unload})
        },
    }
    return {
        f"{prefix}{path}": {
            method: _operation(id + suffix, "Models", summary, replies, takes, **more)
            for method, (id, summary, replies, takes, more) in operations.items()
        }
        for prefix, suffix in PREFIXES
        for path, operations in described.items()
    }


def _info() -> Json:
    page: Json = {"text/html": {"schema": TEXT}}
    health = {
        "200": _reply("Requests are answered.", _json("Health")),
        "503": _reply(
            "The model is being loaded, or could not be, or the server is stopping.", _json("NotReady"), RETRY
        ),
    }
    start = _reply("What runs here: for programs, or for people.", _json("Root") | page)
    stats = _reply("As Moondream Station tells them, and of each model in memory.", _json("Stats"))
    statistics = _reply("As the AI Manual Assistant's Moondream2 server tells them.", _json("Statistics"))
    metrics = _reply("In Prometheus' text format.", {"text/plain": {"schema": TEXT}})
    described = _reply("This document.", {"application/json": {"schema": {"type": "object"}}})

    def get(name: str, summary: str, replies: Json) -> Json:
        return {"get": _operation(name, "Server", summary, replies)}

    return {
        "/": get("start", "Tell what runs here", {"200": start}),
        "/health": get("health", "Tell whether requests are answered, and what answers them", health),
        "/readyz": get("ready", "The same as /health, as LocalAI has it", health),
        "/v1/stats": get("stats", "Count what was done", {"200": stats}),
        "/stats": get("statistics", "Count what was done, in short", {"200": statistics}),
        "/metrics": get("metrics", "Give Prometheus its metrics", {"200": metrics}),
        "/openapi.json": get("openapi", "Describe every route to programs", {"200": described}),
        "/docs": get("docs", "Describe every route to people", {"200": _reply("A page.", page)}),
        "/style.css": get("style", "Style the pages", {"200": _reply("CSS.", {"text/css": {"schema": TEXT}})}),
    }
