"""OpenAI's responses for texts and images, without state: what is kept, and tools, are the client's own matter.

A body becomes the chat of the same meaning (openai.py), so that both are answered alike.
"""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from galago.request import Done, Event, TextDelta
from galago.server import openai_reply
from galago.server.bodies import Json, load_json, validate, whole_number
from galago.server.errors import Failure, to_failure
from galago.server.fields import ParsedBody
from galago.server.openai import parse_chat
from galago.server.serving import ServerContext, model_header
from galago.server.streaming import Framing, sse_event, stream_response

PATHS = ("/v1/responses", "/responses")


class Part(BaseModel):
    """What parts have in common: others of their members are let go."""

    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(Part):
    type: Literal["input_text", "output_text", "text"]
    text: str


class ImagePart(Part):
    type: Literal["input_image"]
    image_url: Annotated[str, Field(json_schema_extra={"format": "image-url"})]
    detail: str | None = None


class InputItem(Part):
    """A message of the input."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class Format(Part):
    """What the text must fit: `schema` where its type is json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class TextOptions(Part):
    format: Format | None = None


class ResponsesBody(Part):
    """The body of /v1/responses."""

    input: str | list[InputItem]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1), BeforeValidator(whole_number)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    text: TextOptions | None = None
    previous_response_id: None = None
    tool_choice: Literal["auto", "none"] | None = None

    @property
    def chat(self) -> Json:
        """The body of a chat completion that asks for the same."""
        items = [InputItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = [{"role": item.role, "content": _content(item)} for item in items]
        if self.instructions:
            messages.insert(0, {"role": "system", "content": self.instructions})
        chat: Json = {"messages": messages, "max_tokens": self.max_output_tokens}
        chat |= {name: getattr(self, name) for name in ("model", "stream", "temperature", "top_p", "tool_choice")}
        if self.text and (form := self.text.format):
            chat["response_format"] = {"type": form.type, "schema": form.schema_}
        return chat


def _content(item: InputItem) -> str | list[Json]:
    if isinstance(item.content, str):
        return item.content
    kinds = ({"type": "text"} if isinstance(part, TextPart) else {} for part in item.content)
    return [part.model_dump(exclude_none=True) | kind for part, kind in zip(item.content, kinds, strict=True)]


def read_responses(raw: bytes) -> ParsedBody:
    """The request of a body. Raises InvalidRequest and Refused with the place of the field."""
    return parse_chat(validate(ResponsesBody, load_json(raw)).chat)


def error_body(failed: Failure) -> Json:
    """OpenAI's error object, which calls the fields as this body does."""
    message, param = (text and text.replace("messages.", "input.") for text in (failed.message, failed.param))
    return openai_reply.error_body(replace(failed, message=message or "", param=param))


class Reply:
    """The response object as it grows, and the events that tell of it."""

    def __init__(self, model: str) -> None:
        self.model, self.id, self.item = model, f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
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

    def end(self, done: Done) -> Json:
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
        return self.response(status, [self.message(status, [self.content])], incomplete_details=why, usage=told)

    def event(self, kind: str, **more: Any) -> str:
        self.count += 1
        told = {"type": f"response.{kind}", "sequence_number": self.count - 1, **more}
        return f"event: response.{kind}\n" + sse_event(told)

    def begin(self) -> tuple[str, ...]:
        return tuple(self.event(kind, response=self.response("in_progress")) for kind in ("created", "in_progress"))

    def fail(self, error: Exception) -> tuple[str, ...]:
        """The last events; the client's helper for streams wants to hear first that there is a response."""
        told = error_body(to_failure(error))["error"]
        failed = self.response("failed", error={"code": told["code"], "message": told["message"]})
        return (*(() if self.count else self.begin()), self.event("failed", response=failed))


async def events(reply: Reply, given: AsyncIterator[Event]) -> AsyncIterator[str]:
    """The response as server-sent events."""
    place = {"item_id": reply.item, "output_index": 0, "content_index": 0}
    async for event in given:
        if not reply.count:
            for line in reply.begin():
                yield line
            yield reply.event("output_item.added", output_index=0, item=reply.message("in_progress", []))
            yield reply.event("content_part.added", **place, part=reply.content)
        match event:
            case TextDelta(text):
                reply.texts.append(text)
                yield reply.event("output_text.delta", **place, delta=text, logprobs=[])
            case Done():
                ended = reply.end(event)
                yield reply.event("output_text.done", **place, text=reply.content["text"], logprobs=[])
                yield reply.event("content_part.done", **place, part=reply.content)
                yield reply.event("output_item.done", output_index=0, item=ended["output"][0])
                yield reply.event(ended["status"], response=ended)


def add_routes(app: FastAPI, context: ServerContext) -> None:
    async def respond(http: Request) -> Response:
        response = await context.answer(http, read_responses)
        reply, headers = Reply(response.facts.name), model_header(response.facts)
        given = (event async for _, event in response.events)
        if response.parsed.stream:
            return await stream_response(events(reply, given), Framing(reply.fail), context.silence, headers)
        whole = [event async for event in given]
        reply.texts = [event.text for event in whole if isinstance(event, TextDelta)]
        (done,) = (event for event in whole if isinstance(event, Done))
        return JSONResponse(reply.end(done), headers=headers)

    for path in PATHS:
        app.post(path)(respond)
