"""TextVQA: questions about what is written in photographs (textvqa.org)."""

from functools import partial
from pathlib import Path
from typing import Any

from galago.lab.eval.answers import textvqa_accuracy
from galago.lab.eval.case import Case, Cases, ModelAnswer, Task
from galago.lab.eval.files import find_file, read_json, sample_cases
from galago.lab.eval.score import Mark
from galago.request import Query

FILE = "TextVQA_0.5.1_val.json"
# As in Moondream's own evaluation.
PROMPT = (
    "Read the text in the image and provide a brief lowercase answer. "
    "Respond 'unanswerable' only if there is no plausible answer. "
)


def cases(data: Path, count: int | None, seed: int) -> Cases:
    rows = read_json(find_file(data, FILE))["data"]
    images = find_file(data, "train_images", "train_val_images/train_images")

    def case(place: int, row: dict[str, Any]) -> Case:
        people = list(row["answers"])
        image = images / f"{row['image_id']}.jpg"
        return Case(
            str(row["question_id"]), image, Query(PROMPT + row["question"]), people, partial(judge, people), place
        )

    return sample_cases(rows, count, seed, case)


def judge(people: list[str], answer: ModelAnswer) -> list[Mark]:
    return [Mark("accuracy", textvqa_accuracy(str(answer), people), 1.0)]


TASK = Task("questions about text in photographs", ("accuracy",), cases, f"{FILE}, train_images/*.jpg")
