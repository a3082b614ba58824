"""OpenAI's chat completions: from Events to JSON, in one piece or as server-sent events."""

import time
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from galago.request import Done, Event, Reasoning, TextDelta, Token
from galago.server.bodies import Json
from galago.server.errors import Failure, to_failure
from galago.server.fields import ParsedBody
from galago.server.streaming import Framing, sse_event

_TYPE = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
# No fault of the server's, nor of the request: clients may tell it from both.
_TYPE_OF_CODE = {"not_a_number": "model_error"}
# Arguments of skills and the JSON fields that they come from, where the names differ.
_FIELD = {"question": "messages", "image": "messages", "json_schema": "response_format"}


def error_body(failed: Failure) -> Json:
    """OpenAI's error object, from which its clients raise the right exception with code and param."""
    param = "messages" if failed.is_too_long else _FIELD.get(failed.param, failed.param) if failed.param else None
    kind = _TYPE_OF_CODE.get(failed.code) or _TYPE.get(failed.status, "invalid_request_error")
    return {"error": {"message": failed.message, "type": kind, "param": param, "code": failed.code}}


FRAMING = Framing(lambda error: (sse_event(error_body(to_failure(error))),))


@dataclass(frozen=True)
class Head:
    """What all parts of one reply share. `arrived` is a reading of time.perf_counter(); with `performance` times
    are told as texts too, as the AI Manual Assistant's servers do."""

    model: str
    fingerprint: str
    arrived: float
    performance: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def part(self, kind: str, choices: list[Json]) -> Json:
        shared = {"created": self.created, "model": self.model, "system_fingerprint": self.fingerprint}
        return {"id": self.id, "object": kind, **shared, "choices": choices}


def _usage(done: Sequence[Done]) -> Json:
    """Of all choices together. They share one prompt, which counts once, and what one of them computed of it."""
    u = done[0].usage
    written = sum(d.usage.completion_tokens for d in done)
    details = {
        "cached_tokens": min(d.usage.cached_tokens for d in done),
        "image_tokens": u.image_tokens,
        "text_tokens": u.prompt_tokens - u.image_tokens,
    }
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": u.prompt_tokens + written,
        "prompt_tokens_details": details,
    }


def _metrics(head: Head, done: Sequence[Done]) -> Json:
    """Seconds, and what of the images could not be read. Choices run side by side: the longest counts."""
    passed = time.perf_counter() - head.arrived
    took = max(d.timings.encode_s + d.timings.prefill_s + d.timings.decode_s for d in done)
    times = {"processing_time": passed, "inference_time": min(passed, took)}
    warned = {"warnings": list(done[0].warnings)} if done[0].warnings else {}
    texts = {"performance": {name: f"{t:.2f}s" for name, t in times.items()}} if head.performance else {}
    return {**times, **texts, **warned}


def _logprobs(tokens: Iterable[Token]) -> Json:
    def item(token: Token) -> Json:
        # The numbers of the bytes, since a token may hold only a part of a character.
        numbers = None if token.utf8 is None else list(token.utf8)
        return {"token": token.text, "logprob": token.logprob, "bytes": numbers}

    return {"content": [{**item(t), "top_logprobs": [item(other) for other in t.top]} for t in tokens], "refusal": None}


def completion(head: Head, parsed: ParsedBody, events: Iterable[tuple[int, Event]]) -> Json:
    """The reply that is sent in one piece, from all events with the number of the choice that each belongs to."""
    messages: list[Json] = [{"role": "assistant", "content": "", "refusal": None} for _ in range(parsed.n)]
    tokens: list[list[Token]] = [[] for _ in messages]
    done: dict[int, Done] = {}
    for i, event in events:
        match event:
            case TextDelta(text, of_text):
                messages[i]["content"] += text
                tokens[i] += of_text
            case Reasoning(text):
                messages[i]["reasoning"] = text
            case Done():
                done[i] = event
    with_logprobs = parsed.request.top_logprobs is not None
    choices = [
        {
            "index": i,
            "message": message,
            "logprobs": _logprobs(tokens[i]) if with_logprobs else None,
            "finish_reason": done[i].finish_reason,
        }
        for i, message in enumerate(messages)
    ]
    ends = list(done.values())
    return head.part("chat.completion", choices) | {"usage": _usage(ends), **_metrics(head, ends)}


async def chunks(head: Head, parsed: ParsedBody, events: AsyncIterator[tuple[int, Event]]) -> AsyncIterator[str]:
    """The reply as server-sent events."""

    def chunk(choices: list[Json], **more: Any) -> str:
        usage = {"usage": None} if parsed.include_usage else {}
        return sse_event(head.part("chat.completion.chunk", choices) | usage | more)

    def choice(i: int, delta: Json, reason: str | None = None, logprobs: Json | None = None) -> list[Json]:
        return [{"index": i, "delta": delta, "finish_reason": reason, "logprobs": logprobs}]

    begun: set[int] = set()
    done: list[Done] = []
    async for i, event in events:
        if i not in begun:
            begun.add(i)
            yield chunk(choice(i, {"role": "assistant", "content": ""}))
        match event:
            case TextDelta(text, tokens):
                yield chunk(choice(i, {"content": text}, logprobs=_logprobs(tokens) if tokens else None))
            case Reasoning(text):
                yield chunk(choice(i, {"reasoning": text}))
            case Done(finish_reason=reason):
                done.append(event)
                yield chunk(choice(i, {}, reason))
    if parsed.include_usage:
        yield chunk([], usage=_usage(done), **_metrics(head, done))
    yield "data: [DONE]\n\n"
