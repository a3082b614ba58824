"""Parsing what a command is given into its images and videos, and the words about them."""

import os
import re
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes, urlsplit

from galago.errors import InvalidRequest, quoted, shortened

_SUFFIXES = "jpe?g|png|gif|webp|bmp|tiff?|avif|heic|mp4|webm|mkv|mov|avi"
_MEDIA = re.compile(rf"-|data:.*|[a-z][a-z0-9+.-]*://.*|\S*\.({_SUFFIXES})", re.IGNORECASE)
"""What looks like an image or a video, whether or not there is one."""


def collect_sources(
    given: Sequence[str] | None, more: Sequence[str] | None, example: str, what: str = "IMAGE"
) -> list[str]:
    """All images of arguments and options; file:// URLs become paths.

    Raises InvalidRequest where there is none, with an `example` of how it is done.
    """
    sources = [path_from_url(source) for source in (*(given or ()), *(more or ()))]
    if not sources:
        raise InvalidRequest(f"{what} is missing; as in: {example}")
    return sources


def split_words(
    given: Sequence[str] | None,
    more: Sequence[str] | None,
    words: str | None,
    example: str,
    *,
    what: str = "OBJECT",
    shown: str = "IMAGE",
    optional: bool = False,
) -> tuple[list[str], str]:
    """Split arguments into the images and the words about them: those of --prompt, or the last argument.

    Errors call the two `shown` and `what`, and give an `example`. Raises InvalidRequest where one is missing, the
    images unless they are `optional`. Words that are a file's name are none.
    """
    given = list(given or ())
    if words is None and given and not _is_media(given[-1]):
        words = given.pop()
    sources = [path_from_url(source) for source in (*given, *(more or ()))]
    if words is None:
        after = f" after {shortened(sources[-1])}" if sources else ""
        raise InvalidRequest(f"{what} is missing{after}; as in: {example}")
    if not sources and not optional:
        raise InvalidRequest(f"{shown} is missing before {quoted(words)}; as in: {example}")
    return sources, words


def _is_media(word: str) -> bool:
    return _MEDIA.fullmatch(word) is not None or os.path.isfile(word)


def path_from_url(source: str) -> str:
    """The path that a file:// URL means; any other source as it is. Raises InvalidRequest."""
    if source[:6].lower() != "file:/" or os.path.exists(source):
        return source
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise InvalidRequest(
            f"{shortened(source)} names a file of another machine; one of this machine begins with file:///"
        )
    return os.fsdecode(unquote_to_bytes(parts.path))
