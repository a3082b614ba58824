"""JSON Schemas of what the server tells of itself and of its models; dialects declare theirs with their types."""

from typing import Any

from galago.jobs.ids import ALPHABET, LENGTH
from galago.jobs.records import DELIVERY_STATES, STATES
from galago.server.bodies import Json

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
SECONDS: Json = {"type": "number", "minimum": 0}
FLAG: Json = {"type": "boolean"}


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Json, optional: Json | None = None) -> Json:
    """An object with these fields, and perhaps others."""
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def array(items: Json) -> Json:
    return {"type": "array", "items": items}


def may(schema: Json, description: str = "") -> Json:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]} | ({"description": description} if description else {})


def choice(*values: Any) -> Json:
    return {"enum": list(values)}


def _way() -> Json:
    return record({"takes": array(TEXT), "model": TEXT, "too_large": array(TEXT)})


def _models() -> Json:
    entry = {
        "id": TEXT,
        "object": choice("model"),
        "created": COUNT,
        "owned_by": TEXT,
        "loaded": {**FLAG, "description": "whether it is in memory"},
        "installed": {**FLAG, "description": "whether its files are here; else a load downloads them"},
        "precision": may(TEXT),
        "memory_bytes": may(COUNT, "what it needs: at its peak, and for its caches"),
        "in_use": {**COUNT, "description": "requests that run on it"},
    }
    ways = {"ways": {**array(_way()), "description": "of a route: what it takes, and the model that answers"}}
    helps = {
        "loading": {**FLAG, "description": "whether it is being loaded"},
        "description": TEXT,
        "skills": array(TEXT),
        "license": TEXT,
        "parameters": COUNT,
        "bundled": FLAG,
        "download_bytes": {**COUNT, "description": "about, where its files are not here"},
        "memory_by_precision": {"type": "object", "additionalProperties": COUNT},
        "fits": {**FLAG, "description": "whether the budget has room for it"},
    }
    ways |= helps
    described = record(dict.fromkeys(("id", "name", "description", "version"), TEXT))
    root = {"root": {**TEXT, "description": "the model that this is another name of"}}
    listed = {"object": choice("list"), "data": array(record(entry, ways | root)), "models": array(described)}
    return {
        "ModelEntry": record(entry, ways),
        "ModelList": record(listed),
        "Unloaded": record(
            {**entry, "unloaded": {**FLAG, "description": "whether it was in memory, or on its way there"}}, ways
        ),
    }


def _held() -> Json:
    """What a model takes."""
    caches = {"type": "object", "description": "keys and values, and cached images", "additionalProperties": COUNT}
    mapped = may(COUNT, "those of them in mapped files, which come into memory as they are read")
    return record(
        {"set_aside_bytes": {**COUNT, "description": "the part of the budget that is its own"}},
        {"weights_bytes": COUNT, "mapped_bytes": mapped, "cache_bytes": caches},
    )


def _info() -> Json:
    one = {"precision": TEXT, "device": TEXT, "revision": TEXT, "kernels": TEXT, "fallbacks": array(TEXT)}
    one["commit"] = may(TEXT, "of the hub's repository that its weights are of")
    loaded = record({"name": TEXT, **one, "memory": _held(), "in_use": COUNT})
    served = record({"requests": COUNT, "avg_time": TEXT, "cache_hits": COUNT})
    room = record({"used_bytes": COUNT, "allowed_bytes": COUNT})
    rooms = {**record({"pictures": room, "clips": room}), "description": "what pictures take that are being decoded"}
    free = {**COUNT, "description": "of the budget"}
    used = {
        "used_bytes": COUNT,
        "peak_bytes": COUNT,
        "budget_bytes": {**COUNT, "description": "that models may take together"},
        "free_bytes": free,
        "of": {**TEXT, "description": "of what"},
        "decoding": rooms,
    }
    who = {"server": TEXT, "model": {**TEXT, "description": "the default one"}, "version": TEXT}
    chosen = {"model_choice": {**TEXT, "description": "why it is this model, where none was named"}}
    healthy = {"status": choice("healthy"), **who, **one, "memory": record(used), "performance": served}
    counts = dict.fromkeys(("workers", "queue_size", "max_queue_size", "processing", "timeouts"), COUNT)
    more = {"default_timeout": SECONDS, "model": TEXT, "status": TEXT, "requests_processed": COUNT}
    each = {"type": "object", "description": "of each model in memory", "additionalProperties": {"type": "object"}}
    ways = "of each route its ways: what is taken, the model that answers, and those that memory has no room for"
    routes = {"type": "object", "description": ways, "additionalProperties": array(_way())}
    counted = {"requests": COUNT, "total_time": SECONDS, "avg_time": SECONDS, "cache_hits": COUNT}
    flags = ("mps_acceleration", "image_caching", "response_caching", "memory_management")
    statistics = {"statistics": record(counted), "optimizations": record(dict.fromkeys(flags, FLAG))}
    return {
        "Health": record({**healthy, "models": array(loaded), "routes": routes}, chosen),
        "NotReady": record({"status": choice("loading", "failed", "stopping"), **who}, {"error": TEXT, **chosen}),
        "Statistics": record({"model": TEXT, **statistics}),
        "Stats": record({**counts, **more, "models": each}),
        "Root": record({"message": TEXT, "version": TEXT, "status": choice("running", "not loaded"), "model": TEXT}),
    }


JOB_STATES = choice(*STATES)
JOB_ID: Json = {**TEXT, "pattern": f"^job_[{ALPHABET}]{{{LENGTH}}}$"}


def _jobs() -> Json:
    any_: Json = {"type": ["object", "null"]}
    number: Json = {"type": ["number", "null"]}
    told = {"id": JOB_ID, "object": choice("job"), "path": TEXT, "status": JOB_STATES, "attempts": COUNT}
    told["max_attempts"] = COUNT
    times = dict.fromkeys(("next_attempt_at", "created_at", "started_at", "finished_at", "expires_at"), number)
    job = record({**told, "priority": {"type": "integer"}, **times, "result": any_, "error": any_})
    listed = {"object": choice("list"), "data": array(job), "after": may(TEXT), "has_more": FLAG}
    last = {"last_status": may(COUNT, "that it was answered with"), "last_error": may(TEXT)}
    sent = dict.fromkeys(("next_at", "created_at", "delivered_at"), number)
    state = {"state": choice(*DELIVERY_STATES), "attempts": COUNT}
    names = {"id": TEXT, "object": choice("job.delivery"), "job_id": JOB_ID, "sequence": COUNT}
    delivery = record({**names, "event": TEXT, "url": TEXT, **state, **last, **sent})
    deliveries = {**listed, "data": array(delivery)}
    return {
        "Job": job,
        "JobList": record(listed),
        "JobDelivery": delivery,
        "JobDeliveryList": record(deliveries),
    }


def schemas() -> Json:
    """Every schema by its name."""
    return {**_models(), **_jobs(), **_info()}
