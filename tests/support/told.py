"""A model that answers as it was told to."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

from PIL import Image

from galago.backends.backend import SKILLS, Facts
from galago.request import (
    Caption,
    Detect,
    Done,
    Event,
    GazeFound,
    ObjectFound,
    PointFound,
    Query,
    Request,
    Skill,
    Timings,
    Usage,
)


class Told:
    """Answers each request with what a function says: a text, or boxes or points."""

    name = model = "told"

    def __init__(self, answer: Callable[[Request], Any], lacks: Collection[type[Skill]] = ()) -> None:
        self.answer = answer
        self.facts = Facts("told", "told@1", "1", "float32", "cpu", "Python", frozenset(SKILLS) - frozenset(lacks))
        self.backend = self
        self.requests: list[Request] = []
        self.under_way = self.most = self.cancelled = 0

    def submit(self, request: Request) -> "ToldRun":
        self.requests.append(request)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        return ToldRun(self, request)

    @property
    def images(self) -> list[Image.Image]:
        return [r.image for r in self.requests if isinstance(r.image, Image.Image)]


class ToldRun:
    def __init__(self, model: Told, request: Request) -> None:
        self.model, self.request = model, request

    @property
    def ended(self) -> bool:
        """It answers when it is read."""
        return False

    def __iter__(self) -> Iterator[Event]:
        from galago.request import TextDelta

        answer = self.model.answer(self.request)
        self.model.under_way -= 1
        skill = self.request.skill
        if isinstance(skill, Caption | Query):
            yield from (TextDelta(piece) for piece in answer)
        elif isinstance(skill, Detect):
            yield from (ObjectFound(box) for box in answer)
        else:
            found = GazeFound if type(skill).__name__ == "DetectGaze" else PointFound
            yield from (found(point) for point in answer or [None])
        yield Done("stop", Usage(completion_tokens=len(answer)), Timings(total_s=0.5))

    def cancel(self) -> None:
        self.model.cancelled += 1
