"""Asking a model all cases of a task, many at a time."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from galago.backends.backend import SKILLS
from galago.batch.each import each
from galago.errors import GalagoError, UnsupportedTask
from galago.lab.eval.case import Case, Cases, ModelAnswer, Record
from galago.media.clip import Clip
from galago.media.image import load_image
from galago.media.load import open_image
from galago.media.picture import Picture
from galago.request import (
    Caption,
    Detect,
    Done,
    Event,
    GazeFound,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Request,
    Skill,
    TextDelta,
)

if TYPE_CHECKING:
    from galago.backends.backend import Run
    from galago.model import Model

GREY = (128, 128, 128)


def answer_cases(
    model: Model,
    cases: Cases,
    *,
    blank: bool = False,
    shuffled: bool = False,
    done: Sequence[Record] = (),
    keep: Callable[[Record], None] = lambda record: None,
    tell: Callable[[int, int], None] = lambda place, total: None,
) -> list[Record]:
    """Ask a model all cases, many at a time; the answers in the order of the cases, `done` ones among them.

    With `blank` the model sees grey images of the same size: what is guessed without looking; with `shuffled` the
    frames of clips in random order: what is told without the order of time. `keep` gets each new answer, `tell` how
    far of how much it is. A case of what the model cannot do is left out: its record says so. Raises UnsupportedTask
    where no other case is left, InvalidImage for an image that is missing, and what the engine raises.
    """
    known = {record.id: record for record in done}
    every, new = tee(cases)

    def request(case: Case) -> Request:
        model.backend.facts.check_skill(type(case.skill))  # before a picture is read for nothing
        return Request(case.skill, _open_media(case, blank, shuffled), priority="batch")

    found: list[Record] = []
    with closing(each((case for case in new if case.id not in known), request, model.submit, _make_record)) as fresh:
        for case in every:
            record = known.get(case.id) or _kept(case, next(fresh))
            if case.id not in known:
                keep(record)
            found.append(record)
            tell(case.place + 1, cases.total)
    if found and all(record.lacks for record in found):
        raise UnsupportedTask(f"{model.name} cannot {', '.join(left_out(found))}: no case is left")
    return found


def left_out(records: Sequence[Record]) -> dict[str, int]:
    """How many cases were left out, by what the model cannot do."""
    return dict(Counter(record.lacks for record in records if record.lacks))


def _kept(case: Case, result: Record | GalagoError) -> Record:
    """The record of an answer, or that the model has none. Raises other errors."""
    if isinstance(result, UnsupportedTask):
        truth = json.loads(json.dumps(case.truth))
        return Record(case.id, question_text(case.skill), truth, "", (), 0, {}, _name_of_media(case), _ability(case))
    if isinstance(result, GalagoError):
        raise result
    return result


def _ability(case: Case) -> str:
    """What a case takes of a model, in words."""
    if isinstance(case.media, Clip):
        return "look at clips"
    if isinstance(case.skill, Query) and case.skill.reasoning:
        return "reason before an answer"
    if isinstance(case.skill, Query) and case.skill.spatial_refs:
        return "answer questions about places in the image"
    return SKILLS[type(case.skill)]


def _open_media(case: Case, blank: bool, shuffled: bool) -> Image.Image | Picture | Clip:
    if not isinstance(case.media, Clip):
        image = load_image(case.media) if isinstance(case.media, Image.Image) else open_image(case.media)
        return _grey_image(image) if blank else image
    frames = tuple(map(_grey_image, case.media.frames)) if blank else case.media.frames
    if shuffled:
        # One order for all questions about a clip, which is then encoded once.
        frames = tuple(random.Random(case.place).sample(frames, len(frames)))
    return replace(case.media, frames=frames)


def _grey_image(image: Image.Image | Picture) -> Image.Image:
    return Image.new("RGB", image.size, GREY)


def _make_record(case: Case, request: Request, run: Run) -> Record:
    events = list(run)
    done = events[-1]
    assert isinstance(done, Done)
    answer = answer_from_events(case.skill, events)
    seconds = {name: round(value, 4) for name, value in asdict(done.timings).items()}
    marks = tuple(case.judge(answer))
    # As they come out of a file, so that runs of both kinds compare.
    truth, plain = json.loads(json.dumps([case.truth, answer]))
    tokens = done.usage.completion_tokens
    return Record(case.id, question_text(case.skill), truth, plain, marks, tokens, seconds, _name_of_media(case))


def _name_of_media(case: Case) -> str:
    return case.media.name if isinstance(case.media, Path) else str(case.place)


def answer_from_events(skill: Skill, events: Iterable[Event]) -> ModelAnswer:
    """The text of the events, or the places that were found."""
    if isinstance(skill, Caption | Query):
        return "".join(e.text for e in events if isinstance(e, TextDelta))
    found = [
        e.box if isinstance(e, ObjectFound) else e.point
        for e in events
        if isinstance(e, ObjectFound | PointFound | GazeFound)
    ]
    return [place for place in found if place is not None]


def question_text(skill: Skill) -> str:
    """What was asked, for people to read."""
    if isinstance(skill, Query):
        return skill.question + "".join(f" {ref}" for ref in skill.spatial_refs)
    if isinstance(skill, Detect | Point):
        return f"{type(skill).__name__.lower()} {skill.object}"
    return f"caption {skill.length}" if isinstance(skill, Caption) else "gaze"
