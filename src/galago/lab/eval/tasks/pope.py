"""POPE: is there such an object in the photograph? (arXiv 2305.10355)"""

from functools import partial
from pathlib import Path
from typing import Any

from galago.lab.eval.answers import says_yes
from galago.lab.eval.case import Case, Cases, ModelAnswer, Task
from galago.lab.eval.files import find_file, read_lines, sample_cases
from galago.lab.eval.score import Mark
from galago.request import Query

SPLITS = ("random", "popular", "adversarial")
PROMPT = "\nAnswer yes or no."
_EACH = ("accuracy", "precision", "recall", "f1", "yes-ratio")


def cases(data: Path, count: int | None, seed: int) -> Cases:
    rows = []
    for split in SPLITS:
        name = f"coco_pope_{split}.json"
        rows += [(split, row) for row in read_lines(find_file(data, name, f"coco/{name}"))]
    images = find_file(data, "val2014")

    def case(place: int, of: tuple[str, dict[str, Any]]) -> Case:
        split, row = of
        truth = {"yes": True, "no": False}[row["label"].strip().lower()]
        told = partial(judge, split, truth)
        name = f"{split}/{row['question_id']}"
        return Case(name, images / row["image"], Query(row["text"] + PROMPT), row["label"], told, place)

    return sample_cases(rows, count, seed, case)


def judge(split: str, true: bool, answer: ModelAnswer) -> list[Mark]:
    yes = says_yes(str(answer))
    both = float(yes and true)
    marks = []
    for prefix in ("", f"{split}-"):
        marks += [
            Mark(f"{prefix}accuracy", float(yes == true), 1.0),
            Mark(f"{prefix}precision", both, float(yes)),
            Mark(f"{prefix}recall", both, float(true)),
            Mark(f"{prefix}f1", both, (yes + true) / 2),
            Mark(f"{prefix}yes-ratio", float(yes), 1.0),
        ]
    return marks


TASK = Task(
    "is there such an object in a photograph; yes is the positive answer",
    tuple(f"{prefix}{measure}" for prefix in ("", *(f"{s}-" for s in SPLITS)) for measure in _EACH),
    cases,
    "coco_pope_{random,popular,adversarial}.json, val2014/COCO_val2014_*.jpg",
)
