"""The file of a run: JSON lines, first its settings, then every answer in the order of the cases."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from galago.errors import InvalidRequest
from galago.lab.eval.case import Record
from galago.lab.eval.score import Mark
from galago.system.files import try_lock

RUN_KEYS = ("task", "model", "weights", "revision", "precision", "seed", "count", "range", "blank", "shuffled")
"""Settings that two parts of one run share."""


def read_journal(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """The settings and answers in a file; a last line that was cut off is left out. Raises InvalidRequest."""
    try:
        settings, records, _ = _parse(path.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InvalidRequest(f"cannot read {path} as answers of galago eval: {error}", "out") from error
    return settings, records


@contextmanager
def open_journal(
    path: Path | None, settings: Mapping[str, Any]
) -> Iterator[tuple[list[Record], Callable[[Record], None]]]:
    """Yield the answers that the file of a run has, and a function that adds one. Without a path nothing is kept.

    Raises InvalidRequest where the file is of another run or cannot be written.
    """
    if path is None:
        yield [], lambda record: None
        return
    done: list[Record] = []
    try:
        file = path.open("ab")
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror or error}", "out") from error
    with file:
        if path.is_file() and not try_lock(file.fileno()):
            raise InvalidRequest(f"another run is writing to {path}; wait for it, or give another --out", "out")
        size = os.fstat(file.fileno()).st_size
        if size:
            there, done = read_journal(path)
            _check_same_run(path, there, settings)
            size = _parse(path.read_bytes())[2]
        file.truncate(size)
        if not size:
            _write(file, settings)
        yield (
            done,
            lambda record: _write(file, asdict(record) | {"marks": [(*asdict(m).values(),) for m in record.marks]}),
        )


def _write(file: Any, value: Mapping[str, Any]) -> None:
    file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    # A run that is killed leaves all its answers.
    file.flush()


def _parse(data: bytes) -> tuple[dict[str, Any], list[Record], int]:
    """Settings, answers, and how many bytes they take."""
    size = data.rfind(b"\n") + 1
    lines = [json.loads(line) for line in data[:size].splitlines()]
    settings = lines[0]
    if not isinstance(settings, dict) or "task" not in settings:
        raise ValueError("the first line tells no task")
    records = [Record(**line | {"marks": tuple(Mark(*m) for m in line["marks"])}) for line in lines[1:]]
    return settings, records, size


def _check_same_run(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    changed = [name for name in RUN_KEYS if there.get(name) != here.get(name)]
    if other := [f"{name} {there.get(name)} there, {here.get(name)} now" for name in changed]:
        raise InvalidRequest(f"{path} has answers of another run ({'; '.join(other)}); give another --out", "out")
