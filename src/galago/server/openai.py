"""OpenAI's chat completions: from JSON to a Request. The way back is in openai_reply.

Every function that reads JSON raises InvalidRequest with the path of the field at fault, such as
`messages.0.content.1.image_url.url`. JSON null counts as absent; fields that we do not know are ignored.
"""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from PIL import Image

from galago.errors import InvalidImage, InvalidRequest
from galago.media.image import decode_data_url, load_image
from galago.request import Chat, Detail, Message, Query, Request, Sampling, Skill
from galago.server.errors import Refused

T = TypeVar("T")
Json = dict[str, Any]

DESCRIBE = "Describe what you see in this image."
_WORDS = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "an array",
    dict: "an object",
}
# What OpenAI's API has and we do not, with the values that ask for nothing more than what happens anyway.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
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


def load_json(body: bytes) -> Json:
    """The JSON object in the body, in UTF-8 and without Python's extensions (NaN, Infinity)."""
    try:
        given = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_json", f"the body is not valid JSON: {error}") from None
    if not isinstance(given, dict):
        raise InvalidRequest("the body must be a JSON object")
    return given


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _read(owner: Json, name: str, kind: type[T], path: str = "") -> T | None:
    """owner[name] checked to be of this kind, or None; `path` is where the owner stands, with its dot."""
    value = owner.get(name)
    if value is None:
        return None
    fits = isinstance(value, int | float if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise InvalidRequest(f"{path}{name} must be {_WORDS[kind]}", path + name)
    if isinstance(value, str):
        _check_text(value, path + name)
    return value


def _check_text(text: str, path: str) -> None:
    # JSON can spell half of a surrogate pair, which is no character and which no tokenizer takes.
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise InvalidRequest(f"{path} holds half of a surrogate pair", path)


def _required(value: T | None, path: str) -> T:
    if value is None:
        raise InvalidRequest(f"{path} is required", path)
    return value


def read_chat(body: bytes) -> Asked:
    """The request that a body asks for. Slow where it holds an image: not for the event loop."""
    given = load_json(body)
    for name, neutral in _UNSUPPORTED.items():
        value = given.get(name)
        # The types are compared too, since True == 1.
        if value is not None and not any(type(value) is type(n) and value == n for n in neutral):
            raise Refused("unsupported_parameter", f"{name} is not supported by this server", name)
    model = _read(given, "model", str)
    sampling = _sampling(given)
    stream = _read(given, "stream", bool) or False
    options = _read(given, "stream_options", dict) or {} if stream else {}
    usage = _read(options, "include_usage", bool, "stream_options.") or False
    reasoning = _read(given, "reasoning", bool) or False

    turns = _required(_read(given, "messages", list), "messages")
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
        request = replace(request, image=_image(url, at), detail=detail)
    return Asked(request, model, stream, usage)


def _sampling(given: Json) -> Sampling:
    limit = "max_tokens" if given.get("max_completion_tokens") is None else "max_completion_tokens"
    temperature = _read(given, "temperature", float) or 0.0
    if not 0 <= temperature <= 2:
        raise InvalidRequest("temperature must be a number in 0..2", "temperature")
    seed = _read(given, "seed", int)
    if seed is not None and not -(2**63) <= seed < 2**63:
        raise InvalidRequest("seed must fit in 64 bits", "seed")
    stop = given.get("stop")
    stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) for s in stop):
        raise InvalidRequest("stop must be a string or an array of up to 4 strings", "stop")
    for text in stop:
        _check_text(text, "stop")
    top_p = _read(given, "top_p", float)
    tokens = _read(given, limit, int)
    if tokens is not None and tokens < 1:
        raise InvalidRequest(f"{limit} must be >= 1", limit)
    return Sampling(
        temperature=temperature,
        top_p=1.0 if top_p is None else top_p,
        min_p=_read(given, "min_p", float) or 0.0,
        seed=seed,
        max_tokens=tokens,
        stop=tuple(stop),
    )


Shown = tuple[str, str, Detail]
"""An image's URL, where in the body it stands, and its detail."""


def _turn(turn: Any, path: str) -> tuple[Message, list[Shown]]:
    """A message, and the URL and path of each image in it."""
    if not isinstance(turn, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    given_role = _required(_read(turn, "role", str, path), f"{path}role")
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
        _check_text(content, f"{path}content")
        texts.append(content)
    text = "\n".join(texts)
    return Message(role, DESCRIBE if images and not text.strip() else text), images


def _part(part: Any, path: str, role: str, texts: list[str], images: list[Shown]) -> None:
    """Add a part's text or image to what the message has so far."""
    if not isinstance(part, dict):
        raise InvalidRequest(f"{path[:-1]} must be an object", path[:-1])
    match kind := _required(_read(part, "type", str, path), f"{path}type"):
        case "text" | "input_text":
            texts.append(_required(_read(part, "text", str, path), f"{path}text"))
        case "refusal" if role == "assistant":
            texts.append(_required(_read(part, "refusal", str, path), f"{path}refusal"))
        case "image_url" | "input_image" if role == "user":
            # Clients write the URL as an object or as a plain string; the latter has its detail beside it.
            holder, name, at = part, "image_url", path
            if isinstance(part.get(name), dict):
                holder, name, at = part[name], "url", f"{path}image_url."
            detail = _read(holder, "detail", str, at)
            if detail is not None and detail not in _DETAILS:
                raise InvalidRequest(f"{at}detail must be one of {', '.join(_DETAILS)}", f"{at}detail")
            url = _required(_read(holder, name, str, at), at + name)
            images.append((url, at + name, "low" if detail == "low" else "high"))
        case _:
            raise InvalidRequest(f"a part of type {kind!r} cannot stand in a turn of the {role}", f"{path}type")


def _skill(messages: tuple[Message, ...], reasoning: bool) -> Skill:
    if not reasoning:
        return Chat(messages)
    if [m.role for m in messages] not in (["user"], ["system", "user"]):
        raise InvalidRequest("reasoning works on a single user turn", "reasoning")
    return Query("\n\n".join(m.text for m in messages), reasoning=True)


def _image(url: str, path: str) -> Image.Image:
    """The decoded image. Nothing outside the request is ever opened: no file, and so far no remote URL."""
    scheme = url[:8].lower()
    try:
        if scheme.startswith(("http:", "https:")):
            raise InvalidImage("remote images are not fetched yet; send the image itself as a data: URL")
        if scheme.startswith("file:"):
            raise InvalidImage("files are never read for a client; send the image itself as a data: URL")
        return load_image(decode_data_url(url))
    except InvalidRequest as error:
        error.param = path
        raise
