"""OpenAI's chat completions: from Events to JSON, in one piece or as server-sent events."""

import time
import uuid
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from galago.request import Done, Event, Reasoning, TextDelta
from galago.server.errors import Failure, failure
from galago.server.fields import Json
from galago.server.running import line

_TYPE = {
    401: "authentication_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
# Arguments of skills and the JSON fields that they come from, where the names differ.
_FIELD = {"question": "messages", "image": "messages"}


def error_body(failed: Failure) -> Json:
    """OpenAI's error object, from which its clients raise the right exception with code and param."""
    param = "messages" if failed.whole else _FIELD.get(failed.param, failed.param) if failed.param else None
    kind = _TYPE.get(failed.status, "invalid_request_error")
    return {"error": {"message": failed.message, "type": kind, "param": param, "code": failed.code}}


@dataclass(frozen=True)
class Head:
    """What all parts of one reply share. `arrived` is a reading of time.perf_counter()."""

    model: str
    fingerprint: str
    arrived: float
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def part(self, kind: str, choices: list[Json]) -> Json:
        shared = {"created": self.created, "model": self.model, "system_fingerprint": self.fingerprint}
        return {"id": self.id, "object": kind, **shared, "choices": choices}


def _usage(done: Done) -> Json:
    u = done.usage
    details = {
        "cached_tokens": u.cached_tokens,
        "image_tokens": u.image_tokens,
        "text_tokens": u.prompt_tokens - u.image_tokens,
    }
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": details,
    }


def _times(head: Head, done: Done) -> Json:
    t = done.timings
    passed = time.perf_counter() - head.arrived
    return {"processing_time": passed, "inference_time": min(passed, t.encode_s + t.prefill_s + t.decode_s)}


def completion(head: Head, events: Iterable[Event]) -> Json:
    """The reply that is sent in one piece, from all events of a run."""
    message: Json = {"role": "assistant", "content": "", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": None}
    reply = head.part("chat.completion", [choice])
    for event in events:
        match event:
            case TextDelta(text):
                message["content"] += text
            case Reasoning(text):
                message["reasoning"] = text
            case Done(finish_reason=reason):
                choice["finish_reason"] = reason
                reply |= {"usage": _usage(event), **_times(head, event)}
    return reply


async def chunks(head: Head, events: AsyncIterator[Event], include_usage: bool) -> AsyncIterator[str]:
    """The reply as server-sent events.

    A failure before the first event is raised, so that it can still get its status; a later one becomes
    an error event, since a stream that merely ends looks to clients like a shorter answer.
    """

    def chunk(choices: list[Json], **more: Any) -> str:
        usage = {"usage": None} if include_usage else {}
        return line(head.part("chat.completion.chunk", choices) | usage | more)

    def choice(delta: Json, reason: str | None = None) -> list[Json]:
        return [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]

    begun = False
    try:
        async for event in events:
            if not begun:
                begun = True
                yield chunk(choice({"role": "assistant", "content": ""}))
            match event:
                case TextDelta(text):
                    yield chunk(choice({"content": text}))
                case Reasoning(text):
                    yield chunk(choice({"reasoning": text}))
                case Done(finish_reason=reason):
                    yield chunk(choice({}, reason))
                    if include_usage:
                        yield chunk([], usage=_usage(event), **_times(head, event))
        yield "data: [DONE]\n\n"
    except Exception as error:
        if not begun:
            raise
        yield line(error_body(failure(error)))
