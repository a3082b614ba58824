"""Whether the bundled model is as good at one seed as at another, in what few scenes ask about.

Two thousand scenes hold some 370 words to read: 3 points more or less are chance. This task asks 60,000 scenes what
is to be read, and every second of them about relations, shapes and gazes, and leaves out all that `galago eval
scenes` settles with some 10,000:

    galago eval benchmarks/scenes_seeds.py --seed 1
"""

from pathlib import Path

from galago.lab.eval.case import Cases, Task
from galago.lab.eval.scenes.question_mix import SceneQuestion
from galago.lab.eval.tasks import scenes

COUNT = 60_000
EVERY_SECOND = frozenset({"relation", "shape", "gaze"})


def wanted(place: int, task: SceneQuestion) -> bool:
    return task.kind == "read" or (place % 2 == 0 and task.kind in EVERY_SECOND)


def cases(data: Path, count: int | None, seed: int) -> Cases:
    return scenes.cases(data, COUNT if count is None else count, seed, wanted=wanted)


TASK = Task("drawn scenes, only what few of them ask about", ("relation", "read", "shape", "gaze"), cases)
