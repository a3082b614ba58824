"""What a task is made of: cases to ask a model, each of which judges its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galago.errors import InvalidRequest
from galago.lab.eval.score import Mark, Score
from galago.request import Skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.media.clip import Clip

ModelAnswer = str | Sequence[tuple[float, ...]]
"""Text; or the boxes, points or gaze (none or one point) that were found, 0..1."""


@dataclass(frozen=True)
class Case:
    """One question about one image or clip."""

    id: str
    """the same in every run over the same data"""
    media: Path | Image.Image | Clip
    """a path is that of an image"""
    skill: Skill
    truth: Any
    """for the record: what JSON can hold"""
    judge: Callable[[ModelAnswer], list[Mark]]
    """marks of the same measures, in the same order, for whatever answer"""
    place: int
    """which of Cases.total it belongs to, from 0"""


@dataclass(frozen=True)
class Cases:
    """The cases of a run, made as they are asked for."""

    total: int
    """scenes, images or questions: what --count counts"""
    each: Iterable[Case]

    def __iter__(self) -> Iterator[Case]:
        return iter(self.each)


CaseSource = Callable[[Path, int | None, int], Cases]
"""Of a folder of data, a number of scenes, images or questions (None for all) and a seed."""


@dataclass(frozen=True)
class Record:
    """One answer, as it stands in the file of a run."""

    id: str
    asked: str
    truth: Any
    answer: ModelAnswer
    marks: tuple[Mark, ...]
    tokens: int
    seconds: dict[str, float]
    shown: str = ""
    """name of the image or clip; empty: one of its own"""
    lacks: str = ""
    """what the model cannot do, in words, so that it was not asked; there are no marks then"""


@dataclass(frozen=True)
class Task:
    """A plug-in: each file in eval/tasks has one, named TASK. The name of the file is the name of the task."""

    about: str
    measures: tuple[str, ...]
    """in the order of a table"""
    cases: CaseSource
    files: str = ""
    """what is to be in the folder of data; empty where none is needed"""
    whole: Callable[[Sequence[Record]], dict[str, Score]] | None = None
    """measures that are not sums over answers"""
    distances: frozenset[str] = frozenset()
    """measures that are means of distances, the lower the better; all others are shares"""
    ranges: Mapping[int, CaseSource] = field(default_factory=dict)
    """cases by how wide a range they are drawn from, where there are several"""
    range: int | None = None
    """which of these `cases` is"""
    clips: bool = False
    """whether its cases show clips, whose frames can be shuffled"""
    model: str | None = None
    """who is asked where nobody is named; None: the catalogue's first"""

    def within(self, range: int | None) -> Task:
        """The task over another of its ranges; None leaves it at its own. Raises InvalidRequest."""
        if range is None:
            return self
        if range not in self.ranges:
            known = ", ".join(map(str, self.ranges)) or "none"
            raise InvalidRequest(f"no range {range}; of this task there are {known}", "range")
        return replace(self, cases=self.ranges[range], range=range)
