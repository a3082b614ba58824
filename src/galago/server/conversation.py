"""The messages of a chat request: from JSON to turns, with what they show where it is to stand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.messages import MEDIA_PARTS, ROLES, TEXT_PARTS, attached_media, part_media, with_tools
from galago.request import Chat, Message, Request, Role, merge_turns
from galago.server.bodies import Json
from galago.server.errors import Refused
from galago.server.fields import MediaRef, check_text, media_ref_at, read, required

DESCRIBE, DESCRIBE_VIDEO = "Describe what you see in this image.", "Describe what happens in this video."
MAX_IMAGES = 64
Parts = tuple[str | MediaRef, ...]
ParsedTurn = tuple[Role, Parts]
"""A turn whose images are still to be opened."""


def read_turns(given: Json) -> list[ParsedTurn]:
    """The conversation of a request, whose messages of one side are one turn where they follow each other.

    What stands beside `messages` is shown with the last message of the user, as Ollama's clients mean it.
    """
    messages = required(read(given, "messages", list), "messages")
    read_so_far = [_message(message, f"messages.{i}.") for i, message in enumerate(messages)]
    if beside := _beside(given, ""):
        last = max((i for i, (role, _) in enumerate(read_so_far) if role == "user"), default=None)
        if last is None:
            raise InvalidRequest("what is shown needs a message of the user", beside[0].path)
        read_so_far[last] = ("user", (*beside, *read_so_far[last][1]))
    turns = [(role, _with_question(parts)) for role, parts in merge_turns(read_so_far)]
    images = media_in(turns)
    if len(images) > MAX_IMAGES:
        raise Refused("too_many_images", f"a request holds {MAX_IMAGES} images at most", images[MAX_IMAGES].path)
    return turns


def media_in(turns: Sequence[ParsedTurn]) -> list[MediaRef]:
    """The images and videos of a conversation, in their order."""
    return [part for _, parts in turns for part in parts if isinstance(part, MediaRef)]


def texts_of(turns: Sequence[ParsedTurn]) -> tuple[Message, ...]:
    """The conversation without what it shows."""
    return tuple(Message(role, tuple(part for part in parts if isinstance(part, str))) for role, parts in turns)


def place_media(turns: Sequence[ParsedTurn], request: Request, opened: Sequence[Picture | Clip]) -> Request:
    """The request over the conversation, with its images and videos where they stood; where there are fewer, as of a
    sheet of all, in the first places."""
    left = iter(opened)
    placed = ((role, tuple(p if isinstance(p, str) else next(left, None) for p in parts)) for role, parts in turns)
    messages = (Message(role, tuple(part for part in parts if part is not None)) for role, parts in placed)
    details = tuple(shown.detail for shown in media_in(turns))[: len(opened)]
    return replace(request, skill=Chat(tuple(messages)), detail=details or "high")


def _with_question(parts: Parts) -> Parts:
    """The same, with a question where images or videos stand alone."""
    shown = tuple(part for part in parts if isinstance(part, MediaRef))
    if not shown or any(isinstance(part, str) and part.strip() for part in parts):
        return parts
    return (*shown, DESCRIBE_VIDEO if any(one.is_video for one in shown) else DESCRIBE)


def _message(message: Any, path: str) -> ParsedTurn:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    given = required(read(message, "role", str, path), f"{path}role")
    role = ROLES.get(given)
    if role is None:
        raise InvalidRequest(f"{path}role must be one of {', '.join(ROLES)}; got {quoted(given)}", f"{path}role")
    for name in ("audio",) if role == "assistant" else ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise Refused("unsupported_parameter", f"{name} is not supported by this server", path + name)
    return role, with_tools(message, (*_beside(message, path, role), *_content(message, path, role)), path)


def _content(message: Json, path: str, role: Role) -> Parts:
    content = message.get("content")
    if isinstance(content, list):
        return tuple(p for j, part in enumerate(content) for p in _part(part, f"{path}content.{j}", role))
    if content is None:
        return ()
    if not isinstance(content, str):
        raise InvalidRequest(f"{path}content must be a string or an array of parts", f"{path}content")
    check_text(content, f"{path}content")
    return (content,)


def _part(part: Any, path: str, role: Role) -> Parts:
    """The text of a part, and what it shows."""
    if isinstance(part, str):
        check_text(part, path)
        return (part,)
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path} must be an object or a string", path)
    at = f"{path}."
    kind = required(read(part, "type", str, at), f"{at}type")
    if kind in TEXT_PARTS:
        return (*_beside(part, at, role), required(read(part, "text", str, at), f"{at}text"))
    if kind == "refusal" and role == "assistant":
        return (required(read(part, "refusal", str, at), f"{at}refusal"),)
    if kind in MEDIA_PARTS and role == "user":
        return (media_ref_at(part_media(part, MEDIA_PARTS[kind], at), MEDIA_PARTS[kind]),)
    raise InvalidRequest(f"a part of type {quoted(kind)} cannot stand in a turn of the {role}", f"{at}type")


def _beside(owner: Json, path: str, role: Role = "user") -> list[MediaRef]:
    """What is shown with a message, or with all of them, without being a part of its content."""
    shown = [media_ref_at(place, is_video) for place, is_video in attached_media(owner, path)]
    if shown and role != "user":
        raise InvalidRequest(f"only a message of the user shows something, not one of the {role}", shown[0].path)
    return shown
