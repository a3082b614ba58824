"""OpenAI's chat completions: from JSON to a Request. The way back is in openai_reply."""

from dataclasses import replace
from functools import partial
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.request import Chat, Message, Query, Request, Skill, check_skill
from galago.server.bodies import Json, load_json
from galago.server.conversation import media_in, place_media, read_turns, texts_of
from galago.server.errors import Refused
from galago.server.fields import ParsedBody, place_image, read, read_sampling, read_schema, required
from galago.server.unread_media import check_no_unread_media

MAX_CHOICES = 8
_SCHEMA, _SYSTEM = "use response_format of type json_schema", "use a message of the role system"
_CALL = "tools are accepted, but no model here calls one: auto and none are allowed"
INSTEAD = {
    **dict.fromkeys(("json_schema", "guided_json", "format"), _SCHEMA),
    **dict.fromkeys(("guided_regex", "guided_choice", "guided_grammar", "grammar", "structured_outputs"), _SCHEMA),
    **dict.fromkeys(("system", "instructions"), _SYSTEM),
    "stop_sequences": "use stop",
    **dict.fromkeys(("tool_choice", "function_call"), _CALL),
}
"""What clients of other servers ask for in fields of those, and what takes their place here."""
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": ({},),
    "modalities": ([], ["text"]),
    "web_search_options": ({},),
    **dict.fromkeys(INSTEAD, ("", [], {})),
    **dict.fromkeys(("tool_choice", "function_call"), ("auto", "none")),
}
"""What is asked for and cannot be had, with the values that ask for nothing more than what happens anyway."""
UNUSED = ("tools", "functions")
"""Lists that are accepted and not used: the answer is text, as a model gives that calls none of them."""
_PART = 'give it as a part of a user\'s content: {"type": "image_url", "image_url": {"url": ...}}'


def read_chat(body: bytes) -> ParsedBody:
    """The request that a body asks for. Slow where it holds an image: not for the event loop."""
    return parse_chat(load_json(body))


def parse_chat(given: Json) -> ParsedBody:
    """The request of a body that is read already."""
    for name, neutral in UNSUPPORTED.items():
        value = given.get(name)
        # The types are compared too, since True == 1.
        if value is not None and not any(type(value) is type(n) and value == n for n in neutral):
            instead = f"; {INSTEAD[name]}" if name in INSTEAD else ""
            raise Refused("unsupported_parameter", f"{name} is not supported by this server{instead}", name)
    for name in UNUSED:
        read(given, name, list)
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

    turns = read_turns(given)
    shown = media_in(turns)
    check_no_unread_media(given, shown, _PART)
    request = Request(_skill(texts_of(turns), reasoning), sampling=sampling, top_logprobs=top_logprobs)
    if reasoning:
        request = replace(request, detail=shown[0].detail if shown else "high")
    place = place_image if reasoning else partial(place_media, turns)
    return ParsedBody(request, model, stream, tuple(shown), usage, n or 1, place)


def _json_schema(given: Json) -> str | None:
    """What the text must fit, as text. Whether all of it can be enforced, the model tells."""
    form, at = read(given, "response_format", dict), "response_format."
    if form is None:
        return None
    match kind := required(read(form, "type", str, at), f"{at}type"):
        case "text":
            return None
        case "json_object":
            # With a schema as clients of llama.cpp and Together send it.
            return read_schema(form, "schema", at) or '{"type": "object"}'
        case "json_schema":
            if form.get(kind) is None and (schema := read_schema(form, "schema", at)):
                return schema
            holder, at = required(read(form, kind, dict, at), at + kind), f"{at}{kind}."
            return required(read_schema(holder, "schema", at), f"{at}schema")
    raise InvalidRequest(f"{at}type must be text, json_object or json_schema; got {quoted(kind)}", f"{at}type")


def _top_logprobs(given: Json) -> int | None:
    """How many likely tokens are told with each one; None where probabilities are not asked for."""
    told, top = read(given, "logprobs", bool) or False, read(given, "top_logprobs", int)
    if top is not None and not told:
        raise InvalidRequest("top_logprobs is only for logprobs: true", "top_logprobs")
    return (top or 0) if told else None


def _skill(messages: tuple[Message, ...], reasoning: bool) -> Skill:
    if not reasoning:
        return Chat(messages)
    check_skill(Chat(messages))
    if any(m.role == "assistant" for m in messages):
        raise InvalidRequest("reasoning works on a conversation without an answer in it", "reasoning")
    ordered = sorted(messages, key=lambda m: m.role == "user")
    return Query("\n\n".join(m.text for m in ordered), reasoning=True)
