"""ChartQA: questions about charts (arXiv 2203.10244, github.com/vis-nlp/ChartQA)."""

from functools import partial
from pathlib import Path
from typing import Any

from galago.lab.eval.answers import is_relaxed_match
from galago.lab.eval.case import Case, Cases, ModelAnswer, Task
from galago.lab.eval.files import find_file, read_json, sample_cases
from galago.lab.eval.score import Mark
from galago.request import Query

SPLITS = ("human", "augmented")
# As in Moondream's own evaluation.
PROMPT = (
    "Analyze the chart carefully, consider both visual features and data values, "
    "and provide a precise answer without any additional explanation or formatting. "
)


def cases(data: Path, count: int | None, seed: int) -> Cases:
    rows = []
    for split in SPLITS:
        name = f"test_{split}.json"
        found = read_json(find_file(data, name, f"test/{name}"))
        rows += [(f"{split}/{i}", split, row) for i, row in enumerate(found)]
    images = find_file(data, "png", "test/png")

    def case(place: int, of: tuple[str, str, dict[str, Any]]) -> Case:
        name, split, row = of
        told = partial(judge, split, row["label"])
        return Case(name, images / row["imgname"], Query(PROMPT + row["query"]), row["label"], told, place)

    return sample_cases(rows, count, seed, case)


def judge(split: str, true: str, answer: ModelAnswer) -> list[Mark]:
    right = float(is_relaxed_match(str(answer), true))
    return [Mark("relaxed", right, 1.0), Mark(split, right, 1.0)]


TASK = Task(
    "questions about charts; numbers may be off by 5 %",
    ("relaxed", *SPLITS),
    cases,
    "test_human.json, test_augmented.json, png/*.png",
)
