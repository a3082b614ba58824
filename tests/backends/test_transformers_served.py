"""Models that the transformers library runs, behind the server and the command line."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from PIL import Image

pytest.importorskip("transformers", reason="needs transformers (pip install 'galago[transformers]')")

import tiny_transformers as tiny
from server_program import server_program
from serving import sdk

from galago.cli.app import main

IMAGE = Image.new("RGB", (60, 40), "red")
OUT = io.BytesIO()
IMAGE.save(OUT, "PNG")
B64 = base64.b64encode(OUT.getvalue()).decode()
URL = f"data:image/png;base64,{B64}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny.KINDS[name](base / name) for name in ("llava", "git")}


@pytest.fixture(scope="module")
def url(folders: dict[str, Path]) -> Iterator[str]:
    """The program, as a person starts it: `galago serve ./llava ./git`."""
    with server_program(*map(str, folders.values())) as (_, address):
        yield address


def ask(text: str, *urls: str) -> Any:
    images = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def test_openai_whole_streamed_and_seeded(url: str) -> None:
    client, model = sdk(url), "llava"
    settings: Any = {"model": model, "messages": ask("what is this?", URL), "max_tokens": 12, "seed": 5}
    whole = client.chat.completions.create(**settings, temperature=1.2)
    chunks = list(
        client.chat.completions.create(**settings, temperature=1.2, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert sum(1 for c in chunks if c.choices and c.choices[0].delta.content) > 1
    [reason] = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert reason == whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and chunks[-1].usage == whole.usage and whole.usage.completion_tokens == 12
    other = client.chat.completions.create(**{**settings, "seed": 6}, temperature=1.2)
    assert other.choices[0].message.content != text


def test_several_images(url: str) -> None:
    one, two = (
        sdk(url).chat.completions.create(model="llava", messages=ask("what?", *[URL] * n), max_tokens=2, temperature=0)
        for n in (1, 2)
    )
    assert one.usage and two.usage and two.usage.prompt_tokens > one.usage.prompt_tokens + 3


def test_a_client_that_leaves_ends_its_answer(url: str) -> None:
    client, model = sdk(url), "llava"
    endless: Any = {"model": model, "messages": ask("what?", URL), "max_tokens": 200, "temperature": 0}
    with client.chat.completions.create(**endless, stream=True, extra_body={"logit_bias": {"2": -100}}) as stream:
        next(iter(stream))
    # The next has its turn when the first has ended: its own tokens alone are counted.
    answer = client.chat.completions.create(**endless | {"max_tokens": 2})
    assert answer.usage and answer.usage.completion_tokens == 2
    said = httpx.get(f"{url}/metrics").text
    finished = re.findall(r'requests_finished_total{model="llava".*outcome="cancelled".*} (\d+)', said)
    assert sum(map(int, finished)) >= 1
    counted = re.findall(r'completion_tokens_total{model="llava".*skill="(?:query|chat)"} (\d+)', said)
    assert sum(map(int, counted)) < 200


def test_skills_that_are_lacking(url: str) -> None:
    with pytest.raises(openai.APIStatusError, match="it can caption") as error:
        sdk(url).chat.completions.create(model="git", messages=ask("what?", URL))
    assert error.value.status_code == 501
    body = {"model": "llava", "image_url": URL, "object": "cat"}
    assert httpx.post(f"{url}/v1/detect", json=body).status_code == 501
    captioned = httpx.post(f"{url}/v1/caption", json=body | {"model": "git"}, timeout=60)
    assert captioned.status_code == 200 and captioned.json()["caption"]


def test_ollama(url: str) -> None:
    client, model = ollama.Client(url), "llava"
    options = {"num_predict": 8, "temperature": 0}
    message = {"role": "user", "content": "what is this?", "images": [B64]}
    whole = client.chat(model, [message], options=options)
    pieces = list(client.chat(model, [message], options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content != ""
    assert pieces[-1].done and pieces[-1].eval_count == whole.eval_count == 8
    generated = client.generate(model, "what is this?", images=[B64], options=options)
    assert generated.response and generated.done_reason == "length"


def test_the_command_line(folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(OUT.getvalue())
    assert main(["caption", str(photo), "-m", str(folders["git"]), "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["query", str(photo), "what?", "-m", str(folders["llava"]), "--max-tokens", "8"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["detect", str(photo), "cat", "-m", str(folders["llava"])]) == 2
    assert "this model does not detect objects" in capsys.readouterr().err
    assert main(["show", str(folders["llava"]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["backend"] == "transformers" and set(told["precisions"]) == {"float32", "bfloat16", "float16", "int8"}
    assert main(["quantize", str(folders["llava"]), "--to", "int8", "--out", str(tmp_path / "q")]) != 0
    assert "transformers" in capsys.readouterr().err
