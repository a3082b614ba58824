"""Messages as clients of OpenAI's API, transformers, Ollama and Anthropic write them: whose, and what they show."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.media.source import decode_data_url
from galago.request import Media, Message, Role

ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
TEXTS = ("text", "input_text")
SHOWS = {
    **dict.fromkeys(("image_url", "input_image", "image"), False),
    **dict.fromkeys(("video_url", "input_video", "video"), True),
}
"""Types of parts that show something, and whether that is a video."""
BESIDE = {"images": False, "image": False, "image_url": False, "videos": True, "video": True, "video_url": True}
"""What stands beside a message's content and is shown with it, and whether that is a video."""
INSIDE = ("url", "path", "base64", "data")
"""Members of an object around an image or a video, in which it may be."""
Turn = Mapping[str, Any]
"""A message of a conversation: its `role` (system, user or assistant), and its `content`, a text or a list of parts. A
part is a text, or what is shown: a Path, the bytes of a file, a PIL image, a clip, or what is already encoded; or a
dict as OpenAI's and transformers' messages have it: {"type": "text", "text": ...}, {"type": "image", "image": ...} (or
"url", "path", "base64"), {"type": "image_url", "image_url": {"url": ...}}, and the same with video. `images` beside the
content are shown before it. Messages of one side that follow each other are one turn."""


@dataclass(frozen=True)
class Place:
    """Where something is shown: the value, the path to it, and the object that holds it, if one does beside others.

    The value is None where there is nothing.
    """

    value: Any
    path: str
    holder: Mapping[str, Any] | None = None

    @property
    def encoded(self) -> bool:
        """Whether it is the bytes of a file in base64, going by its name."""
        return self.path.rpartition(".")[2] in ("base64", "data")


def place_in(part: Mapping[str, Any], video: bool, path: str) -> Place:
    """Where a part shows its image or video; `path` is that of the part, with its dot."""
    usual, *others = names_of(video)
    name = next((name for name in (usual, *others) if part.get(name) is not None), usual)
    return place_of(part.get(name), path + name, part)


def names_of(video: bool) -> tuple[str, ...]:
    """The members of a part in which its image or video may be, the usual one first."""
    return ("video_url", "video", *INSIDE, "source") if video else ("image_url", "image", *INSIDE, "source")


def place_of(value: Any, path: str, holder: Mapping[str, Any] | None = None) -> Place:
    """Where an image or video is that is given as itself or as an object around it."""
    if not isinstance(value, Mapping):
        return Place(value, path, holder)
    name = next((name for name in INSIDE if value.get(name) is not None), INSIDE[0])
    return Place(value.get(name), f"{path}.{name}", value)


def places_beside(message: Mapping[str, Any], path: str) -> list[tuple[Place, bool]]:
    """What is shown with a message without being a part of its content, and whether each is a video."""
    found = []
    for name, video in BESIDE.items():
        value = message.get(name)
        if value is None or (isinstance(value, list | tuple | Mapping) and not value):
            continue
        if isinstance(value, list | tuple):
            found += [(place_of(one, f"{path}{name}.{i}"), video) for i, one in enumerate(value)]
        else:
            found.append((place_of(value, path + name), video))
    return found


def read_messages(messages: Any, opened: Callable[[Any], Media]) -> tuple[Message, ...]:
    """The messages that Model.chat is given; `opened` makes of a source what a model looks at.

    Raises InvalidRequest with the path of what is wrong, such as messages.0.content.1.
    """
    if not isinstance(messages, list | tuple):
        raise InvalidRequest(f"messages must be a list of messages, not {type(messages).__name__}", "messages")
    return tuple(m if isinstance(m, Message) else _message(m, f"messages.{i}.", opened) for i, m in enumerate(messages))


def _message(given: Any, path: str, opened: Callable[[Any], Media]) -> Message:
    if not isinstance(given, Mapping):
        raise InvalidRequest(f"{path[:-1]} must be a dict with a role and content", path[:-1])
    known = ("role", "content", "name", *BESIDE)
    if unknown := [quoted(name) for name, value in given.items() if name not in known and not _is_empty(value)]:
        raise InvalidRequest(f"{path[:-1]} has {unknown[0]}; known are {', '.join(known)}", path[:-1])
    role = given.get("role")
    side = ROLES.get(role) if isinstance(role, str) else None
    if side is None:
        raise InvalidRequest(f"{path}role must be one of {', '.join(ROLES)}", f"{path}role")
    shown = [_opened(place, opened) for place, _ in places_beside(given, path)]
    content = given.get("content")
    if content is None and (shown or side != "user"):
        content = ()
    if isinstance(content, str) and not shown:
        return Message(side, content)
    if not isinstance(content, str | list | tuple):
        raise InvalidRequest(f"{path}content must be a text or a list of parts", f"{path}content")
    parts = [content] if isinstance(content, str) else content
    return Message(side, (*shown, *(_part(part, f"{path}content.{j}.", opened) for j, part in enumerate(parts))))


def _part(part: Any, path: str, opened: Callable[[Any], Media]) -> str | Media:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return _opened(Place(part, path[:-1]), opened)
    kind = part.get("type")
    if kind in TEXTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if not isinstance(kind, str) or kind not in SHOWS:
        allowed = f"{', '.join(SHOWS)}, or text with its text"
        raise InvalidRequest(f"{path}type must be one of {allowed}", f"{path}type")
    return _opened(place_in(part, SHOWS[kind], path), opened)


def _opened(place: Place, opened: Callable[[Any], Media]) -> Media:
    if place.value is None:
        raise InvalidRequest(f"{place.path} is required: a path, a URL, bytes or an image", place.path)
    try:
        value = place.value
        return opened(decode_data_url(value) if place.encoded and isinstance(value, str) else value)
    except InvalidRequest as error:
        error.param = error.param or place.path
        raise


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)
