"""JSON Schemas of requests.

What a schema cannot say is in its description; such requests are answered with 400 all the same.
"""

from typing import Any

from galago.messages import ATTACHED, HOLDERS, MEDIA_PARTS, TEXT_PARTS, TOOL_ROLES, media_members
from galago.server.bodies import Json
from galago.server.fields import DETAILS
from galago.server.openai import INSTEAD, MAX_CHOICES, UNSUPPORTED, UNUSED
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
    ref,
)
from galago.server.settings import MAX_TIMEOUT

_FALSY: list[Any] = [None, False, 0, "", [], {}]
_NOTHING: Json = {"enum": [None, [], {}]}
IMAGE_, VIDEO_ = "Image", "Video"
"""Names of schemas."""


def shown_schemas() -> Json:
    """What requests show, by the name of its schema."""
    detail = {"detail": may(TEXT, "low sees a large image as a whole only; all else is high")}
    return {
        "Image": _shown(IMAGE, detail),
        "Video": _shown(VIDEO, {}),
        "ImagePart": _part(False, detail),
        "VideoPart": _part(True, {}),
        "FilePart": record({"type": choice("file"), "file": record({"file_data": IMAGE}, detail)}),
    }


def _shown(itself: Json, more: Json) -> Json:
    """An image or a video, as itself or as an object around it, in the first member that is not null."""
    ways = [record({name: itself}, {**dict.fromkeys(HOLDERS[:i], NULL), **more}) for i, name in enumerate(HOLDERS)]
    return {"anyOf": [itself, *ways]}


def _part(video: bool, more: Json) -> Json:
    """A part that shows something, in the first member that is not null; `more` stands beside what is no object."""
    itself, names = VIDEO if video else IMAGE, media_members(video)
    objects = {"allOf": [{"type": "object"}, ref(VIDEO_ if video else IMAGE_)]}
    kind = {"type": choice(*(name for name, moves in MEDIA_PARTS.items() if moves is video and name != "file"))}
    before = [dict.fromkeys(names[:i], NULL) for i in range(len(names))]
    plain = [record({**kind, name: itself}, nulls | more) for name, nulls in zip(names, before, strict=True)]
    around = [record({**kind, name: objects}, nulls) for name, nulls in zip(names, before, strict=True)]
    return {"anyOf": plain + around}


def _beside(usual: str | None = None) -> Json:
    """What is shown with a message, or with a whole request, outside of its content."""
    told = f"as {usual}, as clients of other servers have it" if usual else "shown too, before the text; one or several"
    shown = {name: ref(VIDEO_ if video else IMAGE_) for name, video in ATTACHED.items()}
    return {
        name: {"anyOf": [_NOTHING, one, array(one)], "description": "what is looked at" if name == usual else told}
        for name, one in shown.items()
    }


def _something(video: bool) -> Json:
    """One or several."""
    one = ref(VIDEO_ if video else IMAGE_)
    return {"anyOf": [{"allOf": [one, {"not": _NOTHING}]}, array(one, 1)]}


def _sampling() -> Json:
    whole = {"anyOf": [{"type": "integer", "minimum": 1}, {"const": -1}]}
    less = {"type": "number", "minimum": -2, "maximum": 2}
    bias: Json = {"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"}, "maxProperties": 300}
    bias["additionalProperties"] = {"type": "number", "minimum": -100, "maximum": 100}
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
        "frequency_penalty": may(less, "taken from a token's logit as often as the text has it; 0 by default"),
        "presence_penalty": may(less, "taken from the logits of tokens that the text has; 0 by default"),
        "logit_bias": may(bias, "what is added to the logits of tokens, by their ids in the model's vocabulary"),
    }


def chat_request() -> Json:
    refusal = record({"type": choice("refusal"), "refusal": TEXT})
    falsy: Json = {"enum": _FALSY}
    none = dict.fromkeys(("tool_calls", "function_call", "audio"), falsy)
    function = record({"name": TEXT})
    calls = {"tool_calls": {"anyOf": [falsy, array(record({"function": function}))]}}
    calls["function_call"] = {"anyOf": [falsy, function]}
    nowhere = dict.fromkeys(ATTACHED, _NOTHING)

    def text(beside: Json) -> Json:
        return record({"type": choice(*TEXT_PARTS), "text": TEXT}, beside)

    def turn(roles: list[str], parts: list[Json], beside: Json) -> Json:
        content = may({"anyOf": [TEXT, array({"anyOf": [TEXT, *parts]})]})
        return record({"role": choice(*roles)}, {"content": content, **none, **beside})

    turns = [
        turn(["user", *TOOL_ROLES], [text(_beside()), ref("ImagePart"), ref("FilePart"), ref("VideoPart")], _beside()),
        turn(["system", "developer"], [text(nowhere)], nowhere),
        turn(["assistant"], [text(nowhere), refusal], {**nowhere, **calls}),
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
        "reasoning": may(FLAG, "think first; for a conversation without an answer in it"),
        "n": may({"type": "integer", "minimum": 1, "maximum": MAX_CHOICES}, "choices; 1 by default"),
        "logprobs": may(FLAG, "tell how likely each token was"),
        "top_logprobs": may({"type": "integer", "minimum": 0, "maximum": 20}, "likely tokens told with each"),
        "response_format": {**forms, "description": "json_object and json_schema make the text JSON of that form"},
        **_sampling(),
        **dict.fromkeys(UNUSED, may(array({}), "accepted, and not used: no model here calls them")),
        **_beside(),
        **unsupported,
    }
    streams = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
    tops = {"properties": {"top_logprobs": {"type": "integer"}}, "required": ["top_logprobs"]}
    told = {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]}
    thinks = {"properties": {"reasoning": {"const": True}}, "required": ["reasoning"]}
    single = {"items": {"properties": {"role": choice("system", "developer", "user", *TOOL_ROLES)}}}
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
    form = {"json_schema": may({"type": "object"}, "a JSON Schema that the text is to fit")}
    form["detail"] = may(choice(*DETAILS, ""), "low sees a large image as a whole only")
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
    seen = [{"required": [name], "properties": {name: _something(video)}} for name, video in ATTACHED.items()]
    spot, box = array(SHARE, 2, 2), array(SHARE, 4, 4)
    corners = record(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), SHARE))
    at = record({"x": SHARE, "y": SHARE}, {"x_min": {"not": {}}})
    refs = may(
        array({"anyOf": [spot, box, corners, at]}),
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
    shared |= _beside("image_url")

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
