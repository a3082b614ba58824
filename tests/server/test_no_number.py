"""A model that gives no number: 500 with a type of its own, in each dialect, streamed or not, and counted."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny_moondream as tiny
from prometheus_client.parser import text_string_to_metric_families
from serving import ask, hosting, sdk, serving

import galago

MANY = 25
"""of tokens: as many as a text has before it breaks, and more"""


def served(folder: Path, weights: dict[str, Any]) -> Iterator[str]:
    with serving(hosting(galago.load(tiny.write(folder, weights=weights)))) as url:
        yield url


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose model gives no logits."""
    weights = tiny.tensors()
    weights["model.text.lm_head.weight"].clamp_(-1, 1).mul_(3e38)
    yield from served(tmp_path_factory.mktemp("broken"), weights)


@pytest.fixture(scope="module")
def breaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose model writes spaces until it has read one."""
    weights = tiny.tensors()
    weights["model.text.wte"][tiny.ALPHABET.index("Ġ") + len(tiny.CONTROL)] = 1e38
    yield from served(tmp_path_factory.mktemp("breaking"), weights)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", [{}, {"temperature": 1.0}, {"logprobs": True, "top_logprobs": 3}, {"n": 2}])
def test_openai(broken: str, stream: bool, how: dict[str, Any]) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        sdk(broken).chat.completions.create(model="any", messages=ask("What?"), stream=stream, max_tokens=MANY, **how)
    error = raised.value
    assert (error.status_code, error.type, error.code) == (500, "model_error", "not_a_number")
    assert "no number for the next token" in error.message and "float16" in error.message
    assert error.response.headers["x-should-retry"] == "false"


def test_openai_after_the_stream_began(breaking: str) -> None:
    got = []
    with pytest.raises(openai.APIError) as raised:
        for chunk in sdk(breaking).chat.completions.create(model="any", messages=ask("What?"), stream=True):
            got.append(chunk.choices[0].delta.content)
    assert got == ["", " "]
    assert (raised.value.type, raised.value.code) == ("model_error", "not_a_number")


def test_moondream(broken: str, breaking: str) -> None:
    for stream in (False, True):
        reply = httpx.post(f"{broken}/v1/query", json={"question": "What?", "stream": stream})
        assert reply.status_code == 500
        body = reply.json()
        assert (body["status"], body["code"]) == ("error", "not_a_number") and "no number" in body["error"]
    streamed = httpx.post(f"{breaking}/v1/query", json={"question": "What?", "stream": True}).text
    events = [line.removeprefix("data: ") for line in streamed.splitlines() if line]
    assert json.loads(events[0])["chunk"] == " " and events[-1] == "[ERROR]"
    assert json.loads(events[-2])["code"] == "not_a_number"


def test_it_is_counted_and_what_is_told_stays_json(broken: str) -> None:
    def counted() -> float:
        families = text_string_to_metric_families(httpx.get(f"{broken}/metrics").text)
        of = {"skill": "chat", "reason": "not_a_number"}
        return sum(
            s.value
            for f in families
            for s in f.samples
            if s.name == "galago_requests_failed_total" and of.items() <= s.labels.items()
        )

    before = counted()
    asked = {"messages": ask("What?"), "max_tokens": 3}
    assert httpx.post(f"{broken}/v1/chat/completions", json=asked).status_code == 500
    assert counted() == before + 1

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for path in ("/v1/stats", "/health"):
        found = json.loads(httpx.get(broken + path).text, parse_constant=refuse)
        assert found["status"] in ("running", "healthy")
    [stats] = json.loads(httpx.get(f"{broken}/v1/stats").text)["models"].values()
    assert stats["failed"]["not_a_number"] >= 1
