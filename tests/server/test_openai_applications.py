"""Bodies that applications send to OpenAI-compatible servers: what those read is there, and true, or of its form."""

import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1

PICTURE = (Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()
URL = "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode()
QUESTION = "What color is the circle?"
COLOR = next(thing.color for thing in scene_at(7, 1396, V1).things if thing.name == "circle")
TEXT: dict[str, Any] = {"type": "text", "text": QUESTION}
LOW: dict[str, Any] = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
AUTO: dict[str, Any] = {"type": "image_url", "image_url": {"url": URL, "detail": "auto"}}
TOOLS: list[Any] = [{"type": "function", "function": {"name": "TurnOn", "description": "…", "parameters": {}}}]
COLORED = {"color": {"type": "string", "maxLength": 9}}
SCHEMA = {"type": "object", "properties": COLORED, "required": ["color"], "additionalProperties": False}


def form(strict: bool) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "schema", "strict": strict, "schema": SCHEMA}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


BODIES: dict[str, dict[str, Any]] = {
    "Frigate": {"messages": [user(TEXT, LOW)], "presence_penalty": 0.3, "tools": TOOLS, "tool_choice": "auto"},
    "Karakeep": {"messages": [user(TEXT, LOW)], "max_tokens": 60, "response_format": form(True)},
    "LLM Vision": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            user({"type": "text", "text": "Image 1:"}, AUTO, TEXT),
        ],
        **{"max_completion_tokens": 100, "temperature": 0.0, "top_p": 0.95, "response_format": form(False)},
    },
    "paperless-gpt": {"messages": [user(AUTO, TEXT)], "max_completion_tokens": 128_000, "temperature": 0},
    "a chat front end": {
        "messages": [user(TEXT, {"type": "file", "file": {"filename": "a.png", "file_data": URL}})],
        **{"frequency_penalty": 0.1, "logit_bias": {}, "parallel_tool_calls": False, "functions": TOOLS},
    },
}


@pytest.mark.parametrize("application", BODIES)
def test_applications(bundled: openai.OpenAI, application: str) -> None:
    body = BODIES[application]
    reply = bundled.chat.completions.create(model="any", **body)
    said = reply.choices[0].message.content or ""
    assert list(json.loads(said)) == ["color"] if "response_format" in body else COLOR in said
    assert reply.usage is not None and reply.usage.total_tokens > 0
    parts = list(
        bundled.chat.completions.create(model="any", **body, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts[:-1]) == said
    assert parts[-1].usage.completion_tokens == reply.usage.completion_tokens


@tool
def lamp(on: bool) -> str:
    """Turn the lamp on or off."""
    return str(on)


def test_langchain_with_tools(bundled: openai.OpenAI) -> None:
    chat: Any = ChatOpenAI(model="any", base_url=str(bundled.base_url), api_key="none", temperature=0)  # type: ignore
    asked = HumanMessage([AUTO, TEXT])  # type: ignore[list-item]
    bound = chat.bind_tools([lamp], tool_choice="auto", parallel_tool_calls=False)
    said = bound.invoke([asked])
    assert COLOR in said.content and said.tool_calls == []
    assert "".join(part.content for part in bound.stream([asked])) == said.content
    called = AIMessage("", tool_calls=[{"name": "lamp", "args": {"on": True}, "id": "call_1"}])
    done = ToolMessage("The lamp is on.", tool_call_id="call_1")
    after = bound.invoke([asked, called, done, HumanMessage(QUESTION)])
    assert after.content and after.tool_calls == []
    (call,) = chat.bind_tools([lamp], tool_choice="lamp").invoke([asked]).tool_calls
    assert call["name"] == "lamp" and isinstance(call["args"]["on"], bool)
