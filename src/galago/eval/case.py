"""What a task is made of: cases to ask a model, each of which judges its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galago.eval.score import Mark, Score
from galago.request import Skill

if TYPE_CHECKING:
    from PIL import Image

Answer = str | Sequence[tuple[float, ...]]
"""Text; or the boxes, points or gaze (none or one point) that were found, 0..1."""


@dataclass(frozen=True)
class Case:
    """One question about one image."""

    id: str
    """the same in every run over the same data"""
    image: Path | Image.Image
    skill: Skill
    truth: Any
    """for the record: what JSON can hold"""
    judge: Callable[[Answer], list[Mark]]
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


@dataclass(frozen=True)
class Record:
    """One answer, as it stands in the file of a run."""

    id: str
    asked: str
    truth: Any
    answer: Answer
    marks: tuple[Mark, ...]
    tokens: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Task:
    """A plug-in: each file in eval/tasks has one, named TASK. The name of the file is the name of the task."""

    about: str
    measures: tuple[str, ...]
    """in the order of a table"""
    cases: Callable[[Path, int | None, int], Cases]
    """of a folder of data, a number of scenes, images or questions (None for all) and a seed"""
    files: str = ""
    """what is to be in the folder of data; empty where none is needed"""
    whole: Callable[[Sequence[Record]], dict[str, Score]] | None = None
    """measures that are not sums over answers"""
    distances: frozenset[str] = frozenset()
    """measures that are means of distances, the lower the better; all others are shares"""
