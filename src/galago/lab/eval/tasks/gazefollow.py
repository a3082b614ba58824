"""GazeFollow: where does this person look? (gazefollow.csail.mit.edu, the extended release)"""

import csv
import math
from functools import partial
from pathlib import Path

from galago.lab.eval.case import Case, Cases, ModelAnswer, Task
from galago.lab.eval.files import find_file, sample_cases
from galago.lab.eval.score import Mark
from galago.request import DetectGaze
from galago.values import Spot

FILE = "test_annotations_release.txt"
PATH, EYE, GAZE = 0, slice(6, 8), slice(8, 10)
"""Columns of the file; positions are relative to the image."""


def cases(data: Path, count: int | None, seed: int) -> Cases:
    with find_file(data, FILE).open(encoding="utf-8-sig", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    # A line for each of about ten people who said where they think that this person looks.
    people: dict[tuple[str, str], list[list[str]]] = {}
    for row in rows:
        people.setdefault((row[PATH], ",".join(row[EYE])), []).append(row)

    def case(place: int, of: tuple[str, list[list[str]]]) -> Case:
        name, seen = of
        targets = [_parse_spot(row[GAZE]) for row in seen]
        x, y = (min(max(v, 0.0), 1.0) for v in _parse_spot(seen[0][EYE]))
        return Case(name, data / seen[0][PATH], DetectGaze(eye=(x, y)), targets, partial(judge, targets), place)

    return sample_cases([(f"{path}@{eye}", seen) for (path, eye), seen in people.items()], count, seed, case)


def _parse_spot(values: list[str]) -> Spot:
    x, y = (float(v) for v in values)
    return x, y


def judge(targets: list[Spot], answer: ModelAnswer) -> list[Mark]:
    """Distances in parts of the image's sides. The area under the curve would take a map, not a point.

    Everybody in this set looks at something within the image. Where the model says otherwise, that is not
    found, within no distance, and left out of the mean distances.
    """
    assert not isinstance(answer, str)
    middle = (sum(t[0] for t in targets) / len(targets), sum(t[1] for t in targets) / len(targets))
    found = len(answer)
    distances = [math.dist(point, middle) for point in answer]
    nearest = [min(math.dist(point, target) for target in targets) for point in answer]
    return [
        Mark("found", found, 1.0),
        Mark("distance", sum(distances), found),
        Mark("min-distance", sum(nearest), found),
        Mark("within-0.1", sum(d <= 0.1 for d in distances), 1.0),
        Mark("within-0.15", sum(d <= 0.15 for d in distances), 1.0),
    ]


TASK = Task(
    "where people in photographs look: distance to the mean of what people said, and to the nearest",
    ("found", "distance", "min-distance", "within-0.1", "within-0.15"),
    cases,
    f"{FILE}, test2/**/*.jpg",
    distances=frozenset({"distance", "min-distance"}),
)
