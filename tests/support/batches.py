"""Pictures that `galago batch` is asked about, and what it wrote."""

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
from PIL import Image

ASKED = ("--caption", "short", "--detect", "cat", "--max-tokens", 3, "--max-objects", 2)
BROKEN = {"b.png": "is not an image", "d.png": "truncated", "f.png": "is empty"}
OUTPUTS = {"jsonl": "out.jsonl", "csv": "out.csv", "parquet": "out.parquet"}


def draw(path: Path, n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").rotate(20 * n).resize((70 + n, 50)).convert("RGB").save(path)


def draw_photos(folder: Path) -> Path:
    """Eight pictures in two folders, three of them broken, and files that are none."""
    for n, name in enumerate("abcdefg"):
        draw(folder / f"{name}.png", n)
    draw(folder / "2024" / "h.png", 9)
    (folder / "b.png").write_text("hello")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:300])
    (folder / "f.png").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, with texts where a format has nothing else."""
    if path.is_dir():
        return [row for part in sorted(path.iterdir()) for row in read(part)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            return [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return pyarrow.parquet.read_table(path).to_pylist()


def names(path: Path) -> list[str]:
    return [row["image"] for row in read(path)]


def summary(ran: Any) -> dict[str, Any]:
    return ran.json[-1]
