"""Reading messages as clients of OpenAI's API, transformers, Ollama and Anthropic write them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from galago.errors import InvalidRequest, quoted
from galago.media.source import decode_data_url
from galago.request import Media, Message, Role
from galago.values import is_text

P = TypeVar("P")
TOOL_ROLES = ("tool", "function")
ROLES: dict[str, Role] = {
    **{"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
    **dict.fromkeys(TOOL_ROLES, "user"),
}
"""The sides of a conversation by the roles of messages; what a tool answers is told by the user."""
TEXT_PARTS = ("text", "input_text")
MEDIA_PARTS = {
    **dict.fromkeys(("image_url", "input_image", "image", "file"), False),
    **dict.fromkeys(("video_url", "input_video", "video"), True),
}
"""Types of parts that hold an image or a video, and whether it is a video."""
ATTACHED = {"images": False, "image": False, "image_url": False, "videos": True, "video": True, "video_url": True}
"""Members of a message, beside its content, that hold images or videos, and whether those are videos."""
HOLDERS = ("url", "path", "base64", "data")
"""Members of an object around an image or a video that may hold it."""
MessageDict = Mapping[str, Any]
"""A message of a conversation: its `role` (system, user, assistant or tool), and its `content`, a text or a list of
parts. A part is a text, or what is shown: a Path, the bytes of a file, a PIL image, a clip, or what is already encoded;
or a dict as OpenAI's and transformers' messages have it: {"type": "text", "text": ...}, {"type": "image", "image": ...}
(or "url", "path", "base64"), {"type": "image_url", "image_url": {"url": ...}}, and the same with video; or an image as
{"type": "file", "file": {"file_data": ...}}. `images` beside the content are shown before it. `tool_calls` of the
assistant and messages of the role tool are text, as with_tools tells. Messages of one side that follow each other are
one turn."""


@dataclass(frozen=True)
class MediaField:
    """An image or a video in a body: its value (None if missing), the path to it, and the object that holds it."""

    value: Any
    path: str
    holder: Mapping[str, Any] | None = None

    @property
    def is_base64(self) -> bool:
        """Whether the value is a file in base64, going by the member's name."""
        return self.path.rpartition(".")[2] in ("base64", "data", "file_data")


def part_media(part: Mapping[str, Any], video: bool, path: str) -> MediaField:
    """The image or video of a content part; `path` is that of the part, with a dot at its end."""
    if part.get("type") == "file":
        file = part.get("file")
        file = file if isinstance(file, Mapping) else {}
        return MediaField(file.get("file_data"), f"{path}file.file_data", file)
    usual, *others = media_members(video)
    name = next((name for name in (usual, *others) if part.get(name) is not None), usual)
    return media_field(part.get(name), path + name, part)


def media_members(video: bool) -> tuple[str, ...]:
    """The members of a part that may hold its image or video, the usual one first."""
    return ("video_url", "video", *HOLDERS, "source") if video else ("image_url", "image", *HOLDERS, "source")


def media_field(value: Any, path: str, holder: Mapping[str, Any] | None = None) -> MediaField:
    """An image or video that is given as itself or as an object around it."""
    if not isinstance(value, Mapping):
        return MediaField(value, path, holder)
    name = next((name for name in HOLDERS if value.get(name) is not None), HOLDERS[0])
    return MediaField(value.get(name), f"{path}.{name}", value)


def attached_media(message: Mapping[str, Any], path: str) -> list[tuple[MediaField, bool]]:
    """The images and videos of a message that are not parts of its content, and whether each is a video."""
    found = []
    for name, video in ATTACHED.items():
        value = message.get(name)
        if value is None or (isinstance(value, list | tuple | Mapping) and not value):
            continue
        if isinstance(value, list | tuple):
            found += [(media_field(one, f"{path}{name}.{i}"), video) for i, one in enumerate(value)]
        else:
            found.append((media_field(value, path + name), video))
    return found


def with_tools(message: Mapping[str, Any], parts: tuple[str | P, ...], path: str) -> tuple[str | P, ...]:
    """The parts of a message, with the calls and answers of tools as text, since models here call none.

    Behind what the assistant says stands "Called the tool NAME with ARGUMENTS." for each call, and what a message of
    the role tool or function says becomes "The tool answered: TEXT". Raises InvalidRequest for a call without a name.
    """
    shown = [part for part in parts if not isinstance(part, str)]
    texts = [part for part in parts if isinstance(part, str)]
    if message["role"] in TOOL_ROLES:
        return (*shown, "The tool answered: " + "\n".join(texts))
    calls = _calls(message, path) if message["role"] == "assistant" else []
    return (*shown, "\n".join([*filter(str.strip, texts), *calls])) if calls else parts


def _calls(message: Mapping[str, Any], path: str) -> list[str]:
    """What a message of the assistant called, a sentence each."""
    given = message.get("tool_calls") or []
    if not isinstance(given, list | tuple):
        raise InvalidRequest(f"{path}tool_calls must be a list of calls", f"{path}tool_calls")
    functions = [(one.get("function") if isinstance(one, Mapping) else None) for one in given]
    places = [(function, f"{path}tool_calls.{i}.function") for i, function in enumerate(functions)]
    if function := message.get("function_call"):
        places.append((function, f"{path}function_call"))
    return [_call(function, at) for function, at in places]


def _call(function: Any, path: str) -> str:
    name, arguments = (function.get("name"), function.get("arguments")) if isinstance(function, Mapping) else (None, "")
    try:
        told = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        raise InvalidRequest(f"{path}.arguments must be JSON", f"{path}.arguments") from None
    if not (is_text(name) and is_text(told)):
        raise InvalidRequest(f"{path} must be an object with a name, a string, and perhaps arguments", path)
    return f"Called the tool {name} with {told or '{}'}."


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
    role = given.get("role")
    side = ROLES.get(role) if isinstance(role, str) else None
    if side is None:
        raise InvalidRequest(f"{path}role must be one of {', '.join(ROLES)}", f"{path}role")
    calls = ("tool_calls", "function_call") if role == "assistant" else ()
    known = ("role", "content", "name", "tool_call_id", *calls, *ATTACHED)
    if unknown := [quoted(name) for name, value in given.items() if name not in known and not _is_empty(value)]:
        raise InvalidRequest(f"{path[:-1]} has {unknown[0]}; known are {', '.join(known)}", path[:-1])
    shown = [_open_field(place, opened) for place, _ in attached_media(given, path)]
    content = given.get("content")
    if content is None and (shown or side != "user"):
        content = ()
    if not isinstance(content, str | list | tuple):
        raise InvalidRequest(f"{path}content must be a text or a list of parts", f"{path}content")
    parts = [content] if isinstance(content, str) else content
    read = (_read_part(part, f"{path}content.{j}.", opened) for j, part in enumerate(parts))
    return Message(side, with_tools(given, (*shown, *read), path))


def _read_part(part: Any, path: str, opened: Callable[[Any], Media]) -> str | Media:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return _open_field(MediaField(part, path[:-1]), opened)
    kind = part.get("type")
    if kind in TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    if not isinstance(kind, str) or kind not in MEDIA_PARTS:
        allowed = f"{', '.join(MEDIA_PARTS)}, or text with its text"
        raise InvalidRequest(f"{path}type must be one of {allowed}", f"{path}type")
    return _open_field(part_media(part, MEDIA_PARTS[kind], path), opened)


def _open_field(place: MediaField, opened: Callable[[Any], Media]) -> Media:
    if place.value is None:
        raise InvalidRequest(f"{place.path} is required: a path, a URL, bytes or an image", place.path)
    try:
        value = place.value
        return opened(decode_data_url(value) if place.is_base64 and isinstance(value, str) else value)
    except InvalidRequest as error:
        error.param = error.param or place.path
        raise


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)
