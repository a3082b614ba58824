"""VQAv2: questions about photographs, ten people's answers each (visualqa.org)."""

from functools import partial
from pathlib import Path
from typing import Any

from galago.lab.eval.answers import vqa_accuracy
from galago.lab.eval.case import Case, Cases, ModelAnswer, Task
from galago.lab.eval.files import find_file, read_json, sample_cases
from galago.lab.eval.score import Mark
from galago.request import Query

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
PROMPT = "Give a brief lowercase answer. "
KINDS = {"yes/no": "yes-no", "number": "number", "other": "other"}


def cases(data: Path, count: int | None, seed: int) -> Cases:
    questions, annotations = read_json(find_file(data, QUESTIONS)), read_json(find_file(data, ANNOTATIONS))
    images = find_file(data, "val2014")
    by_id = {a["question_id"]: a for a in annotations["annotations"]}

    def case(place: int, row: dict[str, Any]) -> Case:
        annotation = by_id[row["question_id"]]
        people = [a["answer"] for a in annotation["answers"]]
        image = images / f"COCO_val2014_{row['image_id']:012d}.jpg"
        told = partial(judge, KINDS[annotation["answer_type"]], people)
        return Case(str(row["question_id"]), image, Query(PROMPT + row["question"]), people, told, place)

    return sample_cases(questions["questions"], count, seed, case)


def judge(kind: str, people: list[str], answer: ModelAnswer) -> list[Mark]:
    accuracy = vqa_accuracy(str(answer), people)
    return [Mark("accuracy", accuracy, 1.0), Mark(kind, accuracy, 1.0)]


TASK = Task(
    "questions about photographs, ten people's answers each; the official accuracy",
    ("accuracy", *KINDS.values()),
    cases,
    f"{QUESTIONS}, {ANNOTATIONS}, val2014/COCO_val2014_*.jpg",
)
