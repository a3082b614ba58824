"""JSON Schemas of requests.

What a schema cannot say is in its description; such requests are answered with 400 all the same.
"""

from collections.abc import Sequence
from typing import Any

from galago.messages import BESIDE, INSIDE, SHOWS, TEXTS, names_of
from galago.server.bodies import Json
from galago.server.fields import DETAILS
from galago.server.openai import INSTEAD, MAX_CHOICES, UNSUPPORTED
from galago.server.schema_parts import (
    FILLED,
    FLAG,
    IMAGE,
    NULL,
    SHARE,
    TEXT,
    VIDEO,
    array,
    choice,
    may,
    record,
)
from galago.server.settings import MAX_TIMEOUT

_FALSY: list[Any] = [None, False, 0, "", [], {}]
_NOTHING: Json = {"enum": [None, [], {}]}


def first_of(names: Sequence[str], schema: Json, more: Json | None = None) -> Json:
    """An object in which the first of these members that is not null is such."""
    return {
        "anyOf": [
            record({name: schema}, {**dict.fromkeys(names[:i], NULL), **(more or {})}) for i, name in enumerate(names)
        ]
    }


def _detail() -> Json:
    return {"detail": may(choice(*DETAILS, ""), "low sees a large image as a whole only")}


def _shown(video: bool) -> Json:
    """What is shown, as itself or as an object around it."""
    what = VIDEO if video else IMAGE
    return {"anyOf": [what, first_of(INSIDE, what, {} if video else _detail())]}


def _something(video: bool) -> Json:
    return {"anyOf": [{"allOf": [_shown(video), {"not": _NOTHING}]}, array(_shown(video), 1)]}


def _beside() -> Json:
    """What is shown with a message, or with all of a request, outside of its content."""
    told = "shown too, before the text; one or several, each as itself or as {url: ...}"
    return {
        name: {"anyOf": [_NOTHING, _shown(video), array(_shown(video))], "description": told}
        for name, video in BESIDE.items()
    }


def _part(video: bool) -> Json:
    """A part that shows something: in the first of its members that is not null."""
    what, names = VIDEO if video else IMAGE, names_of(video)
    inside = first_of(INSIDE, what, {} if video else _detail())
    kind = {"type": choice(*(name for name, moves in SHOWS.items() if moves is video))}
    ways = []
    for i, name in enumerate(names):
        before = dict.fromkeys(names[:i], NULL)
        ways.append(record({**kind, name: what}, before | ({} if video else _detail())))
        ways.append(record({**kind, name: inside}, before))
    return {"anyOf": ways}


def _sampling() -> Json:
    whole = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": -1}]}
    stops = {**array({"type": "string", "minLength": 1}, most=4)}
    return {
        "temperature": may({"type": "number", "minimum": 0, "maximum": 2}, "0, the default, takes the likeliest token"),
        "top_p": may(SHARE, "draw from the likeliest tokens that make up this probability; 1 by default"),
        "min_p": may(SHARE, "leave out tokens less likely than this share of the likeliest; 0 by default"),
        "max_tokens": may(whole, "tokens of text at most; by default, and with -1, the model's own limit"),
        "max_completion_tokens": may(whole, "the same as max_tokens, and goes before it"),
        "seed": may({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, "makes what is drawn repeat"),
        "stop": {
            "anyOf": [{"type": "string", "minLength": 1}, stops, NULL],
            "description": "text ends before the first of these, which is not given out",
        },
        "top_k": may({"type": "integer", "minimum": -1}, "draw from so many likely tokens; 0 and -1 are all"),
        "repetition_penalty": may({"type": "number", "exclusiveMinimum": 0}, "above 1 makes used tokens less likely"),
    }


def chat_request() -> Json:
    refusal = record({"type": choice("refusal"), "refusal": TEXT})
    image, video = _part(False), {**_part(True), "description": "for models that look at videos"}
    none = {name: {"enum": _FALSY} for name in ("tool_calls", "function_call", "audio")}
    nowhere = dict.fromkeys(BESIDE, _NOTHING)

    def text(beside: Json) -> Json:
        return record({"type": choice(*TEXTS), "text": TEXT}, beside)

    def turn(roles: list[str], parts: list[Json], beside: Json) -> Json:
        content = may({"anyOf": [TEXT, array({"anyOf": [TEXT, *parts]})]})
        return record({"role": choice(*roles)}, {"content": content, **none, **beside})

    turns = [
        turn(["system", "developer"], [text(nowhere)], nowhere),
        turn(["user"], [text(_beside()), image, video], _beside()),
        turn(["assistant"], [text(nowhere), refusal], nowhere),
    ]
    messages = {
        **array({"anyOf": turns}, 1),
        "description": "a conversation that ends with a user's turn, which has text or an image",
    }
    unsupported = {
        name: {"enum": [None, *neutral], "description": INSTEAD.get(name, "only what asks for nothing")}
        for name, neutral in UNSUPPORTED.items()
    }
    options = may(record({}, {"include_usage": may(FLAG)}))
    schema: Json = {"type": "object"}
    ways = [
        record({"type": choice("text")}),
        record({"type": choice("json_object")}, {"schema": may(schema)}),
        record({"type": choice("json_schema"), "json_schema": record({"schema": schema})}),
        record({"type": choice("json_schema"), "schema": schema}, {"json_schema": NULL}),
    ]
    forms = {"anyOf": [*ways, NULL]}
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
        **_beside(),
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


def skill_requests() -> Json:
    """The requests of Moondream's API by the name of their schema."""
    most = may({"type": "integer", "minimum": 1}, "find so many at most; 50 by default")
    sampling = _sampling()
    variant = {"variant": {**NULL, "description": "not supported by the server"}}
    form = {"json_schema": may({"type": "object"}, "a JSON Schema that the text is to fit"), **_detail()}
    settings = may(record({}, {**sampling, "max_objects": most, **variant, **form}))
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
    seen = [{"required": [name], "properties": {name: _something(video)}} for name, video in BESIDE.items()]
    spot, box = array(SHARE, 2, 2), array(SHARE, 4, 4)
    corners = record(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), SHARE))
    at = record({"x": SHARE, "y": SHARE}, {"x_min": {"not": {}}})
    refs = may(
        array({"anyOf": [spot, box, at, corners]}),
        "points [x, y], and boxes by two opposite corners [x0, y0, x1, y1], that the question is about",
    )
    named = [
        {"required": ["object"], "properties": {"object": FILLED}},
        {"required": ["obj"], "properties": {"object": NULL, "obj": FILLED}},
    ]
    found = {"object": {"description": "what to look for"}, "obj": {"description": "the same, where object is absent"}}
    unreferred = [*seen, {"properties": {"spatial_refs": {"enum": [None, []]}}}]
    eye = {"anyOf": [spot, record({"x": SHARE, "y": SHARE})], "description": "where the eyes of a person are"}
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
        "reasoning": may(FLAG, "think first, and say what was thought"),
        "spatial_refs": refs,
    }
    shared |= _beside()

    def about_an_image(schema: Json, *ways: list[Json]) -> Json:
        return {**schema, "allOf": [{"anyOf": way} for way in (seen, *ways)]}

    return {
        "CaptionRequest": about_an_image(record({}, {"length": length, **stream, **shared})),
        "QueryRequest": {**record(question, {**asked, **stream, **shared}), "anyOf": unreferred},
        "DetectRequest": about_an_image(record({}, found | shared), named),
        "PointRequest": about_an_image(record({}, {**found, "spatial_refs": refs, **shared}), named),
        "DetectGazeRequest": about_an_image(record({}, {**looks, **shared}), looking),
        "SegmentRequest": record({}, shared, "no model that there is can do this"),
    }
