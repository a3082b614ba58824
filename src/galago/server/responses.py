"""OpenAI's responses for texts and images, without state: what is kept, and tools, are the client's own matter."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.messages import ROLES
from galago.request import Done, Event, Request, TextDelta
from galago.server import openai
from galago.server.bodies import Json
from galago.server.conversation import ConversationBody, Turn
from galago.server.dialect import Defaults, Dialect, Numbered, Reply, Route
from galago.server.errors import Failure, to_failure
from galago.server.fields import (
    Count,
    Fields,
    Items,
    ResponseFormat,
    SamplingFields,
    Temperature,
    Text,
    TopP,
    Unsupported,
    detail_of,
    schema_of,
)
from galago.server.shown import DetailName, File, MediaRef
from galago.server.streaming import sse_event


class InputText(Fields):
    type: Literal["input_text", "output_text", "text"]
    text: Text


class InputImage(Fields):
    type: Literal["input_image"]
    image_url: File
    detail: DetailName | None = None


class InputItem(Fields):
    """A message of the input."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | Items[Annotated[InputText | InputImage, Field(discriminator="type")]]

    def turn(self, path: str) -> Turn:
        if isinstance(self.content, str):
            return ROLES[self.role], (self.content,)
        return ROLES[self.role], tuple(
            part.text
            if isinstance(part, InputText)
            else MediaRef(part.image_url.strip(), f"{path}content.{i}.image_url", False, detail_of(part.detail))
            for i, part in enumerate(self.content)
        )


class TextOptions(Fields):
    format: ResponseFormat | None = None


class ResponsesBody(ConversationBody):
    """The body of /v1/responses."""

    input: Text | Items[InputItem]
    instructions: Text | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    text: TextOptions | None = None
    previous_response_id: Annotated[Any, Unsupported(())] = None
    tool_choice: Annotated[Any, Unsupported(("auto", "none"))] = None

    @property
    def schema_path(self) -> str:
        return "text.format"

    def turns(self) -> list[Turn]:
        asked: list[Turn] = (
            [("user", (self.input,))]
            if isinstance(self.input, str)
            else [item.turn(f"input.{i}.") for i, item in enumerate(self.input)]
        )
        return [("system", (self.instructions,)), *asked] if self.instructions else asked

    def request(self, opened: Sequence[Picture | Clip], defaults: Defaults) -> Request:
        drawn = SamplingFields(temperature=self.temperature, top_p=self.top_p, max_tokens=self.max_output_tokens)
        form = self.text.format if self.text else None
        return Request(
            self.conversation(opened),
            sampling=drawn.sampling(schema_of(form)),
            detail=self.details(opened, defaults),
            timeout=defaults.timeout,
        )


def error_body(failed: Failure) -> Json:
    """OpenAI's error object, which calls the conversation as this body does."""
    error = openai.error_body(failed)["error"]
    param = "input" if error["param"] == "messages" else error["param"]
    return {"error": {**error, "message": error["message"].replace("messages must", "input must"), "param": param}}


class ResponsesReply(Reply):
    """The response object as it grows, and the events that tell of it."""

    body: ResponsesBody

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.id, self.item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.created, self.texts, self.count = int(time.time()), list[str](), 0

    @property
    def content(self) -> Json:
        return {"type": "output_text", "text": "".join(self.texts), "annotations": []}

    def message(self, status: str, content: Sequence[Json]) -> Json:
        return {"type": "message", "id": self.item, "status": status, "role": "assistant", "content": list(content)}

    def response(self, status: str, output: Sequence[Json] = (), **more: Any) -> Json:
        shared = {"id": self.id, "object": "response", "created_at": self.created, "model": self.model}
        constant = {"parallel_tool_calls": False, "tool_choice": "auto", "tools": [], "metadata": {}, "store": False}
        empty = {"error": None, "incomplete_details": None, "usage": None}
        return {**shared, "status": status, "output": list(output), **constant, **empty, **more}

    def ended(self, done: Done) -> Json:
        cut, usage = done.finish_reason == "length", done.usage
        status = "incomplete" if cut else "completed"
        told = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        why = {"reason": "max_output_tokens"} if cut else None
        warned = {"warnings": list(done.warnings)} if done.warnings else {}
        output = [self.message(status, [self.content])]
        return self.response(status, output, incomplete_details=why, usage=told, **warned)

    def event(self, kind: str, **more: Any) -> str:
        self.count += 1
        told = {"type": f"response.{kind}", "sequence_number": self.count - 1, **more}
        return sse_event(told, event=f"response.{kind}")

    def begin(self) -> Iterator[str]:
        for kind in ("created", "in_progress"):
            yield self.event(kind, response=self.response("in_progress"))

    def failed(self, error: Exception) -> Iterator[str]:
        """The last events; the client's helper for streams wants to hear first that there is a response."""
        told = error_body(to_failure(error))["error"]
        if not self.count:
            yield from self.begin()
        why = {"code": told["code"], "message": told["message"]}
        yield self.event("failed", response=self.response("failed", error=why))

    def piece(self, choice: int, event: Event) -> Iterator[str]:
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        if not self.count:
            yield from self.begin()
            yield self.event("output_item.added", output_index=0, item=self.message("in_progress", []))
            yield self.event("content_part.added", **place, part=self.content)
        match event:
            case TextDelta(text):
                self.texts.append(text)
                yield self.event("output_text.delta", **place, delta=text, logprobs=[])
            case Done():
                ended = self.ended(event)
                yield self.event("output_text.done", **place, text=self.content["text"], logprobs=[])
                yield self.event("content_part.done", **place, part=self.content)
                yield self.event("output_item.done", output_index=0, item=ended["output"][0])
                yield self.event(ended["status"], response=ended)

    def whole(self, events: Sequence[Numbered]) -> Json:
        self.texts = [event.text for _, event in events if isinstance(event, TextDelta)]
        (done,) = (event for _, event in events if isinstance(event, Done))
        return self.ended(done)


ROUTE = Route(
    "responses",
    ("/v1/responses", "/responses"),
    "Answer an input, without state",
    ResponsesBody,
    ResponsesReply,
    Json,
    streams="response.created, response.output_text.delta and the others of OpenAI's events.",
)
RESPONSES = Dialect("OpenAI", (ROUTE,), error_body, openai.ErrorBody)
