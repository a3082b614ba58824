"""The OpenAPI document: every route, what it takes and everything that it answers."""

from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from galago.server import ollama_models
from galago.server.bodies import Json
from galago.server.dialect import Dialect, Route
from galago.server.dialects import DIALECTS, OLLAMA, OPENAI
from galago.server.job_events import PATH as EVENTS_PATH
from galago.server.jobs import PATH as JOBS
from galago.server.jobs import JobBody
from galago.server.manage import ModelCommand
from galago.server.request_target import HEALTH_PATHS
from galago.server.schemas import JOB_ID, JOB_STATES, TEXT, record, ref, schemas
from galago.server.streaming import Framing

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
_OLLAMA_LISTS = ("/api/version", "/api/tags", "/api/ps")
ERROR = ref("ErrorBody")
_FOLLOWED = (
    "An event for each change of a job's state from now on, or behind a cursor: `event` is job.queued, job.started, "
    "job.done, job.failed or job.cancelled, `data` the job as it is now, `id` the cursor. States that a job passed "
    "through between two looks, of which there are two a second, are left out. It ends when the server stops."
)


@cache
def document(version: str) -> Json:
    """The document of the server of this version."""
    about = "Compact vision-language models behind the APIs of OpenAI, Moondream and Ollama."
    told = [kind for one in DIALECTS for route in one.routes for kind in (route.body, route.gives, one.error) if kind]
    kinds = dict.fromkeys([*told, ollama_models.PullBody, ModelCommand, JobBody])
    inputs: Any = [(kind, "validation", TypeAdapter(kind)) for kind in kinds]
    found, declared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    schema_of = {kind: schema for (kind, _), schema in found.items()}

    def schema(kind: Any) -> Json:
        return schema_of[kind]

    paths: Json = {}
    for dialect in DIALECTS:
        for route in dialect.routes:
            paths |= _asked(dialect, route, schema)
    embeddings = _errors((501,), schema(OPENAI.error))
    for path, name in (("/v1/embeddings", "embeddings"), ("/embeddings", "embeddings_unprefixed")):
        operation = _operation(name, "OpenAI", "Make embeddings: not offered by any model yet", embeddings)
        paths[path] = {"post": operation}
    paths |= _ollama_models(schema(OLLAMA.error), schema(ollama_models.PullBody))
    paths |= _models(schema(ModelCommand)) | _jobs(schema(JobBody)) | _info()
    errors = {dialect.name: schema(dialect.error) for dialect in DIALECTS}
    for path, operations in paths.items():
        for operation in operations.values():
            shape = errors.get(operation["tags"][0], ERROR)
            guarded = (421,) if path in HEALTH_PATHS else (401, 403, 421, 503)
            # With these a connection is closed before it is known which dialect its client speaks.
            early = _errors((408, 431), ERROR)
            operation["responses"] = {**_errors(guarded, shape), **early, **operation["responses"]}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Galago", "version": version, "description": about, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": schemas() | _plain(declared["$defs"])},
    }


def _plain(schema: Any) -> Any:
    """A schema without what pydantic makes of names, without nulls as defaults, and without discriminators, of which
    several lead to one schema here, whose own list of types says all."""
    if isinstance(schema, list):
        return [_plain(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    told = {name: one for name, one in schema.items() if not (name == "title" and isinstance(one, str))}
    left_out = ("default",) if told.get("default") is None else ()
    made = ("discriminator",) if "mapping" in (told.get("discriminator") or ()) else ()
    return {name: _plain(one) for name, one in told.items() if name not in (*left_out, *made)}


def _reply(description: str, content: Json, headers: Json | None = None) -> Json:
    return {"description": description, "content": content} | ({"headers": headers} if headers else {})


def _json(name: str) -> Json:
    return {"application/json": {"schema": ref(name)}}


def _errors(statuses: tuple[int, ...], shape: Json = ERROR, **why: str) -> Json:
    content = {"application/json": {"schema": shape}}
    return {
        str(status): _reply(why.get(f"on_{status}", WHY[status]), content, RETRY if status in (429, 503) else None)
        for status in statuses
    }


def _operation(name: str, tag: str, summary: str, replies: Json, takes: Json | None = None, **more: Any) -> Json:
    body = {"requestBody": {"required": True, "content": {"application/json": {"schema": takes}}}} if takes else {}
    return {"operationId": name, "tags": [tag], "summary": summary, **more, **body, "responses": replies}


def _asked(dialect: Dialect, route: Route, schema: Callable[[Any], Json]) -> Json:
    """The paths of something that a model can be asked for."""
    form: Json = (
        {"type": "object", "properties": {"data": TEXT}} if route.reply.content_type == Framing.content_type else TEXT
    )
    stream = {route.reply.content_type: {"schema": form | {"description": f"a stream: {route.streams}"}}}
    answered: Json = {}
    if route.gives:
        content = {"application/json": {"schema": schema(route.gives)}} | (stream if route.streams else {})
        answered = {"200": _reply("The answer.", content, RAN)}
    replies = {**answered, **_errors(ASKED if route.gives else (400, 413, 415, 501, 503), schema(dialect.error))}
    takes = schema(route.body)
    return {
        path: {"post": _operation(name, dialect.name, route.summary, replies, takes)}
        for path, name in zip(route.paths, (route.name, f"{route.name}_unprefixed"), strict=False)
    }


def _ollama_models(error: Json, named: Json) -> Json:
    streamed = {"application/x-ndjson": {"schema": TEXT}}
    told = {"200": _reply("What is told of it.", {"application/json": {"schema": {"type": "object"}}})}
    pulled = {"200": _reply("How far it is, a record a line.", told["200"]["content"] | streamed)}

    def operation(
        path: str, summary: str, replies: Json, statuses: tuple[int, ...] = (), takes: Json | None = None
    ) -> Json:
        return _operation(f"ollama_{path[5:]}", "Ollama", summary, {**replies, **_errors(statuses, error)}, takes)

    paths: Json = {path: {"get": operation(path, f"Ollama's {path[5:]}", told)} for path in _OLLAMA_LISTS}
    paths["/api/show"] = {"post": operation("/api/show", "Ollama's show", told, (400, 404, 413, 415), named)}
    paths["/api/pull"] = {"post": operation("/api/pull", "Ollama's pull", pulled, (400, 404, 413, 415, 500), named)}
    for path in ollama_models.UNSUPPORTED:
        method = "delete" if path == "/api/delete" else "post"
        paths[path] = {method: operation(path, "Not offered here", {}, (501,))}
    return paths


def _models(command: Json) -> Json:
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
    unload = (
        "Takes a model out of memory. The load of one that is being loaded is given up, and fails for all who wait for "
        "it. One that was in memory is loaded again when a request names it, if the settings do."
    )
    described: dict[str, dict[str, tuple[str, str, Json, Json | None, Json]]] = {
        "/models": {"get": ("list_models", "List the models", listed, None, {})},
        "/models/{id}": {"get": ("get_model", "Tell of one model", one, None, {"parameters": [name]})},
        "/models/load": {"post": ("load_model", "Load a model", loaded, command, {"description": load})},
        "/models/unload": {"post": ("unload_model", "Unload a model", unloaded, command, {"description": unload})},
    }
    return {
        f"{prefix}{path}": {
            method: _operation(id + suffix, "Models", summary, replies, takes, **more)
            for method, (id, summary, replies, takes, more) in operations.items()
        }
        for prefix, suffix in PREFIXES
        for path, operations in described.items()
    }


def _jobs(takes: Json) -> Json:
    """Without a queue all of it is answered with 501."""
    id = {"name": "id", "in": "path", "required": True, "schema": TEXT}
    job = _reply("The job: its status, and its result or error.", _json("Job"))
    away = "The database of jobs is away, or the server is shutting down."
    gone = _errors((404, 501, 503), on_404="There is no such job.", on_503=away)
    added = {"200": job, "202": job, **_errors((400, 413, 415, 501, 503), on_503=away)}
    told = "The fields of the request stand beside the path that it is for."
    listed = {"200": _reply("Jobs, newest first.", _json("JobList")), **_errors((400, 501, 503), on_503=away)}
    choices = [
        {"name": "status", "in": "query", "schema": {"type": "array", "items": JOB_STATES}},
        {"name": "after", "in": "query", "schema": JOB_ID, "description": "the id to go on from"},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}},
    ]

    cursor = {"schema": TEXT, "description": "the id of the last event that came: go on behind it"}
    places = [
        {"name": name, "in": place, **cursor} for name, place in (("Last-Event-ID", "header"), ("after", "query"))
    ]
    followed = {
        "200": _reply(_FOLLOWED, EVENTS),
        **_errors((400, 429, 501, 503), on_429="Too many follow the jobs.", on_503=away),
    }
    delivery = {"200": _reply("The callback.", _json("JobDelivery"))}
    no_delivery = _errors((404, 501, 503), on_404="There is no such callback.", on_503=away)
    deliveries = {"200": _reply("Its callbacks, in their order.", _json("JobDeliveryList")), **gone}

    def one(name: str, summary: str, more: Json | None = None) -> Json:
        return _operation(name, "Jobs", summary, {"200": job, **gone, **(more or {})}, parameters=[id])

    return {
        JOBS: {
            "post": _operation("add_job", "Jobs", "Have a request carried out later", added, takes, description=told),
            "get": _operation("list_jobs", "Jobs", "List the jobs", listed, parameters=choices),
        },
        EVENTS_PATH: {"get": _operation("follow_jobs", "Jobs", "Follow the jobs' states", followed, parameters=places)},
        f"{JOBS}/{{id}}": {"get": one("get_job", "Tell of one job"), "delete": one("cancel_job", "Cancel a job")},
        f"{JOBS}/{{id}}/retry": {"post": one("retry_job", "Try a failed job again", _errors((400,)))},
        f"{JOBS}/{{id}}/deliveries": {
            "get": _operation("list_job_deliveries", "Jobs", "List a job's callbacks", deliveries, parameters=[id])
        },
        f"{JOBS}/deliveries/{{id}}/replay": {
            "post": _operation(
                "replay_job_delivery", "Jobs", "Send a callback again", delivery | no_delivery, parameters=[id]
            )
        },
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

    gone = _errors((404,), on_404="The page has no such file.")
    fetched = {"200": _reply("The picture.", {"*/*": {"schema": TEXT}}), **_errors((400, 413, 415))}
    file = {"200": _reply("The file.", {"*/*": {"schema": TEXT}}), **gone}
    name: Json = {"name": "name", "in": "path", "required": True, "schema": TEXT}

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
        "/app/{name}": {"get": _operation("page_file", "Server", "A file of the page", file, parameters=[name])},
        "/app/fetch": {
            "post": _operation("page_fetch", "Server", "Fetch a picture for the page", fetched, record({"url": TEXT}))
        },
        "/style.css": get("style", "Style the pages", {"200": _reply("CSS.", {"text/css": {"schema": TEXT}})}),
    }
