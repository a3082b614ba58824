"""Requests that end before their answer does: the client goes, the queue is full, the server stops."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny_moondream as tiny
from guarded import PATIENCE, Wire
from safetensors.torch import load_file, save_file
from serving import GOLDEN, ask, hosting, load, sdk, serving

import galago
from galago.backends.native import Native
from galago.engine.limits import Limits
from galago.families.moondream.loading import load_moondream
from galago.request import Chat, Message, Request, Sampling
from galago.store import hub

LONG = 2000


@pytest.fixture(scope="module")
def endless_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends its text by itself."""
    load("small").close()  # skips where there is none
    folder = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(GOLDEN / "small", folder, copy_function=shutil.copyfile)
    weights = load_file(folder / "weights.safetensors")
    name = next(name for name in weights if name.endswith("lm_head.bias"))
    weights[name][0] = -1e4
    folder.chmod(0o755)
    save_file(weights, folder / "weights.safetensors")
    return folder


@pytest.fixture
def endless(endless_folder: Path) -> Iterator[galago.Model]:
    with galago.load(endless_folder, limits=Limits(running=1)) as model:
        yield model


def long_request() -> Request:
    return Request(Chat((Message("user", "hello"),)), None, Sampling(max_tokens=LONG))


def body(**more: Any) -> dict[str, Any]:
    return {"messages": ask("hello"), "max_tokens": LONG, **more}


@pytest.mark.parametrize("stream", [True, False])
def test_disconnect_frees_the_engine(endless: galago.Model, stream: bool) -> None:
    with serving(hosting(endless)) as url:
        with closing(Wire(("127.0.0.1", int(url.rpartition(":")[2])))) as wire:
            content = json.dumps(body(stream=stream)).encode()
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            wire.send(head.encode() + content)
            end = time.monotonic() + PATIENCE
            while not endless.stats()["queue"]["running"]:
                assert time.monotonic() < end, "the request does not begin"
            if stream:
                wire.line()
        # The engine here works on one request after another, so this one waits for the end of that.
        list(endless.submit(Request(Chat((Message("user", "hello"),)), None, Sampling(max_tokens=1))))
        row = endless.stats()["skills"]["chat"]
    assert (row["cancelled"], row["done"]) == (1, 1)
    assert row["tokens"]["completion"] < LONG


@pytest.mark.parametrize("stream", [True, False])
def test_full_queue(endless_folder: Path, stream: bool) -> None:
    loaded = load_moondream(hub.locate(endless_folder), precision=tiny.CPU_FLOAT32, device=tiny.CPU)
    model = galago.Model(Native(loaded, Limits(waiting=1, running=1)))
    with serving(hosting(model)) as url:
        running = model.submit(long_request())
        next(running)
        waiting = model.submit(long_request())
        with pytest.raises(openai.RateLimitError) as raised:
            sdk(url).chat.completions.create(model="any", messages=ask("hello"), stream=stream)
        running.cancel()
        waiting.cancel()
    assert (raised.value.code, raised.value.type) == ("queue_full", "rate_limit_error")
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_failure_in_mid_stream_is_told(endless: galago.Model) -> None:
    with serving(hosting(endless)) as url:
        stream = sdk(url).chat.completions.create(model="any", stream=True, messages=ask("hello"), max_tokens=LONG)
        next(iter(stream))
        endless.close()
        with pytest.raises(openai.APIError, match="shut down"):
            list(stream)


def test_failure_in_mid_stream_is_told_to_moondream_clients(endless: galago.Model) -> None:
    asked = {"question": "hello", "stream": True, "settings": {"max_tokens": LONG}}
    with serving(hosting(endless)) as url, httpx.stream("POST", f"{url}/v1/query", json=asked, timeout=60) as reply:
        lines = reply.iter_lines()
        assert "chunk" in next(lines)
        endless.close()
        *_, told, end = (line for line in lines if line)
    assert json.loads(told.removeprefix("data: "))["code"] == "shutting_down"
    assert end == "data: [ERROR]"  # their client takes everything that is JSON for the end of the answer
