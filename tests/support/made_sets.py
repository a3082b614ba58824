"""Tiny data sets in the formats of published ones."""

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

COCO_IMAGES = (9, 12)


def picture(file: Path, size: tuple[int, int] = (40, 20), shade: int = 90) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 120, 200)).save(file)


def _json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def vqav2(folder: Path) -> Path:
    rows = [
        (1, 42, "Is it red?", "yes/no", ["no"] * 10),
        (2, 42, "How many?", "number", ["2"] * 3 + ["3"] * 7),
        (3, 581929, "What is it?", "other", ["the cat"] * 2 + ["dog"] * 8),
    ]
    questions = [{"question_id": q, "image_id": i, "question": text} for q, i, text, _, _ in rows]
    annotations = [
        {
            "question_id": q,
            "image_id": i,
            "question_type": "what",
            "answer_type": kind,
            "multiple_choice_answer": people[-1],
            "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": n + 1} for n, a in enumerate(people)],
        }
        for q, i, _, kind, people in rows
    ]
    _json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions, "data_subtype": "val2014"})
    # In another order than the questions.
    _json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations[::-1]})
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    picture(folder / "val2014" / "COCO_val2014_000000581929.jpg")
    return folder


def textvqa(folder: Path) -> Path:
    rows = [
        {"question_id": 34602, "image_id": "003a8ae2ef43b901", "question": "what brand?", "answers": ["nokia"] * 10},
        {"question_id": 34603, "image_id": "003a8ae2ef43b901", "question": "what?", "answers": ["a", "b"] * 5},
    ]
    _json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    picture(folder / "train_images" / "003a8ae2ef43b901.jpg")
    return folder


def pope(folder: Path) -> Path:
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": n + 1, "image": "COCO_val2014_000000000042.jpg", "text": f"Is there a {w}?", "label": label}
            for n, (w, label) in enumerate([("cat", "yes"), ("dog", "no"), ("cup", "yes"), ("car", "no")])
        ]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"coco_pope_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    picture(folder / "val2014" / "COCO_val2014_000000000042.jpg")
    return folder


def countbench(folder: Path, form: str = "jsonl") -> Path:
    rows = [{"file_name": f"{n}.png", "question": f"How many {w}?", "number": n} for n, w in ((2, "cats"), (7, "cups"))]
    for row in rows:
        picture(folder / str(row["file_name"]))
    if form == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with (folder / "metadata.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "question", "number"])
            writer.writeheader()
            writer.writerows(rows)
    return folder


def chartqa(folder: Path) -> Path:
    human = [{"imgname": "166.png", "query": "How much?", "label": "200"}]
    augmented = [{"imgname": "two_columns.png", "query": "Which?", "label": "Lamb"}]
    _json(folder / "test" / "test_human.json", human)
    _json(folder / "test" / "test_augmented.json", augmented)
    picture(folder / "test" / "png" / "166.png")
    picture(folder / "test" / "png" / "two_columns.png")
    return folder


def gazefollow(folder: Path) -> Path:
    # Two people say where the first person looks, one where the second does.
    rows = [
        ("test2/00000000/00000000.jpg", (0.5, 0.25), (0.2, 0.6)),
        ("test2/00000000/00000000.jpg", (0.5, 0.25), (0.4, 0.6)),
        ("test2/00000000/00000001.jpg", (0.1, 0.1), (0.9, 0.9)),
    ]
    lines = [
        f"{path},{n},0.1,0.1,0.3,0.8,{ex},{ey},{gx},{gy},10,5,30,15,train/source.jpg,meta"
        for n, (path, (ex, ey), (gx, gy)) in enumerate(rows)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test_annotations_release.txt").write_text("\n".join(lines) + "\n")
    picture(folder / rows[0][0])
    picture(folder / rows[2][0])
    return folder


def coco(folder: Path) -> Path:
    """Image 9: two cats and a crowd of dogs. Image 12: one dog. Image 13: nothing."""
    boxes = [
        (1, 9, 17, [10, 10, 20, 20], 0),
        (2, 9, 17, [60, 10, 20, 20], 0),
        (3, 9, 18, [0, 0, 100, 50], 1),
        (4, 12, 18, [0, 0, 50, 40], 0),
    ]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": crowd}
        for n, i, c, b, crowd in boxes
    ]
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 100, "height": 50} for i in (*COCO_IMAGES, 13)]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    _json(
        folder / "annotations" / "instances_val2017.json",
        {"images": images, "annotations": annotations, "categories": categories},
    )
    for image in images:
        picture(folder / "val2017" / str(image["file_name"]), (100, 50))
    return folder
