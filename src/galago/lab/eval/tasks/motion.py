"""Drawn clips of things that move, appear and leave, with exact answers, from any seed."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from galago.lab.eval.case import Case, Cases, Task
from galago.lab.eval.motion.score import MEASURES, clip_questions, judge
from galago.request import Query

COUNT = 500
"""Clips where no number is given."""


def cases(data: Path, count: int | None, seed: int) -> Cases:
    count = COUNT if count is None else count

    def each() -> Iterator[Case]:
        for place, (drawn, asked) in enumerate(clip_questions(seed, count)):
            for number, task in enumerate(asked):
                yield Case(
                    f"{place}/{number}", drawn.clip, Query(task.question), task.text, partial(judge, task), place
                )

    return Cases(count, each())


TASK = Task("drawn clips of any seed: what moves, where, how fast, in which order; needs no data", MEASURES, cases,
            clips=True, model="motion")  # fmt: skip
