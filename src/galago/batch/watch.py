"""One question asked of a video: of frame after frame."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from galago.answers import answer_of
from galago.arguments import Settings, request_of
from galago.backends.backend import Run
from galago.batch.each import each, raised
from galago.media.clip import Clip
from galago.media.source import FileSource
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip
from galago.request import Query, Request


class Submits(Protocol):
    """A Model, or a Backend itself."""

    def submit(self, request: Request) -> Run: ...


def watch(
    model: Submits,
    video: Clip | FileSource,
    question: str,
    *,
    fps: float = 1.0,
    max_frames: int = 64,
    settings: Settings | None = None,
) -> Iterator[tuple[float, str]]:
    """(seconds, answer) for frames of a video, in their order; `spans` puts equal answers together.

    The video is a path, a URL, bytes, an open file or a Clip. Looked at are `fps` frames of each second, but
    `max_frames` (1..512) at the most, spread over the whole; of a Clip all of its frames. `settings` are those of
    Model.query. Raises InvalidVideo and InvalidRequest at once, and while it goes on what the engine raises. Ending it
    early cancels what is under way.
    """
    about = request_of(Query(question), None, settings, "batch")
    clip = video if isinstance(video, Clip) else load_clip(video, FrameSampling(fps, max_frames))

    def request(shown: tuple[float, Image.Image]) -> Request:
        return replace(about, image=shown[1])

    def answer(shown: tuple[float, Image.Image], _: Request, run: Run) -> tuple[float, str]:
        return shown[0], answer_of(about.skill, run)["answer"].strip()

    return raised(each(zip(clip.times, clip.frames, strict=True), request, model.submit, answer))


@dataclass(frozen=True)
class Span:
    """From `start` until `end`, in seconds, the answer was this one."""

    start: float
    end: float
    answer: str


def spans(answers: Iterable[tuple[float, str]], duration: float) -> Iterator[Span]:
    """Equal answers together, each span as soon as it is over; an answer holds until the next frame was asked about.

    Case, spaces and the last full stop make no difference, and of an answer that begins with yes or no only that
    counts.
    """
    start, same, said = 0.0, None, ""
    for time, answer in answers:
        meant = _meaning(answer)
        if meant == same:
            continue
        if same is not None:
            yield Span(start, time, said)
        start, same, said = time, meant, meant if meant in ("yes", "no") else answer
    if same is not None:
        yield Span(start, max(duration, start), said)


def _meaning(answer: str) -> str:
    plain = " ".join(answer.casefold().split()).rstrip(".!")
    verdict = re.match(r"(yes|no)\b", plain)
    return verdict[1] if verdict else plain
