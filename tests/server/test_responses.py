"""OpenAI's responses, by OpenAI's own client and as applications send them."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import sdk, serving

from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

B64 = base64.b64encode((Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()).decode()
QUESTION = "What color is the circle?"
IMAGE = {"type": "input_image", "image_url": f"data:image/png;base64,{B64}", "detail": "auto"}
ASKED: Any = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}, IMAGE]}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes",)))) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return sdk(url)


def test_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.responses.create(model="scenes", input=ASKED)
    assert (whole.output_text, whole.status, whole.model) == ("blue", "completed", "scenes")
    assert whole.usage and whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client.responses.create(model="scenes", input=ASKED, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "blue"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == "blue"
    with client.responses.stream(model="scenes", input=ASKED) as stream:
        assert stream.get_final_response().output_text == "blue"


def test_what_applications_send(client: openai.OpenAI) -> None:
    """As Home Assistant's and n8n's nodes do: a developer's message, limits, tools, and what is kept nowhere."""
    tool: Any = {"type": "function", "name": "TurnOn", "parameters": {"type": "object", "properties": {}}}
    told: Any = [{"type": "message", "role": "developer", "content": "Be short."}, *ASKED]
    reply = client.responses.create(
        model="gpt-5", input=told, tools=[tool], tool_choice="auto", store=True, user="u", max_output_tokens=300
    )
    assert reply.output_text and reply.status == "completed"
    text = client.responses.create(model="scenes", input="Hi", instructions="You help at home.")
    assert text.output_text
    schema = {"type": "object", "properties": {"color": {"enum": ["blue", "red"]}}, "required": ["color"]}
    form: Any = {"type": "json_schema", "name": "x", "schema": schema | {"additionalProperties": False}, "strict": True}
    fitting = client.responses.create(model="scenes", input=ASKED, text={"format": form})
    assert json.loads(fitting.output_text) == {"color": "blue"}


def test_what_is_cut_says_so(client: openai.OpenAI) -> None:
    long: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Describe this image."}, IMAGE]}]
    cut = client.responses.create(model="scenes", input=long, max_output_tokens=2)
    assert (
        cut.status == "incomplete" and cut.incomplete_details and cut.incomplete_details.reason == "max_output_tokens"
    )


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "input is required"),
        ({"input": 7}, "input must be"),
        ({"input": []}, "conversation"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role must be"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input.0.content"),
        ({"input": "x", "temperature": 7}, "temperature must be at most 2"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens must be at least 1"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id is not supported"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "schema"),
        (
            {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"type": "round"}}}},
            "text.format cannot be",
        ),
    ],
)
def test_what_is_refused(url: str, body: dict[str, Any], why: str) -> None:
    reply = httpx.post(f"{url}/v1/responses", json=body)
    assert reply.status_code == 400 and why in reply.json()["error"]["message"].lower(), reply.text
