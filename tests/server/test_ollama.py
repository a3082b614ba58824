"""Ollama's API: what its clients and applications send is answered in the shape that they read, and with the truth."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from langchain_core.messages import HumanMessage
from langchain_ollama import ChatOllama
from serving import serving

from galago.fleet.pool import ModelPool
from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1
from galago.server.app import create_app
from galago.server.settings import ServerSettings

CASES = json.loads(Path(__file__).with_name("ollama_bodies.json").read_text())["cases"]
SCENE = scene_at(7, 1396, V1)
COLOR = next(thing.color for thing in SCENE.things if thing.name == "circle")
QUESTION = "What color is the circle?"


PICTURE = (Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()
"""That scene."""
B64 = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Two models, since Moondream's take one image in a conversation."""
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=("scenes", "motion")))) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> ollama.Client:
    return ollama.Client(url)


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as found:
        yield found


def found_at(value: Any, path: str) -> bool:
    """Whether a member is there, as `models[].model` names it."""
    name, _, rest = path.partition(".")
    if name.endswith("[]"):
        return all(found_at(one, rest) if rest else True for one in value[name[:-2]])
    return name in value and (not rest or found_at(value[name], rest))


ABSENT = {"error", "message.thinking", "message.tool_calls", "thinking"}
"""What is there only where something is wrong, or where a model thinks or calls tools."""


@pytest.mark.parametrize("case", [c for c in CASES if c["path"].startswith("/api/")], ids=lambda case: case["app"])
def test_what_applications_send_is_answered_as_they_read_it(http: httpx.Client, case: dict[str, Any]) -> None:
    body, headers = case.get("body"), {name: value.strip() for name, value in case.get("headers", {}).items()}
    content = ""
    if body is not None:
        model = "motion" if json.dumps(body).count("B64") > 1 else "scenes"
        content = json.dumps(body).replace("B64", B64).replace('"vl', f'"{model}')
    reply = http.request(case["method"], case["path"], content=content, headers=headers)
    expected = {"think true": 400, "unknown model": 404, "empty body": 400, "ollama-js delete": 501}
    assert reply.status_code == expected.get(case["app"], 200), reply.text
    if reply.status_code != 200:
        assert isinstance(reply.json()["error"], str)
        return
    records = [json.loads(line) for line in reply.text.splitlines()]
    last = records[-1]
    if last.get("done_reason") in ("stop", "length") and body.get("stream", True):
        assert reply.headers["content-type"] == "application/x-ndjson" and reply.text.endswith("\n")
    for path in case["reads"]:
        assert path in ABSENT or any(found_at(record, path) for record in records), (path, last)
    if "done" in last:
        assert last["done"] is True and not any(record["done"] for record in records[:-1])
    if last.get("done_reason") in ("stop", "length"):
        parts = sum(last[f"{name}_duration"] for name in ("load", "prompt_eval", "eval"))
        assert last["total_duration"] == parts and last["eval_count"] > 0
        said = "".join(r["message"]["content"] if "message" in r else r["response"] for r in records)
        assert said
        if body and body.get("format") and last["done_reason"] == "stop":
            assert isinstance(json.loads(said), dict)


PICTURED = [c for c in CASES if json.dumps(c.get("body")).count("B64") == 1]
PLAIN = [c for c in PICTURED if not c["body"].get("format") and c["body"].get("think") is not True]


@pytest.mark.parametrize("case", PLAIN, ids=lambda case: case["app"])
def test_what_they_ask_about_a_picture_is_answered_with_the_truth(http: httpx.Client, case: dict[str, Any]) -> None:
    """Their bodies with a question that the bundled model knows, and without their stops, which may be letters."""
    body = json.loads(json.dumps(case["body"]).replace("B64", B64))
    body |= {"model": "scenes", "options": {**body.get("options", {}), "stop": []}}
    if "messages" in body:
        [m for m in body["messages"] if m["role"] == "user"][-1]["content"] = QUESTION
    else:
        body["prompt"] = QUESTION
    records = [json.loads(line) for line in http.request("POST", case["path"], json=body).text.splitlines()]
    assert "".join(r["message"]["content"] if "message" in r else r["response"] for r in records) == COLOR, records


def test_its_python_client(client: ollama.Client, tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    file.write_bytes(PICTURE)
    asked = {"role": "user", "content": QUESTION, "images": [str(file)]}
    whole = client.chat("scenes", [asked])
    assert whole.message.content == COLOR and whole.done_reason == "stop"
    parts = list(client.chat("scenes:latest", [asked], stream=True))
    assert "".join(part.message.content or "" for part in parts) == COLOR and parts[-1].eval_count
    assert client.generate("SCENES", QUESTION, images=[PICTURE]).response == COLOR
    assert (
        "".join(part.response for part in client.generate("scenes", QUESTION, images=[PICTURE], stream=True)) == COLOR
    )
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green", "blue"]}},
        "required": ["color"],
    }
    assert set(json.loads(client.chat("scenes", [asked], format=schema).message.content or "")) == {"color"}
    assert [model.model for model in client.list().models] == ["scenes:latest", "motion:latest"]
    shown = client.show("scenes")
    assert shown.capabilities == ["completion", "vision"] and shown.modelinfo
    assert shown.modelinfo["moondream.context_length"] == 2048
    ended = client.chat("scenes", [asked], options={"num_predict": 1, "temperature": 0.0, "num_ctx": 8192})
    assert ended.eval_count == 1
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as error:
        client.chat("nope", [asked])
    assert error.value.status_code == 404


def test_images_of_any_side_are_shown_with_what_the_user_says_next(client: ollama.Client) -> None:
    asked = {"role": "user", "content": QUESTION}
    for before in ({"role": "system", "content": ""}, {"role": "tool", "content": "The camera's picture."}):
        without = client.chat("scenes", [before, asked]).prompt_eval_count or 0
        assert (client.chat("scenes", [before | {"images": [B64]}, asked]).prompt_eval_count or 0) > without + 20
    shown = [{"role": "assistant", "content": "", "images": [B64]}, {"role": "system", "content": ""}, asked]
    assert client.chat("scenes", shown).message.content == COLOR


def test_keep_alive(client: ollama.Client) -> None:
    """A number or a text, for ever or for a while; 0 takes a model out of memory, once it is not in use."""

    def left() -> dict[str, datetime | None]:
        return {model.model or "": model.expires_at for model in client.ps().models}

    client.generate("scenes", keep_alive="10m")
    soon = left()["scenes:latest"]
    assert soon and 300 < (soon - datetime.now(UTC)).total_seconds() <= 600
    client.generate("scenes", keep_alive=-1)
    late = left()["scenes:latest"]
    assert late and late.year > 2300
    assert client.generate("scenes", keep_alive=0).done_reason == "unload"
    assert "scenes:latest" not in left()
    assert client.chat("scenes", [{"role": "user", "content": "Hi"}], keep_alive="0s").message.content
    assert "scenes:latest" not in left()


def test_langchain(url: str) -> None:
    content: list[str | dict[str, Any]] = [
        {"type": "text", "text": QUESTION},
        {"type": "image_url", "image_url": f"data:image/png;base64,{B64}"},
    ]
    model = ChatOllama(model="scenes", base_url=url, temperature=0, validate_model_on_init=True)
    reply = model.invoke([HumanMessage(content=content)])
    assert reply.content == COLOR and reply.usage_metadata and reply.usage_metadata["output_tokens"] > 0


def test_llm(url: str, tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(PICTURE)
    command = [sys.executable, "-m", "llm", "-m", "ollama/scenes", QUESTION, "-a", "scene.png", "--no-stream"]
    env = {**os.environ, "OLLAMA_HOST": url, "LLM_USER_PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout.strip()) == (0, COLOR), done.stderr


@pytest.mark.parametrize(
    ("path", "body", "status", "why"),
    [
        ("chat", {"model": None, "messages": []}, 400, "model is required"),
        ("chat", {"model": " "}, 400, "model must not be blank"),
        ("chat", {"messages": "hi"}, 400, "messages must be an array"),
        ("chat", {"messages": [{"content": "x"}]}, 400, "messages.0.role is required"),
        (
            "chat",
            {"messages": [{"role": "robot", "content": "x"}]},
            400,
            "messages.0.role must be 'system'",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": ["x"]}]},
            400,
            "messages.0.content must be a string",
        ),
        ("generate", {"prompt": "x", "images": ["AAAA"]}, 400, "^images.0: .*known format"),
        ("generate", {"prompt": "x", "images": [B64, "!"]}, 400, "^images.1: .*base64"),
        ("generate", {"prompt": "x", "format": {"type": "round"}}, 400, "^format cannot be enforced"),
        (
            "generate",
            {"prompt": "x", "images": ["https://x/y.png"], "stream": False},
            400,
            "host|fetch",
        ),
        ("generate", {"prompt": "x", "format": "yaml"}, 400, "format must be"),
        (
            "generate",
            {"prompt": "x", "options": {"num_predict": "many"}},
            400,
            "options.num_predict must be a whole number",
        ),
        ("generate", {"prompt": "x", "keep_alive": "soon"}, 400, "keep_alive must be seconds, or a duration"),
        ("generate", {"prompt": "x", "keep_alive": [1]}, 400, "keep_alive must be seconds, or a duration"),
        ("generate", {"prompt": "x", "suffix": "y"}, 400, "does not support insert"),
        ("chat", {"messages": [{"role": "user", "content": "x"}], "think": "high"}, 400, "thinking"),
        ("show", {"model": None, "name": "nope"}, 404, "model 'nope' not found"),
        ("embed", {"input": "x"}, 501, "embeddings"),
        ("nothing", {}, 404, "Not Found"),
    ],
)
def test_what_is_refused_is_told_in_a_text(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, why: str
) -> None:
    reply = http.post(f"/api/{path}", json={"model": "scenes"} | body)
    told = reply.json()["error"]
    assert (reply.status_code, isinstance(told, str)) == (status, True) and re.search(why, told), reply.text


def test_out_of_range_is_taken_as_the_nearest(client: ollama.Client) -> None:
    odd = {
        "temperature": -1,
        "top_p": 7,
        "top_k": 0,
        "num_predict": 2.9,
        "stop": [],
        "repeat_penalty": 0,
        "mirostat": 9,
    }
    assert client.generate("scenes", QUESTION, images=[PICTURE], options=odd).response == COLOR


def test_only_models_of_the_catalogue_are_pulled(client: ollama.Client) -> None:
    assert client.pull("scenes:latest").status == "success"
    assert [part.status for part in client.pull("scenes", stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match="file does not exist") as error:
        client.pull("someone/model")
    assert error.value.status_code == 404


def test_penalties_change_what_is_written(client: ollama.Client) -> None:
    """As Frigate sends them; a small model is sure of itself, so they show where it is drawn from."""

    def written(**penalty: float) -> list[str]:
        drawn = ({"temperature": 2.0, "seed": seed, "num_predict": 60, **penalty} for seed in range(4))
        return [client.generate("scenes", "Describe this image.", images=[PICTURE], options=o).response for o in drawn]

    plain = written()
    assert written(presence_penalty=0.0) == plain
    assert written(presence_penalty=9) != plain and written(frequency_penalty=9) != plain
