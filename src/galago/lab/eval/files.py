"""Published data sets as they lie in a folder."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from galago.errors import InvalidRequest
from galago.lab.eval.case import Case, Cases

T = TypeVar("T")


def find_file(data: Path, *places: str) -> Path:
    """The first of these files or folders that is there. Raises InvalidRequest, which names them all."""
    for place in places:
        if (data / place).exists():
            return data / place
    raise InvalidRequest(f"{data} has no {' or '.join(places)}; --data is the folder that it lies in", "data")


def read_json(file: Path) -> Any:
    """What a JSON file holds. Raises InvalidRequest."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}", "data") from error


def read_lines(file: Path) -> list[Any]:
    """What each line of a JSON lines file holds. Raises InvalidRequest."""
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"cannot read {file}: {error}", "data") from error


def sample_cases(rows: Sequence[T], count: int | None, seed: int, case: Callable[[int, T], Case | list[Case]]) -> Cases:
    """The cases of all rows, or of `count` drawn by the seed, in the order of the rows.

    `case` makes them of a place and a row. Raises InvalidRequest, from `each`, for a row that lacks a field.
    """
    chosen = list(rows)
    if count is not None and count < len(rows):
        chosen = [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), count))]

    def each() -> Iterator[Case]:
        for place, row in enumerate(chosen):
            try:
                made = case(place, row)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise InvalidRequest(f"cannot use {str(row)[:200]}: {type(error).__name__} {error}", "data") from error
            yield from [made] if isinstance(made, Case) else made

    return Cases(len(chosen), each())
