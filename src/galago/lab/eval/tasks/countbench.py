"""CountBenchQA: how many of them are there? (huggingface.co/datasets/vikhyatk/CountBenchQA)"""

import csv
from functools import partial
from pathlib import Path
from typing import Any

from galago.errors import InvalidRequest
from galago.lab.eval.answers import normalize_answer
from galago.lab.eval.case import Case, Cases, ModelAnswer, Task
from galago.lab.eval.files import read_lines, sample_cases
from galago.lab.eval.score import Mark
from galago.request import Query

# As in Moondream's own evaluation.
PROMPT = "Look at the image carefully and count the objects. Answer with just a number, without any additional text. "
EXPORT = (
    "the published Parquet file is not read; export it with the package datasets as an image folder: "
    'each row["image"].save(f"{i}.png"), and {"file_name", "question", "number"} as a line of metadata.jsonl'
)


def cases(data: Path, count: int | None, seed: int) -> Cases:
    def case(place: int, row: dict[str, Any]) -> Case:
        number = int(row["number"])
        name = row["file_name"]
        question = Query(PROMPT + row["question"])
        return Case(str(place_of[name]), data / name, question, number, partial(judge, number), place)

    rows = _read_rows(data)
    place_of = {row.get("file_name"): i for i, row in enumerate(rows)}
    return sample_cases(rows, count, seed, case)


def _read_rows(data: Path) -> list[dict[str, Any]]:
    if (data / "metadata.jsonl").is_file():
        return read_lines(data / "metadata.jsonl")
    if (data / "metadata.csv").is_file():
        with (data / "metadata.csv").open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    raise InvalidRequest(f"{data} has no metadata.jsonl or metadata.csv; {EXPORT}", "data")


def judge(number: int, answer: ModelAnswer) -> list[Mark]:
    return [Mark("accuracy", float(normalize_answer(str(answer)) == str(number)), 1.0)]


TASK = Task(
    "counting things in photographs",
    ("accuracy",),
    cases,
    "metadata.jsonl or metadata.csv (file_name, question, number), and the images",
)
