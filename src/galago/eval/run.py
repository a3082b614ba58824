"""Asking a model all cases of a task, many at a time."""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from galago.eval.case import Answer, Case, Cases, Record
from galago.media.clip import Clip
from galago.media.image import load_image
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
from galago.threads import begin

if TYPE_CHECKING:
    from galago.engine.engine import Run
    from galago.model import Model

IN_FLIGHT = 32
"""Requests at a time: twice what an engine carries out at once, so that it never waits for the next."""
READERS = 2
"""Threads that open images."""
GREY = (128, 128, 128)


def answers(
    model: Model,
    cases: Cases,
    *,
    blank: bool = False,
    shuffled: bool = False,
    done: Sequence[Record] = (),
    keep: Callable[[Record], None] = lambda record: None,
    tell: Callable[[int, int], None] = lambda place, total: None,
) -> list[Record]:
    """The answers to all cases, in their order, those that are `done` among them.

    With `blank` the model sees grey images of the same size: what is guessed without looking; with `shuffled` the
    frames of clips in random order: what is told without the order of time. `keep` gets each new answer, `tell` how
    far of how much it is. Raises InvalidImage for an image that is missing, and what the engine raises.
    """
    known = {record.id: record for record in done}
    found: list[Record] = []
    with ThreadPoolExecutor(READERS) as readers:
        waiting = _ahead(cases, known, lambda case: begin(readers, _opened, case, blank, shuffled))
        flying: deque[tuple[Case, Run | None]] = deque()
        try:
            while True:
                for case, media in islice(waiting, IN_FLIGHT - len(flying)):
                    flying.append((case, None if media is None else _submitted(model, case, media.result())))
                if not flying:
                    return found
                case, run = flying.popleft()
                record = known[case.id] if run is None else _record(case, run)
                if run is not None:
                    keep(record)
                found.append(record)
                tell(case.place + 1, cases.total)
        finally:
            for _, run in flying:
                if run is not None:
                    run.cancel()
            readers.shutdown(cancel_futures=True)


def _ahead(
    cases: Iterable[Case], known: dict[str, Record], read: Callable[[Case], Future[Image.Image | Clip]]
) -> Iterator[tuple[Case, Future[Image.Image | Clip] | None]]:
    """Cases whose media are being opened, a few ahead; None where nothing is to be asked."""
    soon: deque[tuple[Case, Future[Image.Image | Clip] | None]] = deque()
    for case in cases:
        soon.append((case, None if case.id in known else read(case)))
        if len(soon) > 2 * READERS:
            yield soon.popleft()
    yield from soon


def _opened(case: Case, blank: bool, shuffled: bool) -> Image.Image | Clip:
    if not isinstance(case.media, Clip):
        image = load_image(case.media)
        return _grey(image) if blank else image
    frames = tuple(map(_grey, case.media.frames)) if blank else case.media.frames
    if shuffled:
        # One order for all questions about a clip, which is then encoded once.
        frames = tuple(random.Random(case.place).sample(frames, len(frames)))
    return replace(case.media, frames=frames)


def _grey(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, GREY)


def _submitted(model: Model, case: Case, media: Image.Image | Clip) -> Run:
    return model.submit(Request(case.skill, media, priority="batch"))


def _record(case: Case, run: Run) -> Record:
    events = list(run)
    done = events[-1]
    assert isinstance(done, Done)
    answer = answer_of(case.skill, events)
    seconds = {name: round(value, 4) for name, value in asdict(done.timings).items()}
    marks = tuple(case.judge(answer))
    # As they come out of a file, so that runs of both kinds compare.
    truth, plain = json.loads(json.dumps([case.truth, answer]))
    shown = case.media.name if isinstance(case.media, Path) else str(case.place)
    return Record(case.id, asked(case.skill), truth, plain, marks, done.usage.completion_tokens, seconds, shown)


def answer_of(skill: Skill, events: Iterable[Event]) -> Answer:
    """What was said, or found."""
    if isinstance(skill, Caption | Query):
        return "".join(e.text for e in events if isinstance(e, TextDelta))
    found = [
        e.box if isinstance(e, ObjectFound) else e.point
        for e in events
        if isinstance(e, ObjectFound | PointFound | GazeFound)
    ]
    return [place for place in found if place is not None]


def asked(skill: Skill) -> str:
    """What was asked, for people to read."""
    if isinstance(skill, Query):
        return skill.question + "".join(f" {ref}" for ref in skill.spatial_refs)
    if isinstance(skill, Detect | Point):
        return f"{type(skill).__name__.lower()} {skill.object}"
    return f"caption {skill.length}" if isinstance(skill, Caption) else "gaze"
