"""One question about each of a video's frames."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from PIL import Image

from galago.answers import collect_answer
from galago.arguments import SettingsDict, make_request
from galago.backends.backend import Run
from galago.batch.each import each, raise_errors
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
    settings: SettingsDict | None = None,
) -> Iterator[tuple[float, str]]:
    """(seconds, answer) for frames of a video, in their order; `spans` puts equal answers together.

    The video is a path, a URL, bytes, an open file or a Clip. Looked at are `fps` frames of each second, but
    `max_frames` (1..512) at the most, spread over the whole; of a Clip all of its frames. `settings` are those of
    Model.query. Raises InvalidVideo and InvalidRequest at once, and while it goes on what the engine raises. Ending it
    early cancels what is under way.
    """
    about = make_request(Query(question), None, settings, "batch")
    clip = video if isinstance(video, Clip) else load_clip(video, FrameSampling(fps, max_frames))

    def request(frame: tuple[float, Image.Image]) -> Request:
        return replace(about, image=frame[1])

    def answer(frame: tuple[float, Image.Image], _: Request, run: Run) -> tuple[float, str]:
        return frame[0], collect_answer(about.skill, run)["answer"].strip()

    return raise_errors(each(zip(clip.times, clip.frames, strict=True), request, model.submit, answer))


@dataclass(frozen=True)
class Span:
    """The answer from `start` until `end`, in seconds."""

    start: float
    end: float
    answer: str


def spans(answers: Iterable[tuple[float, str]], duration: float) -> Iterator[Span]:
    """Join equal answers to spans, each yielded when it is over; an answer holds until the time of the next frame.

    Case, spaces and the last full stop make no difference, and of an answer that begins with yes or no only that
    counts.
    """
    start, same, answer_text = 0.0, None, ""
    for time, answer in answers:
        meaning = _meaning(answer)
        if meaning == same:
            continue
        if same is not None:
            yield Span(start, time, answer_text)
        start, same, answer_text = time, meaning, meaning if meaning in ("yes", "no") else answer
    if same is not None:
        yield Span(start, max(duration, start), answer_text)


def _meaning(answer: str) -> str:
    plain = " ".join(answer.casefold().split()).rstrip(".!")
    verdict = re.match(r"(yes|no)\b", plain)
    return verdict[1] if verdict else plain
