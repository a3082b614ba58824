"""What a constraint lets through, text by text: the tokens are the bytes of a tiny tokenizer."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import tiny_moondream as tiny

from galago.engine.constraint import Constraint, vocabulary
from galago.engine.shortest_end import Vocabulary
from galago.errors import GenerationFailed

SCHEMA = {"type": "object", "properties": {"ab": {"type": "integer"}}, "required": ["ab"]}
OPEN = SCHEMA | {"additionalProperties": True}
TOKENIZER = tiny.tokenizer()
EOS = tiny.EOS["starmie"]


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return vocabulary(TOKENIZER.to_str(), tiny.VOCAB, EOS)


def allowed(words: Vocabulary, schema: object, text: str) -> bool:
    """Whether the whole text can be written."""
    constraint = Constraint(words, json.dumps(schema))
    for token in (*TOKENIZER.encode(text).ids, EOS):
        logits = np.zeros(tiny.VOCAB, np.float32)
        constraint.mask(logits)
        if logits[token] == -np.inf:
            return False
        if token != EOS:
            constraint.accept(token)
    return True


def spellings(name: str) -> Iterator[str]:
    """The name with one of its letters escaped, in each way that JSON has."""
    letters = [json.dumps(letter, ensure_ascii=False)[1:-1] for letter in name]
    for i, letter in enumerate(name):
        for digits in (f"{ord(letter):04x}", f"{ord(letter):04X}"):
            yield "".join((*letters[:i], f"\\u{digits}", *letters[i + 1 :]))


@pytest.mark.parametrize("name", ["ab", "a/b", "né", "k\t", 'q"', "\x01"])
def test_another_spelling_of_a_listed_name_is_no_additional_member(words: Vocabulary, name: str) -> None:
    schema = {**OPEN, "properties": {name: {"type": "integer"}}, "required": [name]}
    plain = json.dumps(name, ensure_ascii=False)[1:-1]
    assert allowed(words, schema, f'{{"{plain}": 1}}') or name == "\x01"
    for other in {*spellings(name), plain.replace("/", "\\/")} - {plain}:
        text = f'{{"{plain}": 1, "{other}": "x"}}'
        assert json.loads(text) == {name: "x"}, "a reader would see what the schema forbids"
        assert not allowed(words, schema, text), text


@pytest.mark.parametrize("text", ['{"ab": 1, "b": "\\n\\t\\"\\\\"}', '{"ab": 1, "é": [1]}', '{"ab": 1, "ba": "a/b"}'])
def test_other_members_come_only_where_the_schema_speaks_of_them(words: Vocabulary, text: str) -> None:
    assert allowed(words, OPEN, text) and not allowed(words, SCHEMA, text)
    assert allowed(words, {"type": "object"}, text) and allowed(words, {"minProperties": 1, **SCHEMA}, text)


AB = {"properties": {"ab": SCHEMA}}


@pytest.mark.parametrize(
    "schema",
    [
        AB,
        {"properties": {"ab": {"$ref": "#/$defs/x"}}, "$defs": {"x": SCHEMA}},
        {"properties": {"ab": {"anyOf": [SCHEMA, {"type": "null"}]}}},
        {"patternProperties": {"^ab$": SCHEMA}, "additionalProperties": False},
    ],
)
def test_members_within_are_those_that_are_listed_too(words: Vocabulary, schema: dict[str, object]) -> None:
    assert allowed(words, schema, '{"ab": {"ab": 1}}')
    assert not allowed(words, schema, '{"ab": {"ab": 1, "b": 1}}')


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [SCHEMA, {"properties": {"b": {"type": "integer"}}, "required": ["b"]}]},
        {**SCHEMA, "anyOf": [{"properties": {"b": {"type": "integer"}}}]},
        {"$ref": "#/$defs/x", "required": ["b"], "$defs": {"x": SCHEMA}},
        {**SCHEMA, "required": ["ab", "b"]},
    ],
)
def test_members_that_another_part_lists_or_requires_are_not_shut_out(
    words: Vocabulary, schema: dict[str, object]
) -> None:
    assert allowed(words, schema, '{"ab": 1, "b": 1}')


def test_what_only_looks_like_a_schema_is_let_be(words: Vocabulary) -> None:
    assert allowed(words, {"enum": [AB]}, json.dumps(AB))


def test_what_is_not_allowed_cannot_be_taken(words: Vocabulary) -> None:
    constraint = Constraint(words, json.dumps(SCHEMA))
    with pytest.raises(GenerationFailed):
        constraint.accept(TOKENIZER.encode("x").ids[0])
