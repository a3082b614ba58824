"""Files beside the pictures: their captions as text, all answers as JSON, or XMP that photo managers read."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from galago.batch import xmp
from galago.batch.formats import Record
from galago.batch.rows import Row, Rows
from galago.errors import InvalidImage
from galago.system.outputs import write_text


@dataclass(frozen=True)
class Sidecar:
    """One kind of file beside a picture."""

    path: Callable[[Path], Path]
    """of a picture's"""
    written: Callable[[Path, Record], str]
    """the new text of the file, of what is there and of a row"""
    caption: Callable[[Path], str]
    """the caption in the file; empty where there is none. Raises OSError and ValueError for what cannot be read."""


def text_of(record: Mapping[str, Any]) -> str:
    """A row's caption, or else all its texts and the words that were found, as one line for trainers of models."""
    if isinstance(caption := record.get("caption"), str):
        return " ".join(caption.split())
    texts = [v for group in ("captions", "answers") for v in record.get(group, {}).values() if isinstance(v, str)]
    return ", ".join(" ".join(text.split()) for text in [*texts, *words_found(record)])


def words_found(record: Mapping[str, Any]) -> list[str]:
    """The words of what was looked for and found."""
    return list(
        dict.fromkeys(w for group in ("objects", "points") for w, places in record.get(group, {}).items() if places)
    )


def _write_json(path: Path, record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def _read_json_caption(path: Path) -> str:
    found = json.loads(path.read_text("utf-8"))
    return str(found.get("caption") or found.get("image") or "") if isinstance(found, dict) else ""


SIDECARS: Mapping[str, Sidecar] = {
    "txt": Sidecar(
        lambda picture: picture.with_suffix(".txt"),
        lambda path, record: text_of(record) + "\n",
        lambda path: path.read_text("utf-8").strip(),
    ),
    "json": Sidecar(lambda picture: picture.with_name(picture.name + ".json"), _write_json, _read_json_caption),
    "xmp": Sidecar(
        xmp.sidecar_path,
        lambda path, record: xmp.with_answers(
            path, text_of({**record, "objects": {}, "points": {}}), words_found(record)
        ),
        xmp.read_description,
    ),
}


@dataclass
class Sidecars:
    """Sidecars of one kind, of all pictures of a batch. One that has a caption is replaced by force alone."""

    kind: Sidecar
    force: bool = False
    kept: int = 0
    """pictures whose sidecar was left as it was"""

    def check(self, rows: Rows) -> Iterator[Row]:
        """The rows, those whose sidecar cannot be written or would be another's with that error."""
        owners: dict[Path, Path] = {}
        folder = None
        for row in rows:
            if row.file is not None and row.file.parent != folder:
                owners, folder = {}, row.file.parent
            wrong = self._wrong(row, owners)
            yield row if wrong is None else replace(row, source=InvalidImage(wrong))

    def _wrong(self, row: Row, owners: dict[Path, Path]) -> str | None:
        if row.file is None:
            return f"{row.name} has no place of its own beside which a file could lie"
        path = self.kind.path(row.file)
        owner = owners.setdefault(path, row.file)
        if owner != row.file:
            return f"{path} is the sidecar of {owner} too; rename one of the two"
        try:
            self._caption(path)
        except (OSError, ValueError) as error:
            return f"{path} cannot be read, and is left as it is: {error}"
        return None

    def without_caption(self, rows: Rows) -> Iterator[Row]:
        """The rows whose sidecar has no caption yet, or all by force."""
        for row in rows:
            if self._is_kept(row):
                self.kept += 1
            else:
                yield row

    def _is_kept(self, row: Row) -> bool:
        if self.force or row.file is None or isinstance(row.source, InvalidImage):
            return False
        return bool(self._caption(self.kind.path(row.file)))

    def _caption(self, path: Path) -> str:
        return self.kind.caption(path) if path.exists() else ""

    def write(self, row: Row, record: Record) -> None:
        """Write a row's sidecar, unless there is one with a caption. Raises InvalidRequest where that fails."""
        if row.file is None or "error" in record:
            return
        if self._is_kept(row):
            self.kept += 1
            return
        path = self.kind.path(row.file)
        write_text(self.kind.written(path, record), path)
