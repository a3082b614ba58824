"""SIGTERM while the official clients wait: what can finish in time is not lost, and the rest is told so."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import httpx
import openai
import pytest
from guarded import PATIENCE, Process, endless
from serving import NO_CLIENT, ask, sdk

md = pytest.importorskip("moondream", reason=NO_CLIENT)

Begun = Callable[[], Any]
"""Called when a part of the answer is there."""
NOBODY: Begun = int  # does nothing
TOKENS, SEEDS = 400, 3
FOREVER = 90_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless(tmp_path_factory.mktemp("clients") / "tiny")


def openai_whole(url: str, seed: int, tokens: int, begun: Begun = NOBODY) -> str:
    reply = sdk(url).chat.completions.create(**asked(seed, tokens))
    return str(reply.choices[0].message.content)


def openai_streamed(url: str, seed: int, tokens: int, begun: Begun = NOBODY) -> str:
    text = ""
    with sdk(url).chat.completions.create(stream=True, **asked(seed, tokens)) as parts:
        for part in parts:
            text += part.choices[0].delta.content or ""
            begun()
    return text


def asked(seed: int, tokens: int) -> Any:
    drawn = {"temperature": 1.0, "seed": seed, "max_tokens": tokens}
    return {"model": "any", "messages": ask(f"hello {seed}"), "timeout": PATIENCE, **drawn}


def moondream_whole(url: str, seed: int, tokens: int, begun: Begun = NOBODY) -> str:
    return str(moondream(url, seed, tokens, False))


def moondream_streamed(url: str, seed: int, tokens: int, begun: Begun = NOBODY) -> str:
    text = ""
    for piece in moondream(url, seed, tokens, True):
        text += piece
        begun()
    return text


def moondream(url: str, seed: int, tokens: int, stream: bool) -> Any:
    settings = {"temperature": 1.0, "seed": seed, "max_tokens": tokens}
    client = md.vl(endpoint=f"{url}/v1")
    return client.query(question=f"hello {seed}", settings=settings, stream=stream)["answer"]


CLIENTS: list[Callable[..., str]] = [openai_whole, openai_streamed, moondream_whole, moondream_streamed]


def until_all_are_accepted(server: Process, many: int) -> None:
    end = time.monotonic() + PATIENCE
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:
        while http.get("/health").json()["models"][0]["in_use"] < many:
            assert time.monotonic() < end, "they were never under way together"


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def test_what_can_finish_is_finished(folder: Path, threads: ThreadPoolExecutor) -> None:
    with Process("--model", folder, "--grace-s", PATIENCE) as server:
        known = sdk(server.url)
        jobs = [(client, seed) for seed in range(SEEDS) for client in CLIENTS]
        expected = [openai_whole(server.url, seed, TOKENS) for seed in range(SEEDS)]
        assert len(set(expected)) == SEEDS
        known.models.list()
        answers = [threads.submit(client, server.url, seed, TOKENS) for client, seed in jobs]
        until_all_are_accepted(server, len(jobs))
        server.stop()
        server.until(f"stopping: {len(jobs)} requests under way")
        with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
            known.chat.completions.create(**asked(0, 1))
        with pytest.raises(URLError):
            moondream_whole(server.url, 0, 1)
        # Every client is answered alike, however its reply is sent.
        assert [answer.result() for answer in answers] == [expected[seed] for _, seed in jobs]
        assert server.ended() == 0
        assert f"stopped: {len(jobs)} requests finished, 0 cancelled" in server.said[-1]


def test_what_cannot_is_told_so(folder: Path, threads: ThreadPoolExecutor) -> None:
    with Process("--model", folder, "--grace-s", 4) as server:
        begun = [threading.Event() for _ in CLIENTS]
        whole, streamed, their_whole, their_streamed = answers = [
            threads.submit(client, server.url, 0, FOREVER, event.set)
            for client, event in zip(CLIENTS, begun, strict=True)
        ]
        until_all_are_accepted(server, len(answers))
        for event in begun[1::2]:
            assert event.wait(PATIENCE)
        server.stop()
        error = raised(whole, openai.InternalServerError)
        assert (error.status_code, error.code) == (503, "shutting_down")
        assert "shut down" in str(raised(streamed, openai.APIError))
        with raised(their_whole, HTTPError) as reply:
            assert (reply.code, json.loads(reply.read())["code"]) == (503, "shutting_down")
        raised(their_streamed, ValueError)
        assert server.ended() == 0
        assert f"stopped: 0 requests finished, {len(answers)} cancelled" in server.said[-1]


def raised(answer: "Future[str]", kind: type[Exception]) -> Any:
    error = answer.exception(PATIENCE)
    assert isinstance(error, kind), error
    return error
