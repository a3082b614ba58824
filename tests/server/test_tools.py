"""Tools, as home automation and chat front ends always send them: one is called only where that is demanded."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
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


def tool(name: str, **properties: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"
COLOR = tool("tell_color", color={"enum": ["red", "green", "blue"]})
COUNT = tool("count", number={"type": "integer", "minimum": 0, "maximum": 9})
NAMED = {"type": "function", "function": {"name": "tell_color"}}


@pytest.fixture(scope="module")
def shown() -> list[Any]:
    data = base64.b64encode(PICTURE.read_bytes()).decode()
    return ask("What color is the circle?", f"data:image/png;base64,{data}")


@pytest.mark.parametrize(("tools", "choice"), [([COLOR], "required"), ([COUNT, COLOR], NAMED)])
def test_a_call_that_is_demanded_is_made(bundled: openai.OpenAI, shown: list[Any], tools: Any, choice: Any) -> None:
    asked: dict[str, Any] = {"model": "any", "messages": shown, "tools": tools, "tool_choice": choice}
    (made,) = bundled.chat.completions.create(**asked).choices
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    (call,) = made.message.tool_calls or ()
    assert call.type == "function" and call.id
    assert (call.function.name, json.loads(call.function.arguments)) == ("tell_color", {"color": "blue"})
    with bundled.chat.completions.stream(**asked) as stream:
        (streamed,) = stream.get_final_completion().choices
    assert streamed.finish_reason == "tool_calls" and streamed.message.tool_calls
    assert json.loads(streamed.message.tool_calls[0].function.arguments) == {"color": "blue"}
    # The conversation goes on with what the tool says.
    answered = {"role": "tool", "tool_call_id": call.id, "content": "noted"}
    after: list[Any] = [*shown, made.message.model_dump(exclude_none=True), answered]
    assert bundled.chat.completions.create(model="any", messages=after, tools=tools).choices[0].message.content


@pytest.mark.parametrize("n", [1, 2])
def test_one_of_several_tools(client: openai.OpenAI, photo: str, n: int) -> None:
    """Random weights, which choose as they will: what they call fits."""
    schemas = {one["function"]["name"]: one["function"]["parameters"] for one in (COLOR, COUNT)}
    tools: list[Any] = [COLOR, COUNT]
    for seed in range(4):
        drawn: dict[str, Any] = {"temperature": 2, "seed": seed, "n": n, "max_tokens": 200}
        made = client.chat.completions.create(
            model="any", messages=ask(QUESTION, photo), tools=tools, tool_choice="required", **drawn
        )
        for choice in made.choices:
            (call,) = choice.message.tool_calls or ()
            assert choice.finish_reason == "tool_calls" and call.type == "function"
            jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


def test_langchain_has_its_form_filled(bundled: openai.OpenAI, shown: list[Any]) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    chat = chat_openai(base_url=str(bundled.base_url), api_key="none", model="any")
    form = COLOR["function"]["parameters"] | {"title": "tell_color", "description": "Tells a color"}
    assert chat.with_structured_output(form, method="function_calling").invoke(shown) == {"color": "blue"}


ROUND = {"type": "function", "function": {"name": "r", "parameters": {"type": "round"}}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required", "tools": [ROUND]}, "tools.0.function.parameters"),
        ({"tool_choice": "required", "tools": [*TOOLS, ROUND]}, "tools"),
        ({"tool_choice": "required"}, "tools"),
        ({"tool_choice": "required", "tools": []}, "tools"),
        ({"tool_choice": "any", "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": {"type": "function"}, "tools": TOOLS}, "tool_choice.function"),
        ({"tool_choice": NAMED, "tools": TOOLS}, "tool_choice.function.name"),
        ({"tool_choice": "required", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tool_choice": "required", "tools": [{"type": "function", "function": {}}]}, "tools.0.function.name"),
        ({"tool_choice": "required", "tools": TOOLS, "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tool_choice": "required", "tools": TOOLS, "reasoning": True}, "tool_choice"),
    ],
)
def test_a_demand_that_cannot_be_met(http: httpx.Client, more: dict[str, Any], param: str) -> None:
    error = http.post("/v1/chat/completions", json={"messages": ask("On, please."), **more}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", param), error


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
