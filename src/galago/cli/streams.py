"""Standard streams that may be closed, full, no longer read, or in an encoding that lacks letters."""

import codecs
import io
import json
import os
import sys
from errno import EBADF
from typing import Any, BinaryIO

import typer

from galago.errors import InvalidImage

_ERRORS = "galago.names"


def prepare_streams() -> None:
    """Open missing standard streams, and let stdout print any file name. Called once, when the program starts."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # or the next file that is opened would be taken for the stream
    codecs.register_error(_ERRORS, _keep_undecodable)
    before = sys.stdout
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(closed=before is None)),
        encoding=before.encoding if before else None,
        errors=_ERRORS,
        line_buffering=bool(before) and before.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  nobody is left to be told anything


class _StandardOutput(io.FileIO):
    """Standard output that remembers its first write error, which Python reports only once."""

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


def _keep_undecodable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Codec error handler: keep bytes that are not UTF-8, and escape letters that the encoding lacks."""
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


def standard_input() -> BinaryIO:
    """Standard input as bytes. Raises InvalidImage where there is none."""
    if sys.stdin is None or sys.stdin.closed:
        raise InvalidImage("it is closed")
    return sys.stdin.buffer


def output_error() -> OSError | None:
    """Flush standard output; the error that kept it from being written, or None."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _StandardOutput) else None
