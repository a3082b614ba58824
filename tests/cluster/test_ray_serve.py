"""galago serve on Ray: clients that know nothing of it, and replicas that end."""

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from galago.cluster.connection import MAX_THREADS
from galago.cluster.serving import check_settings
from galago.errors import InvalidRequest
from galago.server.settings import ServerSettings

PATIENCE = 240
QUESTIONS = "How many shapes are there?", "What colour is the circle?"


def deploy(port: int) -> None:
    words = ["serve", "scenes", "--on", "ray", "--replicas", "2", "--threads", "1", "--port", str(port)]
    command = [sys.executable, "-m", "galago.cli.app", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0 and f"listens at http://127.0.0.1:{port}" in done.stderr, done.stderr


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def url(cluster: str, port: int) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        deploy(port)
    yield f"http://127.0.0.1:{port}"


def client(url: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=retries, timeout=60)


def ask(sdk: openai.OpenAI, picture: Path, question: str, **more: Any) -> Any:
    image = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
    parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": image}}]
    messages: Any = [{"role": "user", "content": parts}]
    return sdk.chat.completions.create(model="scenes", messages=messages, max_tokens=8, **more)


def cached(reply: Any) -> int:
    return int(reply.usage.prompt_tokens_details.cached_tokens)


def test_what_replicas_cannot_share_is_refused() -> None:
    check_settings(ServerSettings(jobs=True), is_own=True)
    check_settings(ServerSettings(jobs_db="postgresql://galago@box/jobs"), is_own=False)
    for settings, told in (
        (ServerSettings(meme_search=True), "meme-search"),
        (ServerSettings(jobs=True), "PostgreSQL"),
    ):
        with pytest.raises(InvalidRequest, match=told):
            check_settings(settings, is_own=False)
    assert MAX_THREADS >= 1


@pytest.mark.slow
def test_the_openai_client_and_others_are_answered(cluster: str, url: str, drawn: Path) -> None:
    picture = next(iter(sorted(drawn.iterdir())))
    whole = ask(client(url), picture, QUESTIONS[0])
    pieces = list(ask(client(url), picture, QUESTIONS[0], stream=True))
    assert whole.choices[0].message.content
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    image = base64.b64encode(picture.read_bytes()).decode()
    caption = httpx.post(f"{url}/v1/caption", json={"image_url": f"data:image/png;base64,{image}"}, timeout=60)
    assert caption.json()["caption"]
    assert httpx.get(f"{url}/api/tags").json()["models"]
    assert "<html" in httpx.get(url, headers={"Accept": "text/html"}).text
    with pytest.raises(openai.BadRequestError):
        client(url).chat.completions.create(model="scenes", messages=[])


@pytest.mark.slow
def test_a_second_question_goes_to_the_replica_that_has_seen_the_picture(cluster: str, url: str, drawn: Path) -> None:
    pictures = sorted(drawn.iterdir())
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda picture: ask(client(url), picture, QUESTIONS[0]), pictures))
        hits = list(threads.map(lambda picture: cached(ask(client(url), picture, QUESTIONS[1])) > 0, pictures))
    assert sum(hits) >= 0.95 * len(pictures)


def processes(name: str) -> list[int]:
    """Those that Ray calls this."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "cmdline").read_bytes().startswith(name.encode()):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_killed_replica_loses_no_request_that_is_tried_again(cluster: str, url: str, drawn: Path) -> None:
    begun = threading.Event()

    def one(picture: Path) -> str:
        told = ask(client(url, retries=8), picture, QUESTIONS[0]).choices[0].message.content
        begun.set()
        return str(told)

    pictures = sorted(drawn.iterdir())
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(one, pictures)
        assert begun.wait(PATIENCE)
        [replica, *_] = processes("ray::ServeReplica:galago:galago-replica")
        os.kill(replica, signal.SIGKILL)
        assert all(answers)


@pytest.mark.slow
def test_a_rolling_restart_loses_no_request(cluster: str, url: str, port: int, drawn: Path) -> None:
    before = set(processes("ray::ServeReplica:galago:galago-replica"))
    ended = threading.Event()

    def go_on(picture: Path) -> int:
        asked = 0
        while not ended.is_set():
            ask(client(url), picture, QUESTIONS[0])  # without a second try
            asked += 1
        return asked

    with ThreadPoolExecutor(3) as threads:
        asking = [threads.submit(go_on, picture) for picture in sorted(drawn.iterdir())[:3]]
        try:
            deploy(port)
        finally:
            ended.set()
        assert all(one.result() > 0 for one in asking)
    assert before.isdisjoint(processes("ray::ServeReplica:galago:galago-replica"))
