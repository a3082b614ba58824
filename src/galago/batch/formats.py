"""How finished rows are written, and read again: JSON lines, CSV and Parquet."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galago.batch.lists import import_parquet
from galago.batch.rows import NAME
from galago.system.outputs import replace_file

Record = dict[str, Any]
"""A row of the output: what its list said of it, the members `image` and `model`, and the answers or an `error`."""
OWN_TEXTS = (NAME, "model", "caption")
TEXTS_BY_NAME = ("captions", "answers")
PLACES = {"objects": ("x_min", "y_min", "x_max", "y_max"), "points": ("x", "y")}
GROUP = 1000
"""Rows that are written together."""


@dataclass(frozen=True)
class Format:
    """One way to write rows. `write` replaces a file with all of them at once, and may go through
    them twice."""

    suffix: str
    write: Callable[[Path, Iterable[Record]], None]
    read: Callable[[Path], Iterator[Record]]


def json_line(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write_json_lines(path: Path, rows: Iterable[Record]) -> None:
    with replace_file(path) as file:
        file.writelines(map(json_line, rows))


def read_json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def flat(record: Record) -> dict[str, Any]:
    """A row with texts and numbers alone: members of members are called a.b, and lists are JSON."""
    cells: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            cells |= {f"{name}.{inner}": held for inner, held in flat(dict(value)).items()}
        else:
            cells[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | bool) else value
    return cells


def _write_csv(path: Path, rows: Iterable[Record]) -> None:
    columns = list(dict.fromkeys(name for record in rows for name in flat(record)))
    with replace_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="", write_through=True)
        written = csv.DictWriter(text, columns, lineterminator="\n")
        written.writeheader()
        written.writerows(map(flat, rows))
        text.detach()


def _read_csv(path: Path) -> Iterator[Record]:
    with path.open(newline="", encoding="utf-8") as file:
        for cells in csv.DictReader(file):
            # An empty text may be an answer; members that not every row has are none then.
            record: Record = {
                name: value for name, value in cells.items() if value or not name.startswith(("error.", "frames."))
            }
            if "error.code" in record:
                record["error"] = {"code": record.pop("error.code"), "message": record.pop("error.message", "")}
            yield record


def _write_parquet(path: Path, rows: Iterable[Record]) -> None:
    arrow = import_parquet()
    import pyarrow

    kinds: dict[str, Any] = {}
    for record in rows:
        for name, value in record.items():
            kinds[name] = _kind(pyarrow, kinds.get(name), name, value)
    schema = pyarrow.schema([(name, kind or pyarrow.string()) for name, kind in kinds.items()])
    with replace_file(path) as file, arrow.ParquetWriter(file, schema) as written:
        group: list[Record] = []
        for record in rows:
            group.append({name: _fitted(pyarrow, kinds[name], value) for name, value in record.items()})
            if len(group) == GROUP:
                written.write_table(pyarrow.Table.from_pylist(group, schema))
                group = []
        if group or not kinds:
            written.write_table(pyarrow.Table.from_pylist(group, schema))


def _kind(pyarrow: Any, known: Any, name: str, value: Any) -> Any:
    """The type of a column that has this value too; None while it has none."""
    string = pyarrow.string()
    if value is None:
        return known
    if name in OWN_TEXTS:
        return string
    if isinstance(value, Mapping) and name in (*TEXTS_BY_NAME, *PLACES, "error"):
        held = string
        if name in PLACES:
            held = pyarrow.list_(pyarrow.struct([(corner, pyarrow.float64()) for corner in PLACES[name]]))
        names = {f.name: f.type for f in known} if known is not None else {}
        return pyarrow.struct(list((names | dict.fromkeys(value, held)).items()))
    found = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}.get(type(value), string)
    if known is None or known == found:
        return found
    numbers = {pyarrow.int64(), pyarrow.float64()}
    return pyarrow.float64() if {known, found} == numbers else string


def _fitted(pyarrow: Any, kind: Any, value: Any) -> Any:
    if kind == pyarrow.string() and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value


def _read_parquet(path: Path) -> Iterator[Record]:
    with import_parquet().ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=GROUP):
            for record in batch.to_pylist():
                yield {name: value for name, value in record.items() if value is not None}


FORMATS: Mapping[str, Format] = {
    "jsonl": Format(".jsonl", _write_json_lines, read_json_lines),
    "csv": Format(".csv", _write_csv, _read_csv),
    "parquet": Format(".parquet", _write_parquet, _read_parquet),
}
