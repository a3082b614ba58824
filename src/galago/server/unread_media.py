"""Images and videos in fields of a request that no dialect reads."""

import re
from collections.abc import Sequence
from typing import Any

from galago.server.errors import Refused
from galago.server.shown import MediaRef

_BASE64 = r"(?:/9j/|iVBORw0KGgo|R0lGOD[ld]|UklGR|AAAA[A-Za-z0-9+/]{4}Z0eXB|SUkqA|TU0AKg)[A-Za-z0-9+/_-]{40}"
_INLINE = re.compile(rf"\s*(?:data:(?:image|video)/|{_BASE64})", re.IGNORECASE)
"""How images and videos begin that are given as themselves: as data: URLs, or as the base64 of usual files."""
_LINK = r"https?://[^\s?#]{1,2000}\.(?:jpe?g|png|gif|webp|avif|heic|bmp|tiff?|mp4|webm|mov|mkv)(?:[?#]\S{0,2000})?\s*$"
_SHOWN = re.compile(rf"{_INLINE.pattern}|\s*{_LINK}", re.IGNORECASE)
_IGNORED = ("metadata", "tools", "functions", "tool_calls", "function_call")
_WORDS_OF_PEOPLE = ("content", "text", "question", "object", "obj", "stop")
"""Fields in which a link may be what is spoken of."""


def check_no_unread_media(given: Any, refs: Sequence[MediaRef], where: str) -> None:
    """Raise Refused for an image or video in a field that is not read, which would be ignored silently.

    `refs` are those that are read; copies of them elsewhere are fine. `where` says in the error where it belongs.
    """
    seen = {one.url for one in refs}
    left: list[tuple[Any, str, bool]] = [(given, "", False)]
    while left:
        value, path, words = left.pop()
        if isinstance(value, dict):
            left += [
                (one, f"{path}.{name}", name in _WORDS_OF_PEOPLE)
                for name, one in value.items()
                if isinstance(one, str | dict | list) and name not in _IGNORED
            ]
        elif isinstance(value, list):
            left += [(one, f"{path}.{i}", words) for i, one in enumerate(value) if isinstance(one, str | dict | list)]
        elif (_INLINE if words else _SHOWN).match(value) and value.strip() not in seen:
            told = f"{path[1:]} holds an image or a video, which is not looked at there; {where}"
            raise Refused("invalid_value", told, path[1:])
