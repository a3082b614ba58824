"""Prompt ids of every skill in every revision, with the published templates."""

from pathlib import Path

import pytest
import tiny_moondream as tiny

from galago.errors import InvalidRequest
from galago.families.moondream import prompts
from galago.families.moondream.config import REVISIONS, MoondreamConfig, make_config
from galago.families.moondream.prompts import Coordinate, Size
from galago.families.tokenizer import Tokenizer, load_tokenizer
from galago.request import Message


def opened(folder: Path, revision: str) -> tuple[MoondreamConfig, Tokenizer]:
    c = make_config({}, REVISIONS[revision])
    tiny.tokenizer(c.revision.family).save(str(folder / "tokenizer.json"))
    return c, load_tokenizer(folder / "tokenizer.json")


LEGACY = {"short": (198, 198, 16438, 8305, 25), "normal": (198, 198, 24334, 1159, 25)}
LONG = {"long": (198, 198, 14617, 8305, 25)}
STARMIE = {"short": (1, 32708, 2, 12492, 3), "normal": (1, 32708, 2, 6382, 3), "long": (1, 32708, 2, 4059, 3)}


@pytest.mark.parametrize(
    ("revision", "captions", "question", "name"),
    [
        ("2025-01-09", LEGACY, "hi", "cat"),
        ("2025-03-27", LEGACY | LONG, " hi", " cat"),
        ("2025-04-14", LEGACY | LONG, " hi", " cat"),
        ("2025-06-21", STARMIE, "hi", " cat"),
    ],
)
def test_revision(
    tmp_path: Path, revision: str, captions: dict[str, tuple[int, ...]], question: str, name: str
) -> None:
    c, t = opened(tmp_path, revision)
    for length in ("short", "normal", "long"):
        if length in captions:
            assert prompts.caption(c, length) == captions[length]
        else:
            with pytest.raises(InvalidRequest, match=length) as error:
                prompts.caption(c, length)
            assert error.value.param == "length"
    if c.revision.family == "legacy":
        query = ((198, 198, 24361, 25), (198, 198, 33706, 25))
        detect, point, suffix = (198, 198, 47504, 25), (198, 198, 12727, 25), (628,)
    else:
        # The answer marker stands twice after a question.
        query, detect, point, suffix = ((1, 15381, 2), (3, 3)), (1, 7235, 476, 2), (1, 2581, 2), (3,)
    assert prompts.query(c, t, "hi") == (*query[0], *t.encode(question), *query[1])
    assert prompts.detect(c, t, "cat") == (*detect, *t.encode(name), *suffix)
    assert prompts.point(c, t, "cat") == (*point, *t.encode(name), *suffix)


def test_reasoning_and_places(tmp_path: Path) -> None:
    c, t = opened(tmp_path, "2025-06-21")
    refs = ((0.25, 0.5), (0.0, 0.25, 0.5, 1.0))
    found = prompts.query(c, t, "hi", reasoning=True, refs=refs)
    places = (Coordinate(0.25), Coordinate(0.5), Coordinate(0.25), Coordinate(0.625), Size(0.5, 0.75))
    assert found == (1, 15381, 2, *places, *t.encode("hi"), 3, 4)


@pytest.mark.parametrize("revision", ["2025-01-09", "2025-06-21"])
def test_gaze(tmp_path: Path, revision: str) -> None:
    _, t = opened(tmp_path, revision)
    found = prompts.gaze(t, (0.1, 0.9))
    assert found == (*t.encode("\n\nPoint:"), Coordinate(0.1), Coordinate(0.9), *t.encode(" gaze\n\n"))


TALK = (
    Message("system", "Be brief."),
    Message("user", "What is it?"),
    Message("assistant", "A cat."),
    Message("user", "Which colour?"),
)


@pytest.mark.parametrize(
    ("messages", "starmie", "legacy"),
    [
        (TALK[1:2], "What is it?", "What is it?"),
        (TALK[:2], "Be brief.\n\nWhat is it?", "Be brief.\n\nWhat is it?"),
        ((TALK[1], TALK[0], TALK[3]), *["Be brief.\n\nWhat is it?\n\nWhich colour?"] * 2),
        (
            TALK[1:],
            "Question: What is it?\n\nAnswer: A cat.\n\nQuestion: Which colour?",
            # The template brings the first label.
            "What is it?\n\nAnswer: A cat.\n\nQuestion: Which colour?",
        ),
        (
            TALK,
            "Be brief.\n\nQuestion: What is it?\n\nAnswer: A cat.\n\nQuestion: Which colour?",
            "Be brief.\n\nQuestion: What is it?\n\nAnswer: A cat.\n\nQuestion: Which colour?",
        ),
    ],
)
def test_conversation(tmp_path: Path, messages: tuple[Message, ...], starmie: str, legacy: str) -> None:
    assert prompts.conversation(opened(tmp_path, "2025-06-21")[0], messages) == starmie
    assert prompts.conversation(opened(tmp_path, "2025-04-14")[0], messages) == legacy
