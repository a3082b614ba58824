"""JSON Schemas of what the server gives, and of requests about models; request_schemas.py has those of questions."""

from galago.server.bodies import Json
from galago.server.request_schemas import chat_request, shown_schemas, skill_requests
from galago.server.schema_parts import COUNT, FLAG, NULL, SECONDS, SHARE, TEXT, WARNINGS, array, choice, may, record


def _answers() -> Json:
    """The replies of Moondream's API by the name of their schema."""
    times = dict.fromkeys(("prefill_time_ms", "decode_time_ms", "ttft_ms"), SECONDS)
    end = {
        "request_id": TEXT,
        "finish_reason": choice("stop", "length", "cancelled"),
        "metrics": record({"input_tokens": COUNT, "output_tokens": COUNT, **times}, {"warnings": WARNINGS}),
    }
    speed = {"_stats": record({"tokens": COUNT, "duration": SECONDS, "tokens_per_sec": SECONDS})}
    spot = record({"x": SHARE, "y": SHARE})
    box = record(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), SHARE))
    ground = record({"start_idx": COUNT, "end_idx": COUNT, "points": array(array({"type": "number"}, 2, 2))})
    thought = {"reasoning": record({"text": TEXT, "grounding": array(ground)})}
    return {
        "Caption": record({**end, "caption": TEXT}, speed),
        "Answer": record({**end, "answer": TEXT}, speed | thought),
        "Objects": record({**end, "objects": array(box)}),
        "Points": record({**end, "points": array(spot), "count": COUNT}),
        "Gaze": record({**end, "gaze": may(spot, "null where it falls nowhere in the image")}),
        "MoondreamError": record(
            {
                "error": TEXT,
                "status": choice("rejected", "timeout", "error"),
                "code": TEXT,
                "param": may(TEXT, "the field at fault"),
            }
        ),
    }


def _completion() -> Json:
    message = record({"role": choice("assistant"), "content": TEXT, "refusal": NULL}, {"reasoning": TEXT})
    chance = {"token": TEXT, "logprob": {"type": "number"}, "bytes": may(array(COUNT))}
    each = record({**chance, "top_logprobs": array(record(chance))})
    one = record(
        {
            "index": COUNT,
            "message": message,
            "logprobs": may(record({"content": array(each), "refusal": NULL}), "of each token"),
            "finish_reason": choice("stop", "length", "cancelled"),
        }
    )
    parts = record(dict.fromkeys(("cached_tokens", "image_tokens", "text_tokens"), COUNT))
    tokens = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT)
    return record(
        {
            "id": TEXT,
            "object": choice("chat.completion"),
            "created": COUNT,
            "model": {**TEXT, "description": "what ran, whatever name was asked for"},
            "system_fingerprint": TEXT,
            "choices": array(one, 1),
            "usage": record({**tokens, "prompt_tokens_details": parts}),
            "processing_time": {**SECONDS, "description": "seconds from the request's arrival"},
            "inference_time": {**SECONDS, "description": "seconds of it in the model"},
        },
        {
            "performance": record({"processing_time": TEXT, "inference_time": TEXT}, description="if set so"),
            "warnings": WARNINGS,
        },
    )


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
    described = record(dict.fromkeys(("id", "name", "description", "version"), TEXT))
    root = {"root": {**TEXT, "description": "the model that this is another name of"}}
    listed = {"object": choice("list"), "data": array(record(entry, ways | root)), "models": array(described)}
    return {
        "ModelEntry": record(entry, ways),
        "ModelList": record(listed),
        "Unloaded": record({**entry, "unloaded": {**FLAG, "description": "whether it was in memory"}}, ways),
        "UnloadRequest": record({"model": {**TEXT, "description": "an id of GET /v1/models, or scenes-int8 and such"}}),
        "LoadRequest": record({"model": TEXT}, {"stream": may(FLAG, "tell the progress as server-sent events")}),
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
    used = {"used_bytes": COUNT, "peak_bytes": COUNT, "of": {**TEXT, "description": "of what"}, "decoding": rooms}
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
        "Error": record(
            {
                "error": record(
                    {"message": TEXT, "type": TEXT, "param": may(TEXT, "the field at fault"), "code": may(TEXT)}
                )
            }
        ),
    }


def schemas() -> Json:
    """Every schema by its name."""
    chat = {"ChatRequest": chat_request(), "ChatCompletion": _completion()}
    return {**chat, **shown_schemas(), **skill_requests(), **_answers(), **_models(), **_info()}
