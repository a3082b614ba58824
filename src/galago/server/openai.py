"""OpenAI's chat completions: bodies, and replies in one piece or as server-sent events."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from galago.errors import InvalidRequest
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Done, Event, FinishReason, Query, Reasoning, Request, Skill, TextDelta, Token
from galago.server.bodies import Json
from galago.server.conversation import ConversationBody, Messages, Turn, show_beside
from galago.server.dialect import Defaults, Dialect, Numbered, Reply, Route, single
from galago.server.errors import Failure, to_failure
from galago.server.fields import WHOLE, Fields, Items, ResponseFormat, SamplingFields, Unsupported, schema_of
from galago.server.shown import Attached
from galago.server.streaming import sse_event
from galago.version import VERSION

MAX_CHOICES = 8
_IN_FORM = Unsupported(instead="use response_format of type json_schema")
_IN_SYSTEM = Unsupported(instead="use a message of the role system")
_CALLED = Unsupported(("auto", "none"), "tools are accepted, but no model here calls one: auto and none are allowed")
Tools = Annotated[Items[Any], Field(description="accepted, and not used: no model here calls them")]


# --- bodies --------------------------------------------------------------------------------------


class StreamOptions(Fields):
    include_usage: bool | None = None


class ChatBody(ConversationBody, SamplingFields, Attached):
    """The body of a chat completion."""

    media_place = 'give it as a part of a user\'s content: {"type": "image_url", "image_url": {"url": ...}}'
    messages: Messages
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES, description="choices; 1 by default"), WHOLE] | None = None
    logprobs: Annotated[bool, Field(description="tell how likely each token was")] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, description="likely tokens told with each"), WHOLE] | None = None
    response_format: ResponseFormat | None = None
    reasoning: Annotated[bool, Field(description="think first; not in a conversation with an answer in it")] | None = (
        None
    )
    tools: Tools | None = None
    functions: Tools | None = None
    # What clients of other servers ask for in fields of those.
    tool_choice: Annotated[Any, _CALLED] = None
    function_call: Annotated[Any, _CALLED] = None
    audio: Annotated[Any, Unsupported(({},))] = None
    modalities: Annotated[Any, Unsupported(([], ["text"]))] = None
    web_search_options: Annotated[Any, Unsupported(({},))] = None
    json_schema: Annotated[Any, _IN_FORM] = None
    format: Annotated[Any, _IN_FORM] = None
    grammar: Annotated[Any, _IN_FORM] = None
    guided_json: Annotated[Any, _IN_FORM] = None
    guided_regex: Annotated[Any, _IN_FORM] = None
    guided_choice: Annotated[Any, _IN_FORM] = None
    guided_grammar: Annotated[Any, _IN_FORM] = None
    structured_outputs: Annotated[Any, _IN_FORM] = None
    system: Annotated[Any, _IN_SYSTEM] = None
    instructions: Annotated[Any, _IN_SYSTEM] = None
    stop_sequences: Annotated[Any, Unsupported(instead="use stop")] = None

    def check(self) -> None:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only for logprobs: true", "top_logprobs")
        if self.reasoning and any(message.role == "assistant" for message in self.messages):
            raise InvalidRequest("reasoning works on a conversation without an answer in it", "reasoning")

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def skill(self) -> type[Skill]:
        return Query if self.reasoning else self.kind

    def turns(self) -> list[Turn]:
        turns = [message.turn(f"messages.{i}.") for i, message in enumerate(self.messages)]
        return show_beside(turns, self.attached())

    def request(self, opened: Sequence[Picture | Clip], defaults: Defaults) -> Request:
        chat, details = self.conversation(opened), self.details(opened, defaults)
        told = (self.top_logprobs or 0) if self.logprobs else None
        shared: Any = {
            "sampling": self.sampling(schema_of(self.response_format)),
            "timeout": defaults.timeout,
            "top_logprobs": told,
        }
        if not self.reasoning:
            return Request(chat, detail=details, **shared)
        ordered = sorted(chat.messages, key=lambda message: message.role == "user")
        asked = Query("\n\n".join(message.text for message in ordered), reasoning=True)
        return Request(asked, single(opened), detail=details[:1] or defaults.detail, **shared)


# --- replies -------------------------------------------------------------------------------------


TokenInfo = TypedDict("TokenInfo", {"token": str, "logprob": float, "bytes": list[int] | None})


class TokenLogprob(TokenInfo):
    top_logprobs: list[TokenInfo]


Logprobs = TypedDict("Logprobs", {"content": list[TokenLogprob], "refusal": None})
ReplyMessage = TypedDict(
    "ReplyMessage", {"role": Literal["assistant"], "content": str, "refusal": None, "reasoning": NotRequired[str]}
)
Choice = TypedDict(
    "Choice", {"index": int, "message": ReplyMessage, "logprobs": Logprobs | None, "finish_reason": FinishReason}
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
_FIELD = {"question": "messages", "image": "messages", "json_schema": "response_format"}


def error_body(failed: Failure) -> Json:
    """OpenAI's error object, from which its clients raise the right exception with code and param."""
    param = "messages" if failed.is_too_long else _FIELD.get(failed.param, failed.param) if failed.param else None
    kind = _TYPE_OF_CODE.get(failed.code) or _TYPE.get(failed.status, "invalid_request_error")
    return {"error": {"message": failed.message, "type": kind, "param": param, "code": failed.code}}


class ChatReply(Reply):
    body: ChatBody

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.begun: set[int] = set()
        self.done: list[Done] = []

    def _part(self, kind: str, choices: Sequence[Any], **more: Any) -> Json:
        facts = self.facts
        fingerprint = f"{facts.revision}-{facts.precision}-galago{VERSION}"
        shared = {"created": self.created, "model": self.model, "system_fingerprint": fingerprint}
        return {"id": self.id, "object": kind, **shared, "choices": choices, **more}

    def whole(self, events: Sequence[Numbered]) -> Json:
        messages: list[ReplyMessage] = [
            {"role": "assistant", "content": "", "refusal": None} for _ in range(self.body.choices)
        ]
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
        choices: list[Choice] = [
            {
                "index": i,
                "message": message,
                "logprobs": _logprobs(tokens[i]) if self.body.logprobs else None,
                "finish_reason": done[i].finish_reason,
            }
            for i, message in enumerate(messages)
        ]
        ends = list(done.values())
        return self._part("chat.completion", choices, usage=_usage(ends), **self._metrics(ends))

    def _chunk(self, choices: Sequence[Any], **more: Any) -> str:
        usage = {"usage": None} if self._tells_usage else {}
        return sse_event(self._part("chat.completion.chunk", choices, **(usage | more)))

    def piece(self, i: int, event: Event) -> Iterator[str]:
        def choice(delta: Json, reason: str | None = None, logprobs: Any = None) -> str:
            return self._chunk([{"index": i, "delta": delta, "finish_reason": reason, "logprobs": logprobs}])

        if i not in self.begun:
            self.begun.add(i)
            yield choice({"role": "assistant", "content": ""})
        match event:
            case TextDelta(text, tokens):
                yield choice({"content": text}, logprobs=_logprobs(tokens) if tokens else None)
            case Reasoning(text):
                yield choice({"reasoning": text})
            case Done(finish_reason=reason):
                self.done.append(event)
                yield choice({}, reason)

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


CHAT = Route(
    "chat",
    # The newest of Moondream's clients use it too, with an endpoint that may lack the /v1.
    ("/v1/chat/completions", "/chat/completions"),
    "Answer a conversation, about an image or without one",
    ChatBody,
    ChatReply,
    Completion,
    streams="chat.completion.chunk objects, then `data: [DONE]`. An `error` object in their place is a failure.",
)
OPENAI = Dialect("OpenAI", (CHAT,), error_body, ErrorBody)
