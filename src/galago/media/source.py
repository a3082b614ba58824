"""Where images and videos come from: a path, a URL, a data: URL, bytes or an open file."""

import base64
import io
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import unquote

from galago.errors import InvalidImage, InvalidVideo, shortened

FileSource = Path | str | bytes | BinaryIO
"""A path, an http(s) or data: URL, the bytes of a file, or a file that is open for reading."""
What = Literal["image", "video"]

_INVALID = {"image": InvalidImage, "video": InvalidVideo}
_USUAL = {"image": "png", "video": "mp4"}
MAX_BYTES = 32 << 20
"""Of what comes out of a pipe, which has to be kept in memory; as much as a body of a request may have."""
_ALLOWED = "give an http or https URL, or the {} itself as a data: URL in base64"
_IN_BASE64 = re.compile(r";\s*base64\s*$", re.IGNORECASE)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{1,20}):", re.IGNORECASE)
# Base64 has slashes too; that of a JPEG begins with one. But none is as short, and none has a dot.
_PATH = re.compile(r"(?!/9j/)[/~]\S{0,60}|[A-Za-z]:[/\\].{0,250}|[^,;%\n]{0,250}\.[A-Za-z0-9]{1,5}")


@contextmanager
def opened(source: FileSource, what: What = "image") -> Iterator[tuple[BinaryIO, str | None]]:
    """The file, which can be read from anywhere in it, and what errors call it; None if it has no name.

    URLs are fetched within the bounds of fetch(). Raises InvalidImage, or InvalidVideo of what should be a video,
    with the reason: missing, not to be read or fetched, too large for that, not base64.
    """
    with ExitStack() as stack:
        try:
            found = _found(source, what, stack)
        except InvalidImage as error:
            raise _INVALID[what](str(error)) from error
        yield found


def _found(source: FileSource, what: What, stack: ExitStack) -> tuple[BinaryIO, str | None]:
    if isinstance(source, bytes):
        return io.BytesIO(source), None
    if isinstance(source, str) and source[:5].lower() == "data:":
        return io.BytesIO(decode_data_url(source, what)), None
    if isinstance(source, str) and source[:8].lower().startswith(("http://", "https://")):
        # Imported late: most sources are files.
        from galago.media.fetch import fetch

        return io.BytesIO(fetch(source)), shortened(source)
    if isinstance(source, str | Path):
        try:
            return _seekable(stack.enter_context(Path(source).open("rb"))), shortened(str(source), 200)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidImage(f"cannot read {shortened(str(source), 200)}: {reason}") from error
    if hasattr(source, "read") and hasattr(source, "seek"):
        return _seekable(source), None
    raise InvalidImage(f"the {what} must be a path, a URL, bytes or an open file, not {type(source).__name__}")


def _seekable(file: BinaryIO) -> BinaryIO:
    """The file itself, or what comes out of a pipe, which may be as large as an upload."""
    if file.seekable():
        return file
    if len(data := file.read(MAX_BYTES + 1)) > MAX_BYTES:
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
        data = _base64(unquote(encoded) if "%" in encoded else encoded)
    except ValueError:
        raise InvalidImage(f"the {what} is not valid base64") from None
    if not data:
        raise InvalidImage(f"the {what} is empty")
    return data


def _base64(text: str) -> bytes:
    # Nearly all need none of the repairs, which take ten times as long as the decoding.
    with suppress(ValueError):
        return base64.b64decode(text, validate=True)
    compact = re.sub(r"\s+", "", text).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
