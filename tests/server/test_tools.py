"""Tools, as home automation and chat front ends always send them: none is called, and the answer is text."""

import json
from typing import Any

import httpx
import openai
import pytest
from serving import ask

QUESTION = "How many people are in the image?"
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "lamp",
            "description": "https://example.org/lamp.png",
            "parameters": {"type": "object", "properties": {}, "required": []},
        },
    }
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}


WARM: dict[str, Any] = {"model": "any", "max_tokens": 12, "temperature": 1, "seed": 1}


def said(client: openai.OpenAI, messages: list[Any], **options: Any) -> tuple[str | None, int]:
    """The answer, and how long the prompt was."""
    reply = client.chat.completions.create(messages=messages, **WARM, **options)
    assert reply.choices[0].message.tool_calls is None
    return reply.choices[0].message.content, reply.usage.prompt_tokens


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none", "parallel_tool_calls": True}])
def test_tools_change_nothing(client: openai.OpenAI, photo: str, choice: dict[str, Any]) -> None:
    plain = said(client, ask(QUESTION, photo))
    assert said(client, ask(QUESTION, photo), tools=TOOLS, **choice) == plain
    chosen = {"function_call": choice["tool_choice"]} if choice else {}
    functions = [tool["function"] for tool in TOOLS]
    assert said(client, ask(QUESTION, photo), functions=functions, **chosen) == plain
    parts = client.chat.completions.create(messages=ask(QUESTION, photo), tools=TOOLS, stream=True, **WARM, **choice)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == plain[0] != ""


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "lamp"}}])
def test_a_call_cannot_be_demanded(client: openai.OpenAI, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="auto and none are allowed") as raised:
        said(client, ask("On, please."), tools=TOOLS, tool_choice=choice)
    assert (raised.value.code, raised.value.param) == ("unsupported_parameter", "tool_choice")


@pytest.mark.parametrize("before", [None, "", "Well."])
def test_calls_and_answers_are_text_of_the_conversation(client: openai.OpenAI, photo: str, before: str | None) -> None:
    told = "\n".join([before] * bool(before) + ['Called the tool lamp with {"on": true}.'])
    plain = [*ask("On, please.", photo), {"role": "assistant", "content": told}]
    plain += [{"role": "user", "content": text} for text in ("The tool answered: It is on.", "The tool answered: ok")]
    called = {"role": "assistant", "content": before, "tool_calls": [CALL]}
    answered = [{"role": "tool", "tool_call_id": "call_1", "content": text} for text in ("It is on.", "ok")]
    wanted = said(client, plain)
    assert said(client, [*ask("On, please.", photo), called, *answered], tools=TOOLS) == wanted
    called = {"role": "assistant", "content": before, "function_call": CALL["function"]}
    answered = [{"role": "function", "name": "lamp", "content": text} for text in ("It is on.", "ok")]
    assert said(client, [*ask("On, please.", photo), called, *answered]) == wanted


@pytest.mark.parametrize(
    ("calls", "at"),
    [
        (7, "tool_calls"),
        ({"name": "lamp"}, "tool_calls"),
        ([7], "tool_calls.0"),
        ([CALL, {"id": "call_2"}], "tool_calls.1.function"),
        ([{"function": {"name": 7}}], "tool_calls.0.function.name"),
        ([{"function": {"name": "half \ud800"}}], "tool_calls.0.function.name"),
    ],
)
def test_what_is_no_call(http: httpx.Client, calls: Any, at: str) -> None:
    body = {"messages": [{"role": "assistant", "tool_calls": calls}, *ask("And?")]}
    error = http.post("/v1/chat/completions", content=json.dumps(body)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", f"messages.0.{at}")
