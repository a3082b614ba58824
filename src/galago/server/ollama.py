"""Ollama's API: chat and generate, for the applications that speak it to a local model (ollama_models has the rest).

Text is drawn greedily unless `options` say otherwise, since small models answer worse at Ollama's usual 0.8. Options
that mean nothing here are let go, as Ollama does; so are `tools`, which no model here calls.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal, NotRequired

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from galago.errors import ModelInUse, quoted
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.messages import ROLES, with_tools
from galago.request import Done, Event, Request, Role, Sampling, TextDelta, Token
from galago.server.bodies import Json
from galago.server.conversation import Call, ConversationBody, Parts, Turn
from galago.server.dialect import Defaults, Dialect, Numbered, Reply, Route
from galago.server.errors import Refused, to_failure
from galago.server.fields import WHOLE, Fields, Items, JsonSchema, Name, Text
from galago.server.models import Models
from galago.server.ollama_models import NDJSON, OllamaError, error_body, line, now, served_key
from galago.server.serving import run_blocking
from galago.server.shown import File, MediaRef

DURATION = r"[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?(?:ns|us|µs|ms|s|m|h))+|[0-9]+(?:\.[0-9]*)?)"
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
FOR_EVER_S = 1e9


def _seconds(value: Any) -> Any:
    """A duration such as 5m, 1h30m or 300 in seconds; a number as it is."""
    if isinstance(value, int | float):
        return value
    if not isinstance(value, str) or not re.fullmatch(DURATION, value):
        raise ValueError("must be seconds, or a duration such as 5m or 1h30m")
    if value[-1] in "0123456789.":
        return float(value)
    parts = re.findall(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)", value)
    return sum(float(number) * UNITS[unit] for number, unit in parts) * (-1 if value.startswith("-") else 1)


def _cut(value: Any) -> Any:
    """A number as Ollama reads it where it wants a whole one."""
    return int(min(max(value, -(2.0**62)), 2.0**62)) if isinstance(value, float) and value == value else value


Cut = Annotated[int, BeforeValidator(_cut), WithJsonSchema({"type": "number"})]
KeepAlive = Annotated[
    float,
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{DURATION}$"}]}),
]
"""Seconds; less than 0 is for ever."""


class Options(Fields):
    """How text is drawn. Values that are out of range are taken as the nearest that is in it."""

    temperature: float | None = None
    top_p: float | None = None
    min_p: float | None = None
    top_k: Cut | None = None
    seed: Cut | None = None
    num_predict: Cut | None = None
    stop: Items[Text] | Text | None = None
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


class TurnBody(Fields):
    """A message of /api/chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | None = None
    images: Items[File] | None = None
    tool_calls: SkipJsonSchema[Items[Call] | None] = None

    def turn(self, path: str) -> Turn:
        parts: Parts = (*_images(self.images, path), self.content or "")
        role: Role = ROLES[self.role]
        if (role == "assistant" and self.tool_calls) or self.role != role:
            return role, with_tools(self.model_dump(include={"role", "tool_calls"}), parts, path)
        return role, parts


def _images(given: Sequence[str] | None, path: str) -> list[MediaRef]:
    return [MediaRef(file.strip(), f"{path}images.{i}") for i, file in enumerate(given or ())]


class OllamaBody(ConversationBody):
    """What chat and generate share. What stands elsewhere than it belongs is let go."""

    model: Name
    format: Literal["", "json"] | JsonSchema | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None

    def check(self) -> None:
        if self.think:
            raise Refused("unsupported_parameter", f"{quoted(self.model)} does not support thinking", "think")

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def keep_alive_s(self) -> float | None:
        """Seconds that the model stays after this; None for ever."""
        return self.keep_alive if self.keep_alive is not None and 0 <= self.keep_alive < FOR_EVER_S else None

    @property
    def schema_path(self) -> str:
        return "format"

    @property
    def is_idle(self) -> bool:
        return not self._turns

    def key(self, models: Models) -> str:
        return served_key(models, self.model)

    def on_start(self, models: Models) -> None:
        if self.keep_alive is not None:
            models.pool.set_keep_alive(self.key(models), self.keep_alive_s)

    def request(self, opened: Sequence[Picture | Clip], defaults: Defaults) -> Request:
        schema = '{"type": "object"}' if self.format == "json" else self.format or None
        return Request(
            self.conversation(opened),
            sampling=(self.options or Options()).sampling(schema),
            detail=self.details(opened, defaults),
            timeout=defaults.timeout,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )

    def record(self, text: str, tokens: Sequence[Token] = ()) -> Json:
        """A piece of the answer, or all of it. The model is called as the request calls it."""
        told = {"logprobs": [_logprob(token) for token in tokens]} if tokens else {}
        return {"model": self.model, "created_at": now(), "done": False, **self.said(text), **told}

    def said(self, text: str) -> Json:
        raise NotImplementedError


class OllamaChatBody(OllamaBody):
    """The body of /api/chat."""

    messages: Items[TurnBody] | None = None

    def turns(self) -> list[Turn]:
        turns = [message.turn(f"messages.{i}.") for i, message in enumerate(self.messages or ())]
        # What another side shows is shown with what the user says next.
        for i, (role, parts) in enumerate(turns[:-1]):
            if shown := [part for part in parts if isinstance(part, MediaRef)] if role != "user" else []:
                turns[i] = (role, tuple(part for part in parts if isinstance(part, str)))
                turns[i + 1] = (turns[i + 1][0], (*shown, *turns[i + 1][1]))
        return turns

    def said(self, text: str) -> Json:
        return {"message": {"role": "assistant", "content": text}}


class GenerateBody(OllamaBody):
    """The body of /api/generate."""

    prompt: Text | None = None
    system: Text | None = None
    suffix: str | None = None
    images: Items[File] | None = None

    def check(self) -> None:
        super().check()
        if self.suffix:
            raise Refused("unsupported_parameter", f"{quoted(self.model)} does not support insert", "suffix")

    def turns(self) -> list[Turn]:
        if not self.prompt and not self.images:
            return []
        asked: Turn = ("user", (*_images(self.images, ""), self.prompt or ""))
        return [("system", (self.system,)), asked] if self.system else [asked]

    def said(self, text: str) -> Json:
        return {"response": text}


def _logprob(token: Token) -> Json:
    told = [{"token": t.text, "logprob": t.logprob, "bytes": list(t.utf8 or b"")} for t in (token, *token.top)]
    return {**told[0], "top_logprobs": told[1:]}


class Record(TypedDict):
    """A line of an answer, or all of it; the last one tells what it took, in nanoseconds."""

    model: str
    created_at: str
    done: bool
    message: NotRequired[Json]
    response: NotRequired[str]
    done_reason: NotRequired[str]
    total_duration: NotRequired[int]
    load_duration: NotRequired[int]
    prompt_eval_count: NotRequired[int]
    prompt_eval_duration: NotRequired[int]
    eval_count: NotRequired[int]
    eval_duration: NotRequired[int]
    warnings: NotRequired[list[str]]


class RecordReply(Reply):
    content_type = NDJSON
    body: OllamaBody

    def whole(self, events: Sequence[Numbered]) -> Json:
        deltas = [event for _, event in events if isinstance(event, TextDelta)]
        tokens = [token for delta in deltas for token in delta.tokens]
        (done,) = (event for _, event in events if isinstance(event, Done))
        return self.body.record("".join(delta.text for delta in deltas), tokens) | self._end(done)

    def piece(self, choice: int, event: Event) -> Iterator[str]:
        match event:
            case TextDelta(text, tokens):
                yield line(self.body.record(text, tokens))
            case Done():
                yield line(self.body.record("") | self._end(event))

    def failed(self, error: Exception) -> tuple[str]:
        return (line(error_body(to_failure(error))),)

    def keep_alive(self) -> str:
        return line(self.body.record(""))  # an empty line is no record

    def _end(self, done: Done) -> Json:
        """What the last record tells besides. The durations add up: loading is what is left."""
        t, usage = done.timings, done.usage
        prefill, decode = (max(int(s * 1e9), 1) for s in (t.encode_s + t.prefill_s, t.decode_s))
        load = max(int((time.perf_counter() - self.arrived) * 1e9) - prefill - decode, 1)
        return {
            "done": True,
            "done_reason": "length" if done.finish_reason == "length" else "stop",
            "total_duration": load + prefill + decode,
            "load_duration": load,
            "prompt_eval_count": max(usage.prompt_tokens, 1),
            "prompt_eval_duration": prefill,
            "eval_count": max(usage.completion_tokens, 1),
            "eval_duration": decode,
            **({"warnings": list(done.warnings)} if done.warnings else {}),
        }


async def load_or_unload(models: Models, body: OllamaBody) -> Json:
    """Answers a body without messages or a prompt, which loads its model, or unloads it with keep_alive 0."""
    key, unload = body.key(models), body.keep_alive is not None and body.keep_alive_s == 0
    if unload:
        with suppress(ModelInUse):  # it goes when it is done
            await run_blocking(partial(models.pool.unload, key))
    else:
        await run_blocking(partial(models.load, [key]))
    body.on_start(models)
    return body.record("") | {"done": True, "done_reason": "unload" if unload else "load"}


def _route(name: str, body: type[OllamaBody]) -> Route:
    streams = "a record a line; without `stream: false` always"
    return Route(
        f"ollama_{name}", (f"/api/{name}",), f"Ollama's {name}", body, RecordReply, Record, streams, load_or_unload
    )


OLLAMA = Dialect("Ollama", (_route("chat", OllamaChatBody), _route("generate", GenerateBody)), error_body, OllamaError)
