"""GGUF files behind `galago serve`: by llama-server where there is one, and by a stand-in that speaks its API."""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import openai
import pytest
from PIL import Image

pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")

import tiny_gguf
from serving import ask, sdk, serving

import galago
from galago.backends.llama_server import process
from galago.backends.llama_server.binary import VARIABLE, find_binary
from galago.fleet.pool import ModelPool
from galago.media.load import open_image
from galago.server.app import create_app
from galago.server.settings import ServerSettings

IMAGE = Image.new("RGB", (60, 40), "red")
OUT = io.BytesIO()
IMAGE.save(OUT, "PNG")
B64 = base64.b64encode(OUT.getvalue()).decode()
URL = f"data:image/png;base64,{B64}"
STANDIN = Path(__file__).parents[1] / "support" / "llama_standin.py"
SCHEMA = {"type": "string", "pattern": "^[a-h]{35}$"}
"""Random weights write no UTF-8, but under a schema."""
LETTERS: Any = {"response_format": {"type": "json_schema", "json_schema": {"name": "letters", "schema": SCHEMA}}}
LONG: Any = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "long", "schema": {"type": "string", "pattern": "^[a-h]{1800}$"}},
    }
}


def real() -> str | None:
    try:
        return str(find_binary())
    except galago.CheckpointError:
        return None


REAL = real()


@pytest.fixture(scope="module", params=["stand-in", "llama-server"])
def program(request: pytest.FixtureRequest) -> Iterator[str]:
    """The path of what is run as llama-server."""
    if request.param == "llama-server" and REAL is None:
        pytest.skip(f"needs llama-server (on PATH or as {VARIABLE})")
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = chosen = REAL if request.param == "llama-server" and REAL else str(STANDIN)
    yield chosen
    os.environ.pop(VARIABLE)
    if before is not None:
        os.environ[VARIABLE] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny")


@pytest.fixture(scope="module")
def url(program: str, folder: Path) -> Iterator[str]:
    pool = ModelPool(keep_alive=None, options={"device": "cpu"})
    with serving(create_app(pool, ServerSettings(model=(str(folder),)))) as address:
        yield address


def children() -> list[int]:
    """Processes that run llama-server for this one."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and "--mmproj" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def test_openai_whole_streamed_and_seeded(url: str) -> None:
    client = sdk(url)
    settings: Any = {"model": "tiny", "messages": ask("what is this?", URL), "seed": 5, "temperature": 1.2, **LETTERS}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert re.fullmatch('"[a-h]{35}"', text) and text == whole.choices[0].message.content
    assert sum(1 for c in chunks if c.choices and c.choices[0].delta.content) > 10
    assert whole.choices[0].finish_reason == "stop"
    usage = chunks[-1].usage
    assert usage and whole.usage and usage.completion_tokens == whole.usage.completion_tokens >= 36
    assert usage.prompt_tokens == whole.usage.prompt_tokens > 10
    other = client.chat.completions.create(**{**settings, "seed": 6})
    assert other.choices[0].message.content != text
    short = client.chat.completions.create(**settings, max_tokens=9)
    assert short.choices[0].finish_reason == "length" and short.usage and short.usage.completion_tokens == 9


def test_a_client_that_leaves_ends_its_answer(url: str) -> None:
    def cancelled() -> int:
        said = httpx.get(f"{url}/metrics").text
        return sum(map(int, re.findall(r'requests_finished_total{model="tiny".*outcome="cancelled".*} (\d+)', said)))

    client, before = sdk(url), cancelled()
    endless: Any = {"model": "tiny", "messages": ask("what?", URL), "max_tokens": 1500, **LONG}
    with client.chat.completions.create(**endless, stream=True) as stream:
        next(iter(stream))
    answer = client.chat.completions.create(model="tiny", messages=ask("what?", URL), **LETTERS)
    assert answer.choices[0].finish_reason == "stop"
    assert cancelled() > before


def test_ollama(url: str) -> None:
    client = ollama.Client(url)
    message = {"role": "user", "content": "what is this?", "images": [B64]}
    whole = client.chat("tiny", [message], format=SCHEMA, options={"temperature": 0})
    pieces = list(client.chat("tiny", [message], format=SCHEMA, options={"temperature": 0}, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content != ""
    assert pieces[-1].done and pieces[-1].eval_count == whole.eval_count and pieces[-1].prompt_eval_count
    [listed], shown = client.list().models, client.show("tiny")
    assert listed.details and shown.details and listed.details.format == shown.details.format == "gguf"


def test_skills_that_are_lacking(url: str) -> None:
    for path, fields in {"detect": {"object": "cat"}, "point": {"object": "cat"}}.items():
        refused = httpx.post(f"{url}/v1/{path}", json={"model": "tiny", "image_url": URL, **fields})
        assert refused.status_code == 501 and "it can caption, answer questions, converse" in refused.text


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")
def test_killed_in_mid_answer_it_is_back(url: str) -> None:
    client = sdk(url)
    [child] = children()
    endless: Any = {"model": "tiny", "messages": ask("what?", URL), "max_tokens": 1500, **LONG}
    with (
        pytest.raises(openai.APIError, match="llama-server ended in the middle of the answer"),
        client.chat.completions.create(**endless, stream=True) as stream,
    ):
        for i, _ in enumerate(stream):
            if i == 2:
                os.kill(child, signal.SIGKILL)
    answer = client.chat.completions.create(model="tiny", messages=ask("what?", URL), **LETTERS)
    assert answer.choices[0].finish_reason == "stop"
    [other] = children()
    assert other != child


def test_several_images(url: str) -> None:
    one, two = (
        sdk(url).chat.completions.create(model="tiny", messages=ask("what?", *[URL] * n), **LETTERS) for n in (1, 2)
    )
    assert one.usage and two.usage and two.usage.prompt_tokens > one.usage.prompt_tokens + 3


def test_images_in_any_order(program: str, folder: Path) -> None:
    """What llama-server keeps of the prompt before has the first image in common with this one, and then another."""
    images = [Image.new("RGB", (60, 40), color) for color in ("red", "green", "blue")]
    with galago.load(folder, limits=galago.Limits(running=1)) as model:
        for chosen in itertools.permutations(images, 2):
            talk = galago.Chat((galago.Message("user", (*chosen, "what?")),))
            *_, done = model.submit(galago.Request(talk, sampling=galago.Sampling(json_schema=json.dumps(SCHEMA))))
            assert isinstance(done, galago.Done) and done.usage.completion_tokens > 30


def test_files_and_their_pixels_are_the_same_image(program: str, folder: Path, tmp_path: Path) -> None:
    """An image file goes as it is where llama-server can read it; what is turned, cut off or damaged is ours."""
    picture = Image.radial_gradient("L").resize((60, 40)).convert("RGB")
    picture.save(tmp_path / "upright.png")
    picture.save(tmp_path / "upright.jpg", quality=90)
    exif = Image.Exif()
    exif[274] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    whole = (tmp_path / "upright.png").read_bytes()
    (tmp_path / "damaged.png").write_bytes(whole[:100] + bytes(len(whole) - 140) + whole[-40:])
    with galago.load(folder) as model:

        def told(image: Any) -> list[float]:
            sampling = galago.Sampling(max_tokens=4, temperature=0, json_schema=json.dumps(SCHEMA))
            request = galago.Request(galago.Query("what?"), image, sampling, top_logprobs=1)
            return [
                token.logprob for e in model.submit(request) if isinstance(e, galago.TextDelta) for token in e.tokens
            ]

        def shown(name: str) -> Any:
            return open_image(tmp_path / name)

        upright = told(picture)
        assert upright == told(shown("upright.png")) and len(upright) == 4
        assert upright == pytest.approx(told(shown("upright.jpg")), abs=0.05)
        assert told(picture.transpose(Image.Transpose.ROTATE_270)) == told(shown("turned.png"))
        if program == REAL:
            assert upright != told(shown("turned.png")) != told(IMAGE)
        with pytest.raises(galago.InvalidImage, match="cannot be decoded"):
            told(shown("damaged.png"))


# --- what is refused, before or while it starts ----------------------------------------------


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(STANDIN))


def said(load: Callable[[], object]) -> str:
    with pytest.raises(galago.CheckpointError) as error:
        load()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_the_program(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert re.match("GGUF files are run by llama-server, which is not here: install", said(lambda: galago.load(folder)))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none"))
    assert f"{VARIABLE} is {tmp_path}/none, which is no program that can be run" in said(lambda: galago.load(folder))
    (tmp_path / "other").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "other").chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other"))
    assert "--version ended with code 3: it is not built for this machine" in said(lambda: galago.load(folder))


def test_files_that_are_no_pair(standin: None, folder: Path, tmp_path: Path) -> None:
    alone = tiny_gguf.write(tmp_path / "alone", projector=None)
    assert "tiny-F16.gguf has no projector beside it (mmproj*.gguf)" in said(lambda: galago.load(alone))
    whole = (folder / "tiny-F16.gguf").read_bytes()
    for name, data, why in (
        ("cut", whole[:-2000], "is cut off"),
        ("head", whole[:300], "is damaged, or not all of it is there"),
        ("empty", b"", "is empty"),
        ("page", b"<html>", "is not a GGUF file"),
    ):
        broken = tiny_gguf.write(tmp_path / name)
        (broken / "tiny-F16.gguf").write_bytes(data)
        assert why in said(lambda at=broken: galago.load(at))  # type: ignore[misc]
    swapped = tiny_gguf.write(tmp_path / "swapped")
    (swapped / "mmproj-tiny-F16.gguf").write_bytes(whole)
    assert "mmproj-tiny-F16.gguf is no projector" in said(lambda: galago.load(swapped))
    assert "is a projector; name the model" in said(lambda: galago.load(folder / "mmproj-tiny-F16.gguf"))
    two = tiny_gguf.write(tiny_gguf.write(tmp_path / "two"), "tiny-Q8_0.gguf")
    assert "holds several models; name one of tiny-F16.gguf, tiny-Q8_0.gguf" in said(lambda: galago.load(two))


def test_a_model_that_it_does_not_know(program: str, tmp_path: Path) -> None:
    made = tiny_gguf.write(tmp_path / "made", architecture="unknown_architecture")
    told = said(lambda: galago.load(made))
    assert told.startswith("made: llama-server did not start, it ended with code 1: ")
    assert "unknown model architecture: 'unknown_architecture'" in told


def test_a_port_that_somebody_took(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], process.free_port
        ports = iter([taken, taken])
        monkeypatch.setattr(process, "free_port", lambda: next(ports, None) or free())
        with galago.load(folder) as model:
            assert model.query(IMAGE, "what?", settings={"json_schema": SCHEMA})["answer"]
