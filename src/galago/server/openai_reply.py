"""OpenAI's chat completions: from Events to JSON, in one piece or as server-sent events."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from galago.request import Done, Event, FinishReason, Reasoning, TextDelta, Token
from galago.server.bodies import Json
from galago.server.dialect import Numbered, Reply
from galago.server.errors import Failure, to_failure
from galago.server.streaming import sse_event
from galago.server.tool_calls import ToolCall
from galago.version import VERSION

TokenInfo = TypedDict("TokenInfo", {"token": str, "logprob": float, "bytes": list[int] | None})


class TokenLogprob(TokenInfo):
    top_logprobs: list[TokenInfo]


Logprobs = TypedDict("Logprobs", {"content": list[TokenLogprob], "refusal": None})
Ended = FinishReason | Literal["tool_calls"]


class ReplyMessage(TypedDict):
    role: Literal["assistant"]
    content: Annotated[str | None, Field(description="null beside tool_calls")]
    refusal: None
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[ToolCall]]


Choice = TypedDict(
    "Choice", {"index": int, "message": ReplyMessage, "logprobs": Logprobs | None, "finish_reason": Ended}
)
PromptTokens = TypedDict("PromptTokens", {"cached_tokens": int, "image_tokens": int, "text_tokens": int})
Usage = TypedDict(
    "Usage",
    {"prompt_tokens": int, "completion_tokens": int, "total_tokens": int, "prompt_tokens_details": PromptTokens},
)
Metrics = TypedDict(
    "Metrics",
    {
        "processing_time": float,
        "inference_time": float,
        "performance": NotRequired[dict[str, str]],
        "warnings": NotRequired[Annotated[list[str], Field(description="what of the images could not be read")]],
    },
)


class Completion(Metrics):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: Annotated[str, Field(description="what ran, whatever name was asked for")]
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


ErrorObject = TypedDict(
    "ErrorObject",
    {"message": str, "type": str, "param": Annotated[str | None, Field(description="the field at fault")], "code": str},
)
ErrorBody = TypedDict("ErrorBody", {"error": ErrorObject})
# No fault of the server's, nor of the request: clients may tell it from both.
_TYPE_OF_CODE = {"not_a_number": "model_error"}
_TYPE = {401: "authentication_error", 429: "rate_limit_error", **dict.fromkeys((500, 503, 504), "server_error")}
# Arguments of skills and the JSON fields that they come from, where the names differ.
_FIELD = {"question": "messages", "image": "messages"}


def error_body(failed: Failure) -> Json:
    """OpenAI's error object, from which its clients raise the right exception with code and param."""
    param = "messages" if failed.is_too_long else _FIELD.get(failed.param, failed.param) if failed.param else None
    kind = _TYPE_OF_CODE.get(failed.code) or _TYPE.get(failed.status, "invalid_request_error")
    return {"error": {"message": failed.message, "type": kind, "param": param, "code": failed.code}}


class ChatReply(Reply):
    body: Any

    def __init__(self, body: Any, *given: Any) -> None:
        super().__init__(body, *given)
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.begun: set[int] = set()
        self.called = [""] * body.choices
        self.done: list[Done] = []

    def _part(self, kind: str, choices: Sequence[Any], **more: Any) -> Json:
        facts = self.facts
        fingerprint = f"{facts.revision}-{facts.precision}-galago{VERSION}"
        shared = {"created": self.created, "model": self.model, "system_fingerprint": fingerprint}
        return {"id": self.id, "object": kind, **shared, "choices": choices, **more}

    def whole(self, events: Sequence[Numbered]) -> Json:
        messages: list[ReplyMessage] = [
            {"role": "assistant", "content": None, "refusal": None} for _ in range(self.body.choices)
        ]
        tokens: list[list[Token]] = [[] for _ in messages]
        texts, done = [""] * len(messages), dict[int, Done]()
        for i, event in events:
            match event:
                case TextDelta(text, of_text):
                    texts[i] += text
                    tokens[i] += of_text
                case Reasoning(text):
                    messages[i]["reasoning"] = text
                case Done():
                    done[i] = event
        for message, text in zip(messages, texts, strict=True):
            if self.body.demand:
                message["tool_calls"] = [self.body.demand.call(text)]
            else:
                message["content"] = text
        choices: list[Choice] = [
            {
                "index": i,
                "message": message,
                "logprobs": _logprobs(tokens[i]) if self.body.logprobs else None,
                "finish_reason": self._reason(done[i]),
            }
            for i, message in enumerate(messages)
        ]
        ends = list(done.values())
        return self._part("chat.completion", choices, usage=_usage(ends), **self._metrics(ends))

    def _reason(self, done: Done) -> Ended:
        return "tool_calls" if self.body.demand and done.finish_reason == "stop" else done.finish_reason

    def _chunk(self, choices: Sequence[Any], **more: Any) -> str:
        usage = {"usage": None} if self._tells_usage else {}
        return sse_event(self._part("chat.completion.chunk", choices, **(usage | more)))

    def piece(self, i: int, event: Event) -> Iterator[str]:
        def choice(delta: Json, reason: str | None = None, logprobs: Any = None) -> str:
            return self._chunk([{"index": i, "delta": delta, "finish_reason": reason, "logprobs": logprobs}])

        if i not in self.begun:
            self.begun.add(i)
            yield choice({"role": "assistant", "content": None if self.body.demand else ""})
        match event:
            case TextDelta(text) if self.body.demand:
                self.called[i] += text
            case TextDelta(text, tokens):
                yield choice({"content": text}, logprobs=_logprobs(tokens) if tokens else None)
            case Reasoning(text):
                yield choice({"reasoning": text})
            case Done():
                self.done.append(event)
                if self.body.demand:  # in one piece, since of several tools the name is known at the end
                    yield choice({"tool_calls": [{"index": 0, **self.body.demand.call(self.called[i])}]})
                yield choice({}, self._reason(event))

    def end(self) -> Iterator[str]:
        if self._tells_usage:
            yield self._chunk([], usage=_usage(self.done), **self._metrics(self.done))
        yield "data: [DONE]\n\n"

    def failed(self, error: Exception) -> tuple[str]:
        return (sse_event(error_body(to_failure(error))),)

    @property
    def _tells_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.include_usage)

    def _metrics(self, done: Sequence[Done]) -> Metrics:
        """Seconds, and what of the images could not be read. Choices run side by side: the longest counts."""
        passed = time.perf_counter() - self.arrived
        took = max(d.timings.encode_s + d.timings.prefill_s + d.timings.decode_s for d in done)
        told: Metrics = {"processing_time": passed, "inference_time": min(passed, took)}
        if self.assistant_compat:  # as the AI Manual Assistant's servers tell them
            told["performance"] = {name: f"{told[name]:.2f}s" for name in ("processing_time", "inference_time")}
        if done[0].warnings:
            told["warnings"] = list(done[0].warnings)
        return told


def _usage(done: Sequence[Done]) -> Usage:
    """Of all choices together. They share one prompt, which counts once, and what one of them computed of it."""
    u, written = done[0].usage, sum(d.usage.completion_tokens for d in done)
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": written,
        "total_tokens": u.prompt_tokens + written,
        "prompt_tokens_details": {
            "cached_tokens": min(d.usage.cached_tokens for d in done),
            "image_tokens": u.image_tokens,
            "text_tokens": u.prompt_tokens - u.image_tokens,
        },
    }


def _logprobs(tokens: Iterable[Token]) -> Logprobs:
    def item(token: Token) -> TokenInfo:
        # The numbers of the bytes, since a token may hold only a part of a character.
        numbers = None if token.utf8 is None else list(token.utf8)
        return {"token": token.text, "logprob": token.logprob, "bytes": numbers}

    content: list[TokenLogprob] = [{**item(t), "top_logprobs": [item(other) for other in t.top]} for t in tokens]
    return {"content": content, "refusal": None}
