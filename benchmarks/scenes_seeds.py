"""Whether the bundled model is as good at one seed as at another, in what few scenes ask about.

Two thousand scenes hold some 370 words to read: 3 points more or less are chance. This task asks 60,000 scenes what
is to be read, and every second of them about relations, shapes and gazes, and leaves out all that `galago eval
scenes` settles with 10,000:

    galago eval benchmarks/scenes_seeds.py --seed 1
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from galago.eval.case import Case, Cases, Task
from galago.eval.scenes.score import cases as scenes
from galago.eval.scenes.score import judge, skill_of

COUNT = 60_000
EVERY = frozenset({"read"})
EVERY_SECOND = frozenset({"relation", "shape", "gaze"})


def cases(data: Path, count: int | None, seed: int) -> Cases:
    count = COUNT if count is None else count

    def each() -> Iterator[Case]:
        for place, (scene, asked) in enumerate(scenes(seed, count)):
            kinds = EVERY if place % 2 else EVERY | EVERY_SECOND
            for number, task in enumerate(asked):
                if task.kind in kinds:
                    truth = task.points if task.skill == "gaze" else task.text
                    yield Case(
                        f"{place}/{number}", scene.image, skill_of(task), truth, partial(judge, scene, task), place
                    )

    return Cases(count, each())


TASK = Task("drawn scenes, only what few of them ask about", ("relation", "read", "shape", "gaze"), cases)
