"""Replies that must be JSON, as the official client sees them: whatever the model would rather write, they fit."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from serving import ask

QUESTION = "What is in the image?"


def form(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def create(client: openai.OpenAI, *urls: str, **options: Any) -> Any:
    return client.chat.completions.create(model="any", messages=ask(QUESTION, *urls), **options)


SCALARS = [
    {"type": "string", "maxLength": 12},
    {"type": "string", "pattern": "^[a-c]{1,4}$"},
    {"type": "string", "format": "date"},
    {"type": "integer", "minimum": -5, "maximum": 300},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "blue", 3, None]},
    {"const": {"a": [1, "two"]}},
]
NAMES = ["color", "count", "where", "été", 'with "quotes"', "x"]


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def made(properties: dict[str, Any], required: set[str]) -> dict[str, Any]:
        wanted = sorted(required & set(properties))
        return {"type": "object", "properties": properties, "required": wanted, "additionalProperties": False}

    return st.builds(made, st.dictionaries(st.sampled_from(NAMES), inner, max_size=3), st.sets(st.sampled_from(NAMES)))


def lists(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def made(items: dict[str, Any], least: int, more: int) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}

    return st.builds(made, inner, st.integers(0, 2), st.integers(0, 2))


SCHEMA = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: objects(inner) | lists(inner) | st.lists(inner, min_size=1, max_size=3).map(lambda s: {"anyOf": s}),
    max_leaves=6,
)


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMA, temperature=st.sampled_from([0.0, 1.0, 2.0]), seed=st.integers(0, 99), stream=st.booleans())
def test_what_is_written_fits(
    bundled: openai.OpenAI, schema: dict[str, Any], temperature: float, seed: int, stream: bool
) -> None:
    options = {"response_format": form(schema), "temperature": temperature, "seed": seed, "max_tokens": 120}
    if stream:
        parts = [p.choices[0] for p in create(bundled, stream=True, **options)]
        text, reason = "".join(p.delta.content or "" for p in parts), parts[-1].finish_reason
    else:
        (choice,) = create(bundled, **options).choices
        text, reason = choice.message.content, choice.finish_reason
    if reason == "stop":
        jsonschema.validate(json.loads(text), schema)
    else:
        assert reason == "length"


@settings(max_examples=10, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMA, seed=st.integers(0, 99))
def test_a_model_of_random_weights_fits_too(client: openai.OpenAI, schema: dict[str, Any], seed: int) -> None:
    (choice,) = create(client, response_format=form(schema), temperature=2.0, seed=seed, max_tokens=120).choices
    if choice.finish_reason == "stop":
        jsonschema.validate(json.loads(choice.message.content), schema)


def test_a_short_schema_comes_to_its_end(bundled: openai.OpenAI, photo: str) -> None:
    """Else the tests above could pass with every reply cut."""
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema |= {"additionalProperties": False}
    (choice,) = create(bundled, photo, response_format=form(schema), max_tokens=40).choices
    assert choice.finish_reason == "stop"
    assert json.loads(choice.message.content)["a"] in ("x", "y")


def test_json_object(bundled: openai.OpenAI, photo: str) -> None:
    drawn = {"temperature": 1.0, "seed": 1, "max_tokens": 100, "n": 2}
    reply = create(bundled, photo, response_format={"type": "json_object"}, **drawn)
    for choice in reply.choices:
        assert choice.message.content.startswith("{")
        assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict)


def test_choices_each_fit(bundled: openai.OpenAI, photo: str) -> None:
    schema = {"type": "array", "items": {"enum": list("abcdefgh")}, "minItems": 3, "maxItems": 3}
    reply = create(bundled, photo, response_format=form(schema), n=3, temperature=2.0, seed=5, max_tokens=60)
    texts = [c.message.content for c in reply.choices]
    for text in texts:
        jsonschema.validate(json.loads(text), schema)
    assert len(set(texts)) > 1


class Color(StrEnum):
    red = "red"
    blue = "blue"


class Shape(BaseModel):
    color: Color
    sides: int = Field(ge=0, le=9)


class Scene(BaseModel):
    shapes: list[Shape] = Field(min_length=1, max_length=2)
    dark: bool


def test_parse_fills_a_pydantic_model(bundled: openai.OpenAI, photo: str) -> None:
    reply = bundled.chat.completions.parse(model="any", messages=ask(QUESTION, photo), response_format=Scene)
    assert isinstance(reply.choices[0].message.parsed, Scene)


def test_cut_at_the_limit(bundled: openai.OpenAI, photo: str) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        bundled.chat.completions.parse(model="any", messages=ask(QUESTION, photo), response_format=Scene, max_tokens=5)


def test_stop_string(bundled: openai.OpenAI, photo: str) -> None:
    """It cuts what would have been written."""
    options: dict[str, Any] = {"response_format": form({"const": {"a": "one", "b": "two"}}), "max_tokens": 60}
    (whole,) = create(bundled, photo, **options).choices
    assert json.loads(whole.message.content) == {"a": "one", "b": "two"}
    (cut,) = create(bundled, photo, stop='"b"', **options).choices
    assert cut.finish_reason == "stop"
    assert cut.message.content == whole.message.content.partition('"b"')[0]
    (same,) = create(bundled, photo, stop="nowhere", **options).choices
    assert same.message.content == whole.message.content


def test_plain_text_as_before(bundled: openai.OpenAI, photo: str) -> None:
    plain = create(bundled, photo, max_tokens=12)
    said = create(bundled, photo, max_tokens=12, response_format={"type": "text"})
    assert said.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.parametrize(
    ("schema", "part"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "object", "properties": {"a": {"if": {}}}}, "if"),
        ({"type": "object", "minProperties": 2}, "minProperties"),
        ({"type": "string", "format": "nonsense"}, "nonsense"),
        ({"type": "strin"}, "strin"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
        ({"$ref": "#/nowhere"}, "/nowhere"),
        ({"$ref": "http://127.0.0.1/schema"}, "127.0.0.1"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_enforced_is_said(
    client: openai.OpenAI, schema: dict[str, Any], part: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(client, response_format=form(schema), stream=stream)
    assert (raised.value.code, raised.value.param) == ("invalid_value", "response_format")
    assert part in raised.value.message


def test_nested_too_deeply(http: httpx.Client) -> None:
    deep = '{"not":' * 400 + "{}" + "}" * 400
    body = '{"messages": [{"role": "user", "content": "hi"}], "response_format": {"type": "json_schema", '
    reply = http.post("/v1/chat/completions", content=f'{body}"json_schema": {{"schema": {deep}}}}}}}')
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "response_format"


def test_python_settings() -> None:
    import galago

    count = {"type": "integer", "maximum": 9}
    schema = {"type": "object", "properties": {"n": count}, "required": ["n"], "additionalProperties": False}
    with galago.load() as model:
        answer = model.query(question=QUESTION, settings={"json_schema": schema, "max_tokens": 60})["answer"]
        assert json.loads(answer)["n"] <= 9
        with pytest.raises(galago.InvalidRequest, match="json_schema"):
            model.query(question=QUESTION, settings={"json_schema": "no"})
