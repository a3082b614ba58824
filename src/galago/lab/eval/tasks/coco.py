"""COCO detection: val2017 (cocodataset.org), scored by pycocotools.

A model is asked of each image for each category that is in it, as in Moondream's own evaluation: asking for
all eighty would take eighty times as long. Nothing is said of how sure it is, so every box counts the same.
Average precision is thus not comparable with that of detectors.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from galago.errors import InvalidRequest
from galago.lab.eval.case import Case, Cases, ModelAnswer, Record, Task
from galago.lab.eval.files import find_file, read_json, sample_cases
from galago.lab.eval.places import clamp_box, count_matched_boxes
from galago.lab.eval.score import Mark, Score
from galago.request import Detect
from galago.values import Box

FILE = "instances_val2017.json"
MOST = 100
"""Boxes of one kind in an image: as many as the official evaluation looks at."""
GROUPS = 20
"""Groups of images that are left out in turn, for the interval."""


def cases(data: Path, count: int | None, seed: int) -> Cases:
    _import_pycocotools()  # Missing it is told before hours are spent.
    found = read_json(find_file(data, FILE, f"annotations/{FILE}"))
    images = find_file(data, "val2017", "images/val2017")
    names = {c["id"]: c["name"] for c in found["categories"]}
    by_image: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for a in found["annotations"]:
        by_image.setdefault(a["image_id"], {}).setdefault(a["category_id"], []).append(a)

    def case(place: int, row: dict[str, Any]) -> list[Case]:
        made = []
        for category, boxes in by_image.get(row["id"], {}).items():
            truth = {
                "image": row["id"],
                "category": category,
                "size": [row["width"], row["height"]],
                "boxes": [a["bbox"] for a in boxes],
                "crowd": [int(a.get("iscrowd", 0)) for a in boxes],
            }
            if not all(truth["crowd"]):
                told, name = partial(judge, truth), f"{row['id']}/{category}"
                skill = Detect(names[category], MOST)
                made.append(Case(name, images / row["file_name"], skill, truth, told, place))
        return made

    return sample_cases(found["images"], count, seed, case)


def judge(truth: dict[str, Any], answer: ModelAnswer) -> list[Mark]:
    """Boxes matched at an overlap of half, one to one; crowds are left out."""
    width, height = truth["size"]
    true: list[Box] = [
        (x / width, y / height, (x + w) / width, (y + h) / height)
        for (x, y, w, h), crowd in zip(truth["boxes"], truth["crowd"], strict=True)
        if not crowd
    ]
    right = float(count_matched_boxes([clamp_box(box) for box in answer], true))  # type: ignore[arg-type]
    return [
        Mark("precision50", right, len(answer)),
        Mark("recall50", right, len(true)),
        Mark("f1-50", right, (len(answer) + len(true)) / 2),
    ]


def average_precision(records: Sequence[Record]) -> dict[str, Score]:
    """Average precision over categories, and over overlaps from 0.5 to 0.95 or at 0.5.

    The interval is that of a jackknife over groups of images.
    """
    evaluation = _run_cocoeval(records)
    images = list(evaluation.params.imgIds)
    per_image = np.array(evaluation.evalImgs, dtype=object).reshape(-1, len(images))
    values = _precisions(evaluation, per_image, images)
    groups = min(GROUPS, len(images))
    without = []
    for group in range(groups if groups > 1 else 0):
        kept = [i for i in range(len(images)) if i % groups != group]
        without.append(_precisions(evaluation, per_image[:, kept], [images[i] for i in kept]))
    scores = {}
    for name, value, *left in zip(("map", "map50"), values, *without, strict=True):
        spread = math.inf
        if left:
            mean = sum(left) / groups
            spread = 1.96 * math.sqrt((groups - 1) / groups * sum((v - mean) ** 2 for v in left))
        scores[name] = Score(len(images), value, max(0.0, value - spread), min(1.0, value + spread))
    return scores


def _import_pycocotools() -> Any:
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise InvalidRequest("the task coco needs pycocotools: pip install 'galago[lab]'", "task") from error
    return coco, cocoeval


def _run_cocoeval(records: Sequence[Record]) -> Any:
    coco, cocoeval = _import_pycocotools()
    true: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for record in records:
        truth = record.truth
        of = {"image_id": truth["image"], "category_id": truth["category"]}
        for box, crowd in zip(truth["boxes"], truth["crowd"], strict=True):
            true.append(of | {"id": len(true) + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd})
        width, height = truth["size"]
        for box in record.answer:
            x0, y0, x1, y1 = clamp_box(box)  # type: ignore[arg-type]
            placed = [x0 * width, y0 * height, (x1 - x0) * width, (y1 - y0) * height]
            found.append(of | {"bbox": placed, "score": 1.0})
    images = [{"id": i} for i in sorted({r.truth["image"] for r in records})]
    categories = [{"id": i, "name": str(i)} for i in sorted({r.truth["category"] for r in records})]
    # It tells what it does on standard output.
    with contextlib.redirect_stdout(io.StringIO()):
        truths = coco.COCO()
        truths.dataset = {"images": images, "categories": categories, "annotations": true, "info": {}}
        truths.createIndex()
        results = truths.loadRes(found) if found else coco.COCO()
        evaluation = cocoeval.COCOeval(truths, results, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
    return evaluation


def _precisions(evaluation: Any, per_image: Any, images: list[int]) -> tuple[float, float]:
    """Over all overlaps, and at a half, of the categories that are there."""
    evaluation.params.imgIds = evaluation._paramsEval.imgIds = images
    evaluation.evalImgs = list(per_image.reshape(-1))
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    return _mean(precision), _mean(precision[:1])


def _mean(precision: Any) -> float:
    there = precision[precision > -1]
    return float(there.mean()) if there.size else 0.0


TASK = Task(
    "objects in photographs: average precision of the categories in each image, all boxes equally sure",
    ("map", "map50", "precision50", "recall50", "f1-50"),
    cases,
    f"annotations/{FILE}, val2017/*.jpg; pip install 'galago[lab]'",
    average_precision,
)
