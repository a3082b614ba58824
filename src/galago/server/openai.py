"""OpenAI's chat completions: from JSON to a Request. The way back is in openai_reply."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from galago.errors import InvalidRequest, quoted
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Chat, Detail, Message, Query, Request, Skill, check_skill
from galago.server.errors import Refused
from galago.server.fields import (
    Asked,
    Json,
    Shown,
    check_text,
    load_json,
    one_image,
    read,
    read_sampling,
    required,
)

DESCRIBE, DESCRIBE_VIDEO = "Describe what you see in this image.", "Describe what happens in this video."
MAX_CHOICES = 8
MAX_IMAGES = 64
MAX_SCHEMA = 256 << 10
"""characters of a JSON Schema"""
# What OpenAI's API has and we do not, with the values that ask for nothing more than what happens anyway.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "audio": ({},),
    "modalities": ([], ["text"]),
    "web_search_options": ({},),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
}
Role = Literal["system", "user", "assistant"]
Turn = tuple[Role, tuple[str | Shown, ...]]
"""A message whose images are still to be opened."""
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_DETAILS = ("auto", "low", "high", "original")


def read_chat(body: bytes) -> Asked:
    """The request that a body asks for. Slow where it holds an image: not for the event loop."""
    given = load_json(body)
    for name, neutral in UNSUPPORTED.items():
        value = given.get(name)
        # The types are compared too, since True == 1.
        if value is not None and not any(type(value) is type(n) and value == n for n in neutral):
            raise Refused("unsupported_parameter", f"{name} is not supported by this server", name)
    model = read(given, "model", str)
    sampling = replace(read_sampling(given), json_schema=_json_schema(given))
    top_logprobs = _top_logprobs(given)
    n = read(given, "n", int)
    if n is not None and not 1 <= n <= MAX_CHOICES:
        raise InvalidRequest(f"n must be a whole number in 1..{MAX_CHOICES}", "n")
    stream = read(given, "stream", bool) or False
    options = read(given, "stream_options", dict) or {} if stream else {}
    usage = read(options, "include_usage", bool, "stream_options.") or False
    reasoning = read(given, "reasoning", bool) or False

    turns: list[Turn] = []
    images: list[tuple[Shown, Detail | None]] = []
    for i, turn in enumerate(required(read(given, "messages", list), "messages")):
        read_turn, found = _turn(turn, f"messages.{i}.")
        turns.append(read_turn)
        images += found
    if len(images) > MAX_IMAGES:
        raise Refused("too_many_images", f"a request holds {MAX_IMAGES} images at most", images[MAX_IMAGES][0].path)
    details = {detail for _, detail in images if detail}
    if len(details) > 1:
        raise InvalidRequest("all images of a request must have the same detail", images[1][0].path)
    texts = tuple(Message(role, tuple(p for p in parts if isinstance(p, str))) for role, parts in turns)
    skill = _skill(texts, reasoning)
    request = Request(skill, sampling=sampling, top_logprobs=top_logprobs, detail=min(details, default="high"))
    shown = tuple(shown for shown, _ in images)
    placed = one_image if reasoning else partial(_placed, tuple(turns))
    return Asked(request, model, stream, shown, usage, n or 1, placed)


def _placed(turns: Sequence[Turn], request: Request, opened: Sequence[Picture | Clip]) -> Request:
    """The conversation with its images and videos where they stood."""
    left = iter(opened)
    messages = (Message(role, tuple(p if isinstance(p, str) else next(left) for p in parts)) for role, parts in turns)
    return replace(request, skill=Chat(tuple(messages)))


def _json_schema(given: Json) -> str | None:
    """What the text must fit, as text. Whether all of it can be enforced, the model tells."""
    form, at = read(given, "response_format", dict), "response_format."
    if form is None:
        return None
    match kind := required(read(form, "type", str, at), f"{at}type"):
        case "text":
            return None
        case "json_object":
            return '{"type": "object"}'
        case "json_schema":
            holder, at = required(read(form, kind, dict, at), at + kind), f"{at}{kind}."
            schema = required(read(holder, "schema", dict, at), f"{at}schema")
            try:
                text = json.dumps(schema)
            except RecursionError:
                raise InvalidRequest(f"{at}schema is nested too deeply", f"{at}schema") from None
            if len(text) > MAX_SCHEMA:
                raise InvalidRequest(f"{at}schema is longer than {MAX_SCHEMA} characters", f"{at}schema")
            return text
    raise InvalidRequest(f"{at}type must be text, json_object or json_schema; got {quoted(kind)}", f"{at}type")


def _top_logprobs(given: Json) -> int | None:
    """How many likely tokens are told with each one; None where probabilities are not asked for."""
    told, top = read(given, "logprobs", bool) or False, read(given, "top_logprobs", int)
    if top is not None and not told:
        raise InvalidRequest("top_logprobs is only for logprobs: true", "top_logprobs")
    return (top or 0) if told else None


def _turn(turn: Any, path: str) -> tuple[Turn, list[tuple[Shown, Detail | None]]]:
    """A message, and the images and videos in it, these without a detail."""
    if not isinstance(turn, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    given_role = required(read(turn, "role", str, path), f"{path}role")
    role = _ROLES.get(given_role)
    if role is None:
        raise InvalidRequest(f"{path}role must be one of {', '.join(_ROLES)}; got {quoted(given_role)}", f"{path}role")
    for name in ("tool_calls", "function_call", "audio"):
        if turn.get(name):
            raise Refused("unsupported_parameter", f"{name} is not supported by this server", path + name)
    parts: list[str | Shown] = []
    images: list[tuple[Shown, Detail | None]] = []
    content = turn.get("content")
    if isinstance(content, list):
        for j, part in enumerate(content):
            _part(part, f"{path}content.{j}.", role, parts, images)
    elif content is not None or role != "assistant":
        if not isinstance(content, str):
            raise InvalidRequest(f"{path}content must be a string or an array of parts", f"{path}content")
        check_text(content, f"{path}content")
        parts.append(content)
    if images and not any(isinstance(part, str) and part.strip() for part in parts):
        shown = [part for part in parts if isinstance(part, Shown)]
        parts = [*shown, DESCRIBE_VIDEO if any(one.video for one in shown) else DESCRIBE]
    return (role, tuple(parts)), images


def _part(part: Any, path: str, role: str, parts: list[str | Shown], images: list[tuple[Shown, Detail | None]]) -> None:
    """Add a part's text, image or video to what the message has so far."""
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    match kind := required(read(part, "type", str, path), f"{path}type"):
        case "text" | "input_text":
            parts.append(required(read(part, "text", str, path), f"{path}text"))
        case "refusal" if role == "assistant":
            parts.append(required(read(part, "refusal", str, path), f"{path}refusal"))
        case "image_url" | "input_image" | "video_url" | "input_video" if role == "user":
            # Clients write the URL as an object or as a plain string; the latter has its detail beside it.
            video = "video" in kind
            holder, name, at = part, "video_url" if video else "image_url", path
            if isinstance(part.get(name), dict):
                holder, name, at = part[name], "url", f"{path}{name}."
            detail = None if video else read(holder, "detail", str, at)
            if detail is not None and detail not in _DETAILS:
                raise InvalidRequest(f"{at}detail must be one of {', '.join(_DETAILS)}", f"{at}detail")
            url = required(read(holder, name, str, at), at + name)
            parts.append(shown := Shown(url, at + name, video))
            images.append((shown, None if video else "low" if detail == "low" else "high"))
        case _:
            raise InvalidRequest(f"a part of type {quoted(kind)} cannot stand in a turn of the {role}", f"{path}type")


def _skill(messages: tuple[Message, ...], reasoning: bool) -> Skill:
    if not reasoning:
        return Chat(messages)
    check_skill(Chat(messages))
    if [m.role for m in messages] not in (["user"], ["system", "user"]):
        raise InvalidRequest("reasoning works on a single user turn", "reasoning")
    return Query("\n\n".join(m.text for m in messages), reasoning=True)
