"""OpenAI's chat completions: from JSON to a Request. The way back is in openai_reply."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from galago.errors import InvalidRequest
from galago.request import Chat, Detail, Message, Query, Request, Skill
from galago.server.errors import Refused
from galago.server.fields import check_text, load_json, read, read_image, read_sampling, required

DESCRIBE = "Describe what you see in this image."
# What OpenAI's API has and we do not, with the values that ask for nothing more than what happens anyway.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "function_call": ("none",),
    "audio": ({},),
    "modalities": ([], ["text"]),
    "web_search_options": ({},),
    "response_format": ({"type": "text"},),
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (),
    "logit_bias": ({},),
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "repetition_penalty": (1, 1.0),
    "top_k": (0, -1),
}
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_DETAILS = ("auto", "low", "high", "original")


@dataclass(frozen=True)
class Asked:
    """A request and how its reply is to be sent."""

    request: Request
    model: str | None
    stream: bool
    include_usage: bool


def read_chat(body: bytes) -> Asked:
    """The request that a body asks for. Slow where it holds an image: not for the event loop."""
    given = load_json(body)
    for name, neutral in UNSUPPORTED.items():
        value = given.get(name)
        # The types are compared too, since True == 1.
        if value is not None and not any(type(value) is type(n) and value == n for n in neutral):
            raise Refused("unsupported_parameter", f"{name} is not supported by this server", name)
    model = read(given, "model", str)
    sampling = read_sampling(given)
    stream = read(given, "stream", bool) or False
    options = read(given, "stream_options", dict) or {} if stream else {}
    usage = read(options, "include_usage", bool, "stream_options.") or False
    reasoning = read(given, "reasoning", bool) or False

    turns = required(read(given, "messages", list), "messages")
    messages: list[Message] = []
    images: list[Shown] = []
    for i, turn in enumerate(turns):
        message, found = _turn(turn, f"messages.{i}.")
        messages.append(message)
        images += found
    if len(images) > 1:
        raise Refused("too_many_images", "this model takes one image in a conversation", images[1][1])
    skill = _skill(tuple(messages), reasoning)
    request = Request(skill, sampling=sampling)
    if images:
        url, at, detail = images[0]
        request = replace(request, image=read_image(url, at), detail=detail)
    return Asked(request, model, stream, usage)


Shown = tuple[str, str, Detail]
"""An image's URL, where in the body it stands, and its detail."""


def _turn(turn: Any, path: str) -> tuple[Message, list[Shown]]:
    """A message, and the URL and path of each image in it."""
    if not isinstance(turn, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    given_role = required(read(turn, "role", str, path), f"{path}role")
    role = _ROLES.get(given_role)
    if role is None:
        raise InvalidRequest(f"{path}role must be one of {', '.join(_ROLES)}; got {given_role!r}", f"{path}role")
    for name in ("tool_calls", "function_call", "audio"):
        if turn.get(name):
            raise Refused("unsupported_parameter", f"{name} is not supported by this server", path + name)
    texts: list[str] = []
    images: list[Shown] = []
    content = turn.get("content")
    if isinstance(content, list):
        for j, part in enumerate(content):
            _part(part, f"{path}content.{j}.", role, texts, images)
    elif content is not None or role != "assistant":
        if not isinstance(content, str):
            raise InvalidRequest(f"{path}content must be a string or an array of parts", f"{path}content")
        check_text(content, f"{path}content")
        texts.append(content)
    text = "\n".join(texts)
    return Message(role, DESCRIBE if images and not text.strip() else text), images


def _part(part: Any, path: str, role: str, texts: list[str], images: list[Shown]) -> None:
    """Add a part's text or image to what the message has so far."""
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    match kind := required(read(part, "type", str, path), f"{path}type"):
        case "text" | "input_text":
            texts.append(required(read(part, "text", str, path), f"{path}text"))
        case "refusal" if role == "assistant":
            texts.append(required(read(part, "refusal", str, path), f"{path}refusal"))
        case "image_url" | "input_image" if role == "user":
            # Clients write the URL as an object or as a plain string; the latter has its detail beside it.
            holder, name, at = part, "image_url", path
            if isinstance(part.get(name), dict):
                holder, name, at = part[name], "url", f"{path}image_url."
            detail = read(holder, "detail", str, at)
            if detail is not None and detail not in _DETAILS:
                raise InvalidRequest(f"{at}detail must be one of {', '.join(_DETAILS)}", f"{at}detail")
            url = required(read(holder, name, str, at), at + name)
            images.append((url, at + name, "low" if detail == "low" else "high"))
        case _:
            raise InvalidRequest(f"a part of type {kind!r} cannot stand in a turn of the {role}", f"{path}type")


def _skill(messages: tuple[Message, ...], reasoning: bool) -> Skill:
    if not reasoning:
        return Chat(messages)
    if [m.role for m in messages] not in (["user"], ["system", "user"]):
        raise InvalidRequest("reasoning works on a single user turn", "reasoning")
    return Query("\n\n".join(m.text for m in messages), reasoning=True)
