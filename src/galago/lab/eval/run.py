"""Asking a model all cases of a task, many at a time."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from galago.batch.each import each, raise_errors
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
    far of how much it is. Raises InvalidImage for an image that is missing, and what the engine raises.
    """
    known = {record.id: record for record in done}
    every, new = tee(cases)

    def request(case: Case) -> Request:
        return Request(case.skill, _open_media(case, blank, shuffled), priority="batch")

    found: list[Record] = []
    fresh = raise_errors(each((case for case in new if case.id not in known), request, model.submit, _make_record))
    with closing(fresh):
        for case in every:
            record = known.get(case.id) or next(fresh)
            if case.id not in known:
                keep(record)
            found.append(record)
            tell(case.place + 1, cases.total)
    return found


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
    shown = case.media.name if isinstance(case.media, Path) else str(case.place)
    return Record(case.id, question_text(case.skill), truth, plain, marks, done.usage.completion_tokens, seconds, shown)


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
