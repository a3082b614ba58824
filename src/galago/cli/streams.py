"""The standard streams as strangers have them: closed, full, read no further, or of an encoding that lacks letters."""

import codecs
import io
import json
import os
import sys
from errno import EBADF
from pathlib import Path
from typing import Any, BinaryIO

import typer

from galago.errors import InvalidImage

_ERRORS = "galago.names"


def prepare() -> None:
    """Let a process have all three streams, and print whatever names files have. For the start of a program."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # or the next file that is opened would be taken for the stream
    codecs.register_error(_ERRORS, _as_it_is)
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(closed=before is None)),
        encoding=before.encoding if before else None,
        errors=_ERRORS,
        line_buffering=bool(before) and before.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  nobody is left to be told anything


class _Output(io.FileIO):
    """Standard output that remembers why it took something no more, since Python tells that only once."""

    def __init__(self, closed: bool) -> None:
        super().__init__(1, "wb", closefd=False)
        self.missing = closed
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error:
            return len(data)  # what is left, at the interpreter's end
        try:
            if self.missing:
                raise OSError(EBADF, "it is closed")
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def _as_it_is(error: UnicodeError) -> tuple[str | bytes, int]:
    """The bytes of a name that is not UTF-8; of letters that the encoding lacks their numbers."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("backslashreplace")(error)


def print_json(value: Any) -> None:
    """Print an object as a line of JSON, in letters that standard output can take."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    typer.echo(text)


def json_name(path: str | Path) -> str:
    """A path for JSON; one that is not UTF-8, which JSON cannot hold, as a file:// URL, which commands take too."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Path(path).absolute().as_uri()
    return str(path)


def standard_input() -> BinaryIO:
    """Standard input as bytes. Raises InvalidImage where there is none."""
    if sys.stdin is None or sys.stdin.closed:
        raise InvalidImage("it is closed")
    return sys.stdin.buffer


def output_error() -> OSError | None:
    """Why standard output takes no more; None where all that was printed has arrived."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Output) else None
