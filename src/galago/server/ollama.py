"""Ollama's API: chat, generate, and the models that there are, for the applications that speak it to a local model.

Text is drawn greedily unless `options` say otherwise, since small models answer worse at Ollama's usual 0.8. Options
that mean nothing here are let go, as Ollama does; so are `tools`, which no model here calls.
"""

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema

from galago.errors import ModelInUse, quoted
from galago.messages import ROLES
from galago.request import Chat, Done, Event, Sampling, TextDelta, Token
from galago.request import Request as ModelRequest
from galago.server.bodies import Json, load_json, validate, whole_number
from galago.server.conversation import media_in, place_media, read_turns, texts_of
from galago.server.errors import Failure, Refused, to_failure
from galago.server.fields import ParsedBody, read_schema
from galago.server.models import Models, id_of
from galago.server.serving import ServerContext, model_header, run_blocking
from galago.server.streaming import Framing, stream_response

T = TypeVar("T", bound=BaseModel)
DURATION = r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?(?:ns|us|µs|ms|s|m|h))+|[0-9]+(?:\.[0-9]*)?)"
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(value: Any) -> Any:
    """A duration such as 5m, 1h30m or 300 in seconds; a number as it is."""
    if not isinstance(value, str):
        return value
    if not re.fullmatch(DURATION, value):
        raise ValueError("must be seconds, or a duration such as 5m or 1h30m")
    if value[-1] in "0123456789.":
        return float(value)
    parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", value)
    return sum(float(number) * UNITS[unit] for number, unit in parts) * (-1 if value.startswith("-") else 1)


def _cut(value: Any) -> Any:
    """A number as Ollama reads it where it wants a whole one."""
    return int(min(max(value, -(2.0**62)), 2.0**62)) if isinstance(value, float) and value == value else value


Whole = Annotated[int, BeforeValidator(_cut), WithJsonSchema({"type": "number"})]


KeepAlive = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{DURATION}$"}]}),
]
"""Seconds; less than 0 is for ever."""
Name = Annotated[str, Field(pattern=r"\S")]
Image = Annotated[str, Field(json_schema_extra={"format": "image-url"})]
"""A file in base64, or a data: URL."""
FOR_EVER_S = 1e9


class Options(BaseModel):
    """How text is drawn. Values that are out of range are taken as the nearest that is in it."""

    model_config = ConfigDict(extra="ignore", strict=True)
    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: Whole | None = None
    seed: Whole | None = None
    num_predict: Whole | None = None
    stop: list[str] | str | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def sampling(self, schema: str | None) -> Sampling:
        def within(value: float | None, least: float, most: float, default: float) -> float:
            return default if value is None else min(max(value, least), most)

        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Sampling(
            temperature=within(self.temperature, 0, 2, 0),
            top_p=within(self.top_p, 0, 1, 1),
            min_p=within(self.min_p, 0, 1, 0),
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            seed=None if self.seed is None or self.seed < 0 else self.seed % 2**63,
            max_tokens=None if self.num_predict is None or self.num_predict < 0 else max(self.num_predict, 1),
            stop=tuple(text for text in stop if text),
            repetition_penalty=self.repeat_penalty if self.repeat_penalty and self.repeat_penalty > 0 else 1,
            frequency_penalty=within(self.frequency_penalty, -2, 2, 0),
            presence_penalty=within(self.presence_penalty, -2, 2, 0),
            json_schema=schema,
        )


class TurnBody(BaseModel):
    """A message of /api/chat."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Annotated[str, Field(json_schema_extra={"enum": sorted(ROLES)})]
    content: str | None = None
    images: list[Image] | None = None
    tool_calls: SkipJsonSchema[list[dict[str, Any]] | None] = None


class Body(BaseModel):
    """What chat and generate share. What stands elsewhere than it belongs is let go."""

    model_config = ConfigDict(extra="ignore", strict=True)
    model: Name
    stream: bool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), BeforeValidator(whole_number)] | None = None

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds that the model stays after this; None for ever."""
        return self.keep_alive if self.keep_alive is not None and 0 <= self.keep_alive < FOR_EVER_S else None


class ChatBody(Body):
    """The body of /api/chat."""

    messages: list[TurnBody] | None = None

    @property
    def turns(self) -> list[Json]:
        """Its messages as those of OpenAI's clients are; none where a model is only to be loaded or unloaded."""
        turns = [message.model_dump(exclude_none=True) for message in self.messages or ()]
        return [turn if turn["role"] == "assistant" else {**turn, "tool_calls": None} for turn in turns]


class GenerateBody(Body):
    """The body of /api/generate."""

    prompt: str | None = None
    system: str | None = None
    suffix: str | None = None
    images: list[Image] | None = None

    @property
    def turns(self) -> list[Json]:
        """The prompt as a conversation; none without one."""
        asked: Json = {"role": "user", "content": self.prompt or "", "images": self.images or []}
        if not self.prompt and not self.images:
            return []
        return [{"role": "system", "content": self.system}, asked] if self.system else [asked]


TextBody = ChatBody | GenerateBody


def read_named(kind: type[T], raw: bytes) -> T:
    """A body of its declared type, which names a model. Raises InvalidRequest with the path of what is wrong."""
    if not raw.strip():
        raise Refused("invalid_json", "missing request body")
    given = load_json(raw)
    if not str(given.get("model") or given.get("name") or "").strip():
        raise Refused("invalid_value", "model is required", "model")
    return validate(kind, given)


def read_text_body(kind: type[ChatBody] | type[GenerateBody], raw: bytes) -> tuple[TextBody, ParsedBody | None]:
    """A body of chat or generate, and the request in it; None where a model is only to be loaded or unloaded."""
    body = read_named(kind, raw)
    if body.think:
        raise Refused("unsupported_parameter", f"{quoted(body.model)} does not support thinking", "think")
    if isinstance(body, GenerateBody) and body.suffix:
        raise Refused("unsupported_parameter", f"{quoted(body.model)} does not support insert", "suffix")
    if not body.turns:
        return body, None
    turns = read_turns({"messages": body.turns})
    schema = '{"type": "object"}' if body.format == "json" else read_schema({"format": body.format or None}, "format")
    sampling = (body.options or Options()).sampling(schema)
    told = (body.top_logprobs or 0) if body.logprobs else None
    request = ModelRequest(Chat(texts_of(turns)), sampling=sampling, top_logprobs=told)
    images = tuple(media_in(turns))
    return body, ParsedBody(request, body.model, body.stream is not False, images, place=partial(place_media, turns))


# --- replies ---------------------------------------------------------------------------------


def error_body(failed: Failure) -> Json:
    """The error as a text, which Ollama's clients show."""
    return {"error": failed.message}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def line(value: Json) -> str:
    """A record of a stream."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"


def ndjson(keep_alive: Callable[[], Json]) -> Framing:
    """A record a line. An empty line is none, so what keeps a stream alive is one too."""
    return Framing(
        lambda error: (line(error_body(to_failure(error))),), lambda: line(keep_alive()), "application/x-ndjson"
    )


def record(body: TextBody, text: str, tokens: Sequence[Token] = ()) -> Json:
    """A piece of the answer, or all of it. The model is called as the request calls it."""
    said: Json = {"message": {"role": "assistant", "content": text}}
    probabilities = {"logprobs": [_logprob(token) for token in tokens]} if tokens else {}
    shared = {"model": body.model, "created_at": now(), "done": False}
    return shared | (said if isinstance(body, ChatBody) else {"response": text}) | probabilities


def _logprob(token: Token) -> Json:
    told = [{"token": t.text, "logprob": t.logprob, "bytes": list(t.utf8 or b"")} for t in (token, *token.top)]
    return {**told[0], "top_logprobs": told[1:]}


def end(done: Done, arrived: float) -> Json:
    """What the last record tells besides. Durations are in nanoseconds and add up: loading is what is left."""
    t, usage = done.timings, done.usage
    prefill, decode = (max(int(s * 1e9), 1) for s in (t.encode_s + t.prefill_s, t.decode_s))
    load = max(int((time.perf_counter() - arrived) * 1e9) - prefill - decode, 1)
    return {
        "done": True,
        "done_reason": "length" if done.finish_reason == "length" else "stop",
        "total_duration": load + prefill + decode,
        "load_duration": load,
        "prompt_eval_count": max(usage.prompt_tokens, 1),
        "prompt_eval_duration": prefill,
        "eval_count": max(usage.completion_tokens, 1),
        "eval_duration": decode,
    }


async def records(body: TextBody, events: AsyncIterator[Event], arrived: float) -> AsyncIterator[str]:
    """The answer as it comes."""
    async for event in events:
        match event:
            case TextDelta(text, tokens):
                yield line(record(body, text, tokens))
            case Done():
                yield line(record(body, "") | end(event, arrived))


def whole(body: TextBody, events: Sequence[Event], arrived: float) -> Json:
    """The answer in one piece."""
    deltas = [event for event in events if isinstance(event, TextDelta)]
    tokens = [token for delta in deltas for token in delta.tokens]
    (done,) = (event for event in events if isinstance(event, Done))
    return record(body, "".join(delta.text for delta in deltas), tokens) | end(done, arrived)


# --- routes ----------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A model's name as the others of this server have it: vl:latest is vl, and moondream2:int8 is moondream2-int8."""
    return re.sub(r":latest$", "", name.strip(), flags=re.IGNORECASE).replace(":", "-")


def served_key(models: Models, name: str) -> str:
    """The key of a model that is served. Raises Refused, as there is no default for Ollama's clients."""
    found = models.match(plain_name(name))
    if found is None:
        raise Refused("model_not_found", f"model '{name[:100]}' not found", "model")
    return models.route_of(found).models[0]


def add_routes(app: FastAPI, context: ServerContext) -> None:
    models = context.models

    async def answer(http: Request, kind: type[ChatBody] | type[GenerateBody]) -> Response:
        arrived = time.perf_counter()
        bodies: list[TextBody] = []

        def reader(raw: bytes) -> ParsedBody:
            body, parsed = read_text_body(kind, raw)
            bodies.append(body)
            key = served_key(models, body.model)
            if parsed is None:
                raise _NothingAsked
            return replace(parsed, model=id_of(key))

        try:
            response = await context.answer(http, reader)
        except _NothingAsked:
            return JSONResponse(await _load_or_unload(models, bodies[0]))
        (body,), headers = bodies, model_header(response.facts)
        if body.keep_alive is not None:
            models.pool.set_keep_alive(served_key(models, body.model), body.keep_alive_s)
        events = (event async for _, event in response.events)
        if response.parsed.stream:
            framing = ndjson(lambda: record(body, ""))
            return await stream_response(records(body, events, arrived), framing, context.silence, headers)
        return JSONResponse(whole(body, [event async for event in events], arrived), headers=headers)

    @app.post("/api/chat")
    async def chat(http: Request) -> Response:
        return await answer(http, ChatBody)

    @app.post("/api/generate")
    async def generate(http: Request) -> Response:
        return await answer(http, GenerateBody)


class _NothingAsked(Exception):
    """A body without messages or a prompt, which loads or unloads its model."""


async def _load_or_unload(models: Models, body: TextBody) -> Json:
    key = served_key(models, body.model)
    unload = body.keep_alive is not None and body.keep_alive_s == 0
    if unload:
        with suppress(ModelInUse):  # it goes when it is done
            await run_blocking(partial(models.pool.unload, key))
    else:
        await run_blocking(partial(models.load, [key]))
    if body.keep_alive is not None:
        models.pool.set_keep_alive(key, body.keep_alive_s)
    return record(body, "") | {"done": True, "done_reason": "unload" if unload else "load"}
