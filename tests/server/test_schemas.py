"""What /openapi.json says of requests is what their readers accept."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from galago.errors import InvalidRequest, UnsupportedTask
from galago.server import manage, moondream
from galago.server.errors import Refused
from galago.server.openai import read_chat
from galago.server.openapi import SKILLS
from galago.server.schemas import schemas

SCHEMAS = schemas()
READERS: dict[str, Any] = {
    "ChatRequest": read_chat,
    "LoadRequest": manage.read_command,
    "UnloadRequest": manage.read_command,
    **{takes: moondream.PATHS[f"/v1/{skill}"] for skill, (takes, *_) in SKILLS.items()},
}
SAID_IN_WORDS = ("a conversation", "needs a message of the user")
"""Parts of the messages about what a schema cannot say, and the descriptions do."""
UNSUPPORTED = "the model cannot do this"

EDGES = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 0.5, 2.0, 2.5, 50, 2**63, "", " ", "x", "low", "text", "user", [], {}, [0.5, 0.5]]
)
JSON = st.recursive(
    EDGES | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SHARE = st.floats(0, 1)
PLACE = st.dictionaries(st.sampled_from(["x", "y", "x_min", "y_min", "x_max", "y_max"]), SHARE, max_size=6)
SPOT, BOX = st.lists(SHARE, min_size=2, max_size=2), st.lists(SHARE, min_size=4, max_size=4)
INLINE = st.just("QUJD") | EDGES
DETAIL = st.sampled_from(["low", "auto", "", "x", None, 7])
URL = st.just("QUJD") | st.fixed_dictionaries(
    {}, optional=dict.fromkeys(["url", "path", "base64", "data"], INLINE) | {"detail": DETAIL}
)
SHOWN_PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["image_url", "input_image", "image", "video_url", "video", "file"])},
    optional=dict.fromkeys(["image_url", "image", "video_url", "url", "base64", "source"], URL | EDGES)
    | {"detail": DETAIL, "file": st.fixed_dictionaries({}, optional={"file_data": INLINE, "detail": DETAIL}) | EDGES},
)
BESIDE = dict.fromkeys(["images", "image", "image_url", "video"], URL | EDGES | st.lists(URL, max_size=2))
TEXT_PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "refusal"]), "text": st.just("hi")}
) | (st.fixed_dictionaries({"type": st.just("text"), "text": st.just("hi")}, optional=BESIDE))
CALL = EDGES | st.fixed_dictionaries({"name": EDGES}, optional={"arguments": EDGES})
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "robot"])},
    optional={
        "content": st.text(max_size=3) | st.lists(TEXT_PART | SHOWN_PART | JSON, max_size=2) | JSON,
        "tool_calls": EDGES | st.lists(st.fixed_dictionaries({"function": CALL}), max_size=2),
        "function_call": CALL,
        **BESIDE,
    },
)
FORM = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
    optional={
        "json_schema": st.fixed_dictionaries({}, optional={"schema": EDGES, "name": EDGES}) | EDGES,
        "schema": EDGES,
    },
)
SAMPLING = {
    "temperature": st.floats(0, 2),
    "top_p": SHARE,
    "min_p": SHARE,
    "max_tokens": st.integers(-2, 9),
    "max_completion_tokens": st.integers(-2, 9),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=5),
    "top_k": st.integers(-2, 3),
    "repetition_penalty": st.floats(0, 2),
    "frequency_penalty": st.floats(-2.1, 2.1),
    "presence_penalty": st.floats(-2.1, 2.1),
    "logit_bias": st.dictionaries(st.sampled_from(["7", "007", "-7", "1e1", "x", ""]), st.floats(-101, 101) | EDGES),
}
NAMED = st.sampled_from(["x", "", " ", 7, None])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    **SAMPLING,
    "model": st.text(max_size=3),
    "messages": st.lists(TURN, max_size=3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": EDGES}),
    "reasoning": st.booleans(),
    "logprobs": st.booleans(),
    "top_logprobs": st.integers(-1, 21),
    "n": st.integers(0, 9),
    "response_format": FORM,
    **BESIDE,
    "question": NAMED,
    "object": NAMED,
    "obj": NAMED,
    "length": st.sampled_from(["short", "normal", "long", "tiny"]),
    "timeout": st.floats(-1, 10),
    "max_objects": st.integers(0, 5),
    "spatial_refs": st.lists(SPOT | BOX | PLACE | JSON, max_size=2),
    "eye": SPOT | st.fixed_dictionaries({"x": SHARE, "y": SHARE}),
    "face": BOX | st.fixed_dictionaries(dict.fromkeys(("x_min", "y_min", "x_max", "y_max"), SHARE)),
    "unstable_settings": st.fixed_dictionaries({}, optional={"force_detect": EDGES, "prioritize_accuracy": EDGES}),
    "settings": st.fixed_dictionaries(
        {},
        optional={
            **SAMPLING,
            "max_objects": EDGES,
            "variant": EDGES,
            "top_p": SHARE | JSON,
            "json_schema": EDGES,
            "detail": DETAIL,
        },
    ),
}
RIGHT = {
    "messages": [{"role": "user", "content": "hi"}],
    "image_url": "QUJD",
    "question": "What?",
    "object": "cat",
    "eye": [0.5, 0.5],
    "model": "scenes",
}


def right(name: str) -> dict[str, Any]:
    """A request that is accepted."""
    return {field: value for field, value in RIGHT.items() if field in SCHEMAS[name]["properties"]}


@st.composite
def bodies(draw: st.DrawFn, name: str) -> Any:
    """A request that is right but for a few fields, and sometimes anything."""
    if draw(st.integers(0, 20)) == 0:
        return draw(JSON)
    body = right(name)
    for field in draw(st.lists(st.sampled_from(sorted(SCHEMAS[name]["properties"])), max_size=3)):
        body[field] = draw(FIELDS[field] | FIELDS[field] | JSON) if field in FIELDS else draw(JSON)
    for field in draw(st.lists(st.sampled_from(sorted(body) or ["none"]), max_size=1)):
        body.pop(field, None)
    return body


@pytest.mark.parametrize("name", READERS)
def test_a_right_request_is_right_to_both(name: str) -> None:
    assert refusal(name, right(name)) in (None, UNSUPPORTED)
    validator_of(name).validate(right(name))


@pytest.mark.parametrize("name", READERS)
def test_schemas_and_readers_agree(name: str) -> None:
    validator = validator_of(name)

    @settings(max_examples=250, suppress_health_check=list(HealthCheck))
    @given(bodies(name))
    def agree(body: Any) -> None:
        said, valid = refusal(name, body), validator.is_valid(body)
        if said == UNSUPPORTED:
            return
        if said is None:
            assert valid, [error.message for error in validator.iter_errors(body)]
        elif valid:
            assert any(words in said for words in SAID_IN_WORDS) or said == "too_many_images", said

    agree()


def validator_of(name: str) -> Draft202012Validator:
    return Draft202012Validator({**SCHEMAS[name], "components": {"schemas": SCHEMAS}})


def refusal(name: str, body: Any) -> str | None:
    """What a reader has against a request."""
    try:
        READERS[name](json.dumps(body).encode())
    except UnsupportedTask:
        return UNSUPPORTED
    except Refused as error:
        return "too_many_images" if error.code == "too_many_images" else str(error)
    except InvalidRequest as error:
        return str(error)
    return None
