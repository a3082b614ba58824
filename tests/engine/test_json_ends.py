"""JSON that ends: bounded numbers and blanks, and a valid text whenever the limit on tokens has room for one.

The schemas by hand are those of which users of other servers told that a reply never ended or was cut: blanks
(vLLM 38696, oMLX 2990), digits (llama.cpp 6555, Outlines 1157, gemini cookbook 1288), items without end (imp 1014).
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import tiny_moondream as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from galago.engine.constraint import Constraint, vocabulary
from galago.engine.sampling import FloatArray, Sampler
from galago.request import Done, Query, Request, Sampling, TextDelta

TOKENIZER = tiny.tokenizer()
EOS = tiny.EOS["starmie"]
WORDS = vocabulary(TOKENIZER.to_str(), tiny.VOCAB, EOS)
NAMES = ("a", "bb", "c d", "Ünit")
Schema = dict[str, Any]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def preferring(*texts: str) -> FloatArray:
    """Logits of a model that wants to write these bytes, the first most, and never to end."""
    logits = np.zeros(tiny.VOCAB, np.float32)
    for text in reversed(texts):
        logits[ids(text)] = logits.max() + 1
    logits[EOS] = -50
    return logits


def write(schema: Schema, limit: int, logits: FloatArray | int) -> tuple[str, bool]:
    """What such a model, or a random one of this seed, writes in at most `limit` tokens; whether that changed it."""
    constraint, tokens = Constraint(WORDS, json.dumps(schema)), list[int]()
    random = np.random.default_rng(logits) if isinstance(logits, int) else None
    sampler = Sampler(Sampling(temperature=1.0 if random else 0.0, seed=7))
    while len(tokens) < limit and not constraint.is_complete:
        row = random.normal(0, 3, tiny.VOCAB).astype(np.float32) if random else np.copy(logits)
        token = sampler.draw(row, constraint, limit - len(tokens))
        if token == EOS:
            break
        tokens.append(token)
    return TOKENIZER.decode(tokens), constraint.is_shortened


def shortest(schema: Schema) -> int:
    """The fewest bytes of a text that fits one of the schemas below, as json.dumps writes it."""
    if "enum" in schema:
        return min(len(json.dumps(value, ensure_ascii=False).encode()) for value in schema["enum"])
    if "anyOf" in schema:
        return min(map(shortest, schema["anyOf"]))
    match schema["type"]:
        case "string":
            return 2 + int(schema.get("minLength", 0))
        case "integer":
            return len(str(max(schema.get("minimum", 0), 0)))
        case "number":
            return 1
        case "array":
            n = schema.get("minItems", 0)
            return 2 + int(n) * shortest(schema["items"]) + 2 * max(n - 1, 0)
        case "object":
            members = [len(name.encode()) + 4 + shortest(schema["properties"][name]) for name in schema["required"]]
            return 2 + sum(members) + 2 * max(len(members) - 1, 0)
        case _:
            return 4


LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "number"}, {"type": "integer"}]),
    st.builds(lambda n: {"type": "string", "minLength": n}, st.integers(0, 5)),
    st.builds(lambda n: {"type": "integer", "minimum": n}, st.integers(0, 12345)),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text("abcé", min_size=1, max_size=9) | st.integers(0, 99999), min_size=1, max_size=5, unique=True),
    ),
)


def _object(members: dict[str, tuple[Schema, bool]]) -> Schema:
    return {
        "type": "object",
        "properties": {name: schema for name, (schema, _) in members.items()},
        "required": [name for name, (_, needed) in members.items() if needed],
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(lambda items, n: {"type": "array", "items": items, "minItems": n}, inner, st.integers(0, 3)),
        st.builds(_object, st.dictionaries(st.sampled_from(NAMES), st.tuples(inner, st.booleans()), max_size=3)),
        st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True)  # the search may miss a way, in one of some 1,000
@given(SCHEMAS, st.integers(0, 12), st.integers(0, 2**32))
def test_a_reply_fits_its_schema_where_the_limit_has_room_for_any(schema: Schema, spare: int, seed: int) -> None:
    text, _ = write(schema, shortest(schema) + spare, seed)
    jsonschema.validate(json.loads(text), schema)


def test_members_that_may_be_left_out_are() -> None:
    """As pydantic writes models whose members mostly have defaults."""
    inner = _object({name: ({"type": "number"}, True) for name in ("x", "y", "w")})
    items = {"type": "array", "items": inner, "minItems": 3}
    names = ("animal", "camera", "description", "events", "ground", "height", "items")
    outer = _object({**dict.fromkeys(names, (items, False)), "label": (items, True)})
    schema = _object({**dict.fromkeys(names, (outer, False)), "label": (outer, True)})
    for limit in (shortest(schema), shortest(schema) + 40, 600):
        for seed in range(3):
            jsonschema.validate(json.loads(write(schema, limit, seed)[0]), schema)


ENDLESS = [
    ({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}, preferring("0", "1")),
    ({"type": "object", "properties": {"w": {"type": "number"}}, "required": ["w"]}, preferring("0", ".", "1")),
    ({"type": "number"}, preferring("e", "9")),
    ({"type": "array", "items": {"type": "string"}}, preferring("t", ",", '"')),
    ({"type": "array", "items": {"enum": ["tech", "sports"]}, "minItems": 2}, preferring(",", '"', "t")),
    ({"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}, preferring(" ", "\n")),
    ({"type": "object"}, preferring("{", "[", '"', "a")),
    ({"type": "string", "pattern": "^[a-z]+@[a-z]+$"}, preferring("a")),
    ({}, preferring("[", '"')),
    ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}, preferring("[", ",")),
]


@pytest.mark.parametrize(("schema", "logits"), ENDLESS)
def test_what_never_learnt_to_stop_still_writes_json(schema: Schema, logits: FloatArray) -> None:
    for limit in (16, 29, 60, 200):
        text, _ = write(schema, limit, logits)
        value = json.loads(text)
        jsonschema.validate(value, schema)


@pytest.mark.parametrize("schema", [{"type": "integer"}, {"type": "number"}, {"type": "array", "items": {}}])
@pytest.mark.parametrize("first", ["9", ".", "e", "-"])
def test_numbers_have_at_most_nineteen_digits(schema: Schema, first: str) -> None:
    text, _ = write(schema, 300, preferring(first, "7", ",", "["))
    numbers = re.findall(r"[-+.eE\d]+", text)
    assert max(len(re.sub(r"\D", "", number)) for number in numbers) <= 19
    json.loads(text)


def test_a_schema_may_ask_for_more_digits() -> None:
    assert json.loads(write({"const": 1e-25}, 40, preferring("5"))[0]) == 1e-25


def test_digits_in_strings_are_not_counted() -> None:
    text, shortened = write({"type": "string", "maxLength": 40}, 60, preferring("5"))
    assert json.loads(text) == "5" * 40
    assert not shortened


def test_a_schema_cannot_let_blanks_in() -> None:
    schema = {"type": "array", "items": {"type": "null"}, "maxItems": 3, "x-guidance": {"whitespace_pattern": r"\s+"}}
    assert write(schema, 60, preferring(" ", "\n", "n"))[0] == "[null, null, null]"


def test_a_limit_that_was_not_felt_changes_nothing() -> None:
    schema = {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}
    assert write(schema, 14, preferring("t", "f")) == ("[true, true]", False)
    assert write(schema, 12, preferring("t", "f")) == ("[true, true]", False)
    assert write(schema, 11, preferring("t", "f")) == ("[true]", True)


def test_what_has_no_room_for_any_end_is_cut() -> None:
    assert write({"enum": ["abcdefgh"]}, 5, preferring("a")) == ('"abcd', False)


def test_the_reason_tells_whether_the_limit_was_felt(tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    }
    schema |= {"additionalProperties": False}
    reasons = set()
    with tiny.open_model(tiny.write(tmp_path / "tiny")) as model:
        for limit in range(len('{"a": "", "b": 0}'), 75):
            sampling = Sampling(1.0, seed=limit, max_tokens=limit, json_schema=json.dumps(schema))
            *pieces, done = model.submit(Request(Query("?"), tiny.IMAGE, sampling))
            assert isinstance(done, Done)
            jsonschema.validate(json.loads("".join(p.text for p in pieces if isinstance(p, TextDelta))), schema)
            reasons.add(done.finish_reason)
    assert "length" in reasons
