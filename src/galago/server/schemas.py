"""JSON Schemas of what the server takes and gives. Optional fields may be null; fields that nobody knows are ignored.

What a schema cannot say is in its description; such requests are answered with 400 all the same.
"""

from typing import Any

from galago.server.fields import Json
from galago.server.moondream import MAX_TIMEOUT
from galago.server.openai import MAX_CHOICES, UNSUPPORTED

NULL: Json = {"type": "null"}
TEXT: Json = {"type": "string"}
FILLED: Json = {"type": "string", "pattern": r"\S"}
SHARE: Json = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Json = {"type": "integer", "minimum": 0}
SECONDS: Json = {"type": "number", "minimum": 0}
FLAG: Json = {"type": "boolean"}
IMAGE: Json = {
    "type": "string",
    "format": "image-url",
    "description": "the image itself: a data: URL in base64, or the bare base64; JPEG, PNG, WebP, GIF, BMP and others",
}
VIDEO: Json = {
    "type": "string",
    "format": "video-url",
    "description": "the video itself: a data: URL in base64, or the bare base64; MP4, WebM, GIF and others",
}
_FALSY: list[Any] = [None, False, 0, "", [], {}]


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Json, optional: Json | None = None, description: str = "") -> Json:
    """An object with these fields, and perhaps others."""
    made: Json = {"type": "object", "properties": {**required, **(optional or {})}}
    if required:
        made["required"] = list(required)
    return made | ({"description": description} if description else {})


def array(items: Json, least: int = 0, most: int | None = None) -> Json:
    made: Json = {"type": "array", "items": items}
    return made | ({"minItems": least} if least else {}) | ({} if most is None else {"maxItems": most})


def may(schema: Json, description: str = "") -> Json:
    """The same, or null, which counts as absent."""
    made: Json
    if "enum" in schema:
        made = {**schema, "enum": [*schema["enum"], None]}
        made.pop("type", None)
    elif isinstance(schema.get("type"), str) and "format" not in schema:
        made = {**schema, "type": [schema["type"], "null"]}
    else:
        made = {"anyOf": [schema, NULL]}
    return made | ({"description": description} if description else {})


def choice(*values: Any) -> Json:
    return {"enum": list(values)}


def _sampling() -> Json:
    whole = {"type": "integer", "minimum": 1}
    stops = {**array({"type": "string", "minLength": 1}, most=4)}
    return {
        "temperature": may({"type": "number", "minimum": 0, "maximum": 2}, "0, the default, takes the likeliest token"),
        "top_p": may(SHARE, "draw from the likeliest tokens that make up this probability; 1 by default"),
        "min_p": may(SHARE, "leave out tokens less likely than this share of the likeliest; 0 by default"),
        "max_tokens": may(whole, "tokens of text at most; by default the model's own limit"),
        "max_completion_tokens": may(whole, "the same as max_tokens, and goes before it"),
        "seed": may({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "makes what is drawn repeat"),
        "stop": {
            "anyOf": [{"type": "string", "minLength": 1}, stops, NULL],
            "description": "text ends before the first of these, which is not given out",
        },
        "top_k": may({"type": "integer", "minimum": -1}, "draw from so many likely tokens; 0 and -1 are all"),
        "repetition_penalty": may({"type": "number", "exclusiveMinimum": 0}, "above 1 makes used tokens less likely"),
    }


def _chat() -> Json:
    kind = {"type": choice("text", "input_text")}
    text = record({**kind, "text": TEXT})
    refusal = record({"type": choice("refusal"), "refusal": TEXT})
    detail = may(choice("auto", "low", "high", "original"), "low sees a large image as a whole only")
    shown = {"type": choice("image_url", "input_image")}
    image = {
        "anyOf": [
            record({**shown, "image_url": record({"url": IMAGE}, {"detail": detail})}),
            record({**shown, "image_url": IMAGE}, {"detail": detail}),
        ]
    }
    moving = {"type": choice("video_url", "input_video")}
    video = {
        "anyOf": [record({**moving, "video_url": record({"url": VIDEO})}), record({**moving, "video_url": VIDEO})],
        "description": "for models that look at videos",
    }
    none = {name: {"enum": _FALSY} for name in ("tool_calls", "function_call", "audio")}

    def turn(roles: list[str], parts: Json, absent: bool = False) -> Json:
        content: Json = {"anyOf": [TEXT, array(parts), *([NULL] if absent else [])]}
        needed = {"role": choice(*roles)} | ({} if absent else {"content": content})
        return record(needed, none | ({"content": content} if absent else {}))

    turns = [
        turn(["system", "developer"], text),
        turn(["user"], {"anyOf": [text, image, video]}),
        turn(["assistant"], {"anyOf": [text, refusal]}, absent=True),
    ]
    messages = {
        **array({"anyOf": turns}, 1),
        "description": "a conversation that ends with a user's turn, which has text or an image",
    }
    unsupported = {
        name: {"enum": [None, *neutral], "description": "only what asks for nothing"}
        for name, neutral in UNSUPPORTED.items()
    }
    options = may(record({}, {"include_usage": may(FLAG)}))
    schema = record({"type": choice("json_schema"), "json_schema": record({"schema": {"type": "object"}})})
    forms = {"anyOf": [record({"type": choice("text", "json_object")}), schema, NULL]}
    optional = {
        "model": may(TEXT, "a model of GET /v1/models; any other name means the default, unless names are strict"),
        "stream": may(FLAG, "answer with server-sent events"),
        "stream_options": {"description": "include_usage adds a chunk with the usage; looked at with stream only"},
        "reasoning": may(FLAG, "think first; for a single turn of a user, maybe after one of the system"),
        "n": may({"type": "integer", "minimum": 1, "maximum": MAX_CHOICES}, "choices; 1 by default"),
        "logprobs": may(FLAG, "tell how likely each token was"),
        "top_logprobs": may({"type": "integer", "minimum": 0, "maximum": 20}, "likely tokens told with each"),
        "response_format": {**forms, "description": "json_object and json_schema make the text JSON of that form"},
        **_sampling(),
        **unsupported,
    }
    streams = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
    tops = {"properties": {"top_logprobs": {"type": "integer"}}, "required": ["top_logprobs"]}
    told = {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]}
    thinks = {"properties": {"reasoning": {"const": True}}, "required": ["reasoning"]}
    user = {"properties": {"role": choice("user")}}
    led = [{"properties": {"role": choice("system", "developer")}}, user]
    single = {"anyOf": [{"maxItems": 1, "items": user}, {"minItems": 2, "maxItems": 2, "prefixItems": led}]}
    return {
        **record({"messages": messages}, optional),
        "allOf": [
            {"if": streams, "then": {"properties": {"stream_options": options}}},
            {"if": tops, "then": told},
            {"if": thinks, "then": {"properties": {"messages": single}}},
        ],
    }


def _skills() -> Json:
    """The requests of Moondream's API by the name of their schema."""
    most = may({"type": "integer", "minimum": 1}, "find so many at most; 50 by default")
    sampling = _sampling()
    variant = {"variant": {**NULL, "description": "not supported by the server"}}
    settings = may(record({}, {**sampling, "max_objects": most, **variant}))
    beside = {name: sampling[name] for name in ("temperature", "top_p", "max_tokens")} | {"max_objects": most}
    shared = {
        "model": may(TEXT, "as for chat completions"),
        "timeout": may(
            {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_TIMEOUT}, "seconds that it may take in all"
        ),
        "settings": {**settings, "description": "goes before the same settings beside it"},
        **beside,
    }
    stream = {"stream": may(FLAG, "answer with server-sent events")}
    image = {"image_url": IMAGE}
    spot, box = array(SHARE, 2, 2), array(SHARE, 4, 4)
    refs = may(
        array({"anyOf": [spot, box]}),
        "points [x, y], and boxes by two opposite corners [x0, y0, x1, y1], that the question is about",
    )
    named = [
        {"required": ["object"], "properties": {"object": FILLED}},
        {"required": ["obj"], "properties": {"object": NULL, "obj": FILLED}},
    ]
    found = {"object": {"description": "what to look for"}, "obj": {"description": "the same, where object is absent"}}
    unreferred = [
        {"required": ["image_url"], "properties": {"image_url": IMAGE}},
        {"properties": {"spatial_refs": {"enum": [None, []]}}},
    ]
    eye = {"anyOf": [spot, record({"x": SHARE, "y": SHARE})], "description": "where the eyes of a person are"}
    corners = record(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), SHARE))
    face = {"anyOf": [box, corners], "description": "needed with prioritize_accuracy, as the eye is without"}
    flags = may(record({}, {"prioritize_accuracy": may(FLAG), "force_detect": may(FLAG)}))
    accurate = record({"prioritize_accuracy": {"const": True}})
    looking = [
        {
            "required": ["eye"],
            "properties": {
                "eye": eye,
                "unstable_settings": may(record({}, {"prioritize_accuracy": choice(False, None)})),
            },
        },
        {
            "required": ["face", "unstable_settings"],
            "properties": {"face": face, "unstable_settings": accurate},
        },
    ]
    looks = {"eye": may(eye), "face": may(face), "unstable_settings": flags}
    length = may(choice("short", "normal", "long"), "normal by default")
    question = {"question": FILLED}
    asked = {
        "image_url": may(IMAGE),
        "reasoning": may(FLAG, "think first, and say what was thought"),
        "spatial_refs": refs,
    }
    return {
        "CaptionRequest": record(image, {"length": length, **stream, **shared}),
        "QueryRequest": {**record(question, {**asked, **stream, **shared}), "anyOf": unreferred},
        "DetectRequest": {**record(image, found | shared), "anyOf": named},
        "PointRequest": {**record(image, {**found, "spatial_refs": refs, **shared}), "anyOf": named},
        "DetectGazeRequest": {**record(image, {**looks, **shared}), "anyOf": looking},
        "SegmentRequest": record({}, shared, "no model that there is can do this"),
    }


def _answers() -> Json:
    """The replies of Moondream's API by the name of their schema."""
    times = dict.fromkeys(("prefill_time_ms", "decode_time_ms", "ttft_ms"), SECONDS)
    end = {
        "request_id": TEXT,
        "finish_reason": choice("stop", "length", "cancelled"),
        "metrics": record({"input_tokens": COUNT, "output_tokens": COUNT, **times}),
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
        {"performance": record({"processing_time": TEXT, "inference_time": TEXT}, description="if set so")},
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
    loaded = record({"name": TEXT, **one, "memory": _held(), "in_use": COUNT})
    served = record({"requests": COUNT, "avg_time": TEXT, "cache_hits": COUNT})
    room = record({"used_bytes": COUNT, "allowed_bytes": COUNT})
    rooms = {**record({"pictures": room, "clips": room}), "description": "what pictures take that are being decoded"}
    used = {"used_bytes": COUNT, "peak_bytes": COUNT, "of": {**TEXT, "description": "of what"}, "decoding": rooms}
    who = {"server": TEXT, "model": {**TEXT, "description": "the default one"}, "version": TEXT}
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
        "Health": record({**healthy, "models": array(loaded), "routes": routes}),
        "NotReady": record({"status": choice("loading", "failed", "stopping"), **who}, {"error": TEXT}),
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
    chat = {"ChatRequest": _chat(), "ChatCompletion": _completion()}
    return {**chat, **_skills(), **_answers(), **_models(), **_info()}
