"""Drawn scenes with exact answers, from any seed and of each range."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from galago.lab.eval.case import Case, Cases, Task
from galago.lab.eval.scenes.question_mix import SceneQuestion
from galago.lab.eval.scenes.ranges import BUNDLED, RANGES, Range
from galago.lab.eval.scenes.score import MEASURES, judge, scene_questions, skill_of

COUNT = 500
"""Scenes where no number is given."""


def cases(
    data: Path,
    count: int | None,
    seed: int,
    of: Range = BUNDLED,
    wanted: Callable[[int, SceneQuestion], bool] = lambda place, task: True,
) -> Cases:
    """The first `count` scenes of a series, and those of their tasks that are wanted of the scene at a place."""
    count = COUNT if count is None else count

    def each() -> Iterator[Case]:
        for place, (scene, asked) in enumerate(scene_questions(seed, count, of)):
            for number, task in enumerate(asked):
                if wanted(place, task):
                    case_id = f"{place}/{number}"
                    yield Case(case_id, scene.image, skill_of(task), _truth(task), partial(judge, scene, task), place)

    return Cases(count, each())


def _truth(task: SceneQuestion) -> Any:
    if task.skill == "gaze":
        return task.points
    return task.boxes if task.skill in ("detect", "point") else task.text


TASK = Task(
    "drawn scenes of any seed: every skill; needs no data",
    MEASURES,
    cases,
    ranges={version: partial(cases, of=of) for version, of in RANGES.items()},
    range=BUNDLED.version,
    model="scenes",
)
