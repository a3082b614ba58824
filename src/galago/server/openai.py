"""OpenAI's chat completions."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr

from galago.errors import InvalidRequest
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Query, Request, Skill
from galago.server.conversation import ConversationBody, Messages, Turn, show_beside
from galago.server.dialect import Defaults, Dialect, Route, single
from galago.server.fields import WHOLE, Fields, Items, ResponseFormat, SamplingFields, Unsupported, schema_of
from galago.server.openai_reply import ChatReply, Completion, ErrorBody, error_body
from galago.server.shown import Attached
from galago.server.tool_calls import Demand, ToolChoice

MAX_CHOICES = 8
_IN_FORM = Unsupported(instead="use response_format of type json_schema")
_IN_SYSTEM = Unsupported(instead="use a message of the role system")
_CALLED = Unsupported(("auto", "none"), "use tool_choice")
Tools = Annotated[Items[Any], Field(description="used only where tool_choice demands a call")]


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
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    # What clients of other servers ask for in fields of those.
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
    _demand: Demand | None = PrivateAttr(None)

    @property
    def demand(self) -> Demand | None:
        """The call of a tool that must be made."""
        return self._demand

    def check(self) -> None:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only for logprobs: true", "top_logprobs")
        if self.reasoning and any(message.role == "assistant" for message in self.messages):
            raise InvalidRequest("reasoning works on a conversation without an answer in it", "reasoning")
        if self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice):
            if self.response_format or self.reasoning:
                told = "tool_choice cannot demand a call beside response_format or reasoning"
                raise InvalidRequest(told, "tool_choice")
            self._demand = Demand(self.tool_choice, self.tools or ())

    @property
    def schema_path(self) -> str:
        return self.demand.schema_path if self.demand else "response_format"

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
            "sampling": self.sampling(self.demand.schema if self.demand else schema_of(self.response_format)),
            "timeout": defaults.timeout,
            "top_logprobs": told,
        }
        if not self.reasoning:
            return Request(chat, detail=details, **shared)
        ordered = sorted(chat.messages, key=lambda message: message.role == "user")
        asked = Query("\n\n".join(message.text for message in ordered), reasoning=True)
        return Request(asked, single(opened), detail=details[:1] or defaults.detail, **shared)


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
