"""Where images and videos come from: a path, a URL, a data: URL, bytes or an open file."""

import base64
import inspect
import io
import mmap
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol
from urllib.parse import unquote

import numpy as np
from PIL import Image

from galago.errors import InvalidImage, InvalidVideo, quoted, shortened


class Readable(Protocol):
    """A file that is open for reading, as open(), io.BytesIO, tempfile and web frameworks give it."""

    def read(self, size: int = -1, /) -> Any: ...


FileSource = str | os.PathLike[str] | bytes | bytearray | memoryview | mmap.mmap | Readable
"""A path, an http(s) or data: URL, the bytes of a file, or a file that is open for reading."""
MediaKind = Literal["image", "video"]

_INVALID = {"image": InvalidImage, "video": InvalidVideo}
_USUAL = {"image": "png", "video": "mp4"}
MAX_BYTES = 32 << 20
"""Of what comes out of a pipe, which has to be kept in memory; as much as a body of a request may have."""
_ALLOWED = "give an http or https URL, or the {} itself as a data: URL in base64"
_IN_BASE64 = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{1,20}):", re.IGNORECASE)
# Base64 has slashes too; that of a JPEG begins with one. But none is as short, and none has a dot.
_PATH = re.compile(r"(?!/9j/)[/~]\S{0,60}|[A-Za-z]:[/\\].{0,250}|[^,;%\n]{0,250}\.[A-Za-z0-9]{1,5}")
_URL = re.compile(r"([a-z][a-z0-9+.-]+):(?://|\Z)", re.I)
SOURCES = "a path, an http://, https:// or data: URL, bytes or an open file"


@contextmanager
def open_file(source: FileSource, what: MediaKind = "image") -> Iterator[tuple[BinaryIO, str | None]]:
    """Open a source as a seekable file; yields it and the name that errors call it by, or None.

    URLs are fetched within the bounds of fetch(). Raises InvalidImage, or InvalidVideo of what should be a video,
    with the reason: missing, not to be read or fetched, too large for that, not base64.
    """
    with ExitStack() as stack:
        try:
            found = _open(source, what, stack)
        except InvalidImage as error:
            raise _INVALID[what](str(error)) from error
        yield found


def from_array(array: Any) -> Image.Image:
    """An image from a NumPy array, uint8 [height, width, 3]. Raises InvalidImage for any other, and says what helps."""
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8 and array.size:
        return Image.fromarray(np.ascontiguousarray(array))
    raise InvalidImage(_wrong_type(array, "image"))


def _open(source: Any, what: MediaKind, stack: ExitStack) -> tuple[BinaryIO, str | None]:
    if isinstance(source, bytes | bytearray | memoryview | mmap.mmap):
        return io.BytesIO(source), None
    if isinstance(source, str):
        if source[:5].lower() == "data:":
            return io.BytesIO(decode_data_url(source, what)), None
        if source[:8].lower().startswith(("http://", "https://")):
            # Imported late: most sources are files.
            from galago.media.fetch import fetch

            return io.BytesIO(fetch(source)), shortened(source)
        if not source:
            raise InvalidImage(f"the {what} is an empty text; it must be {SOURCES}")
        if (scheme := _URL.match(source)) and not os.path.exists(source):
            helps = "; give the path itself" if scheme[1].lower() == "file" else ""
            raise InvalidImage(f"cannot read {shortened(source)}: the {what} must be {SOURCES}{helps}")
    if isinstance(source, str | os.PathLike):
        name = shortened(str(source), 200)
        try:
            return _make_seekable(stack.enter_context(Path(source).open("rb")), what), name
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if len(str(source)) > 200 and "." not in str(source):
                reason += f"; base64 is written as data:{what}/{_USUAL[what]};base64,..."
            raise InvalidImage(f"cannot read {name}: {reason}") from error
    if hasattr(source, "read") and not isinstance(source, type):
        return _from_reader(source, what), None
    raise InvalidImage(_wrong_type(source, what))


def _wrong_type(source: Any, what: str) -> str:
    kind = type(source).__name__
    if hasattr(source, "shape") and hasattr(source, "dtype") and not isinstance(source, type):
        held = f"{kind} of {source.dtype} {quoted(list(source.shape))}"
        return f"the {what} must be a uint8 array [height, width, 3], or what Image.fromarray makes of it, not a {held}"
    return f"the {what} must be {SOURCES}, not {kind}"


def _from_reader(file: Any, what: str) -> BinaryIO:
    """A seekable file of bytes from an object that has `read`."""
    if inspect.iscoroutinefunction(file.read) and hasattr(file, "file"):
        file = file.file  # an upload, whose own methods are to be awaited
    if isinstance(file, io.TextIOBase) and hasattr(file, "buffer"):
        file = file.buffer  # opened as text, which no picture is
    try:
        return _make_seekable(file, what)
    except InvalidImage:
        raise
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InvalidImage(f"the {what} cannot be read from this {type(file).__name__}: {error}") from error


def _make_seekable(file: Any, what: str) -> BinaryIO:
    """The file itself, or the contents of a pipe, up to MAX_BYTES."""
    if hasattr(file, "seek") and hasattr(file, "seekable") and file.seekable():
        file.seek(0)
        if isinstance(file.read(0), bytes):
            found: BinaryIO = file
            return found
    data = file.read(MAX_BYTES + 1)
    if inspect.iscoroutine(data):
        data.close()
    if isinstance(data, str):
        raise TypeError("it holds text; open it for reading bytes")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"it gives a {type(data).__name__}; give the bytes that are in it")
    if len(data) > MAX_BYTES:
        raise InvalidImage(f"more than {MAX_BYTES >> 20} MiB came out of a pipe; save it as a file, and name that")
    return io.BytesIO(data)


def decode_data_url(text: str, what: str = "image") -> bytes:
    """The bytes of a `data:` URL or of bare base64; its MIME type is ignored. Errors call it by `what` it should be.

    Whitespace, the URL-safe alphabet and percent-encoding are tolerated, padding is optional. Raises InvalidImage if it
    is not base64 or empty, and says so of other URLs and of paths.
    """
    text = text.strip()
    encoded = text
    if text[:5].lower() == "data:":
        head, comma, encoded = text.partition(",")
        if not comma or not _IN_BASE64.search(head):
            raise InvalidImage(f"a data: URL must look like data:{what}/{_USUAL[what]};base64,...")
    elif scheme := _SCHEME.match(text):
        raise InvalidImage(f"no {what} can be had from {scheme[1]}: URLs here; {_ALLOWED.format(what)}")
    elif _PATH.fullmatch(text):
        raise InvalidImage(
            f"the {what} is given as the path of a file, which is not read here; {_ALLOWED.format(what)}"
        )
    try:
        data = _decode_base64(unquote(encoded) if "%" in encoded else encoded)
    except ValueError:
        raise InvalidImage(f"the {what} is not valid base64") from None
    if not data:
        raise InvalidImage(f"the {what} is empty")
    return data


def _decode_base64(text: str) -> bytes:
    # Nearly all need none of the repairs, which take ten times as long as the decoding.
    with suppress(ValueError):
        return base64.b64decode(text, validate=True)
    compact = re.sub(r"\s+", "", text).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
