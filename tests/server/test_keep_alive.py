"""Streams that wait for their turn: their headers and keep-alives, and what their failures look like."""

import asyncio
import json
import shutil
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
import openai
import pytest
from guarded import PATIENCE, Wire
from queueing import Queue, queueing
from serving import NO_CLIENT, ask, load, sdk, serving
from starlette.responses import StreamingResponse

import galago
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.server.streaming import Framing, Silence, stream_response

AT_ONCE = Silence(first=0.001, later=0.001)


class Lines(Framing):
    content_type = "application/x-ndjson"

    def keep_alive(self) -> str:
        return "waiting\n"

    def failed(self, error: Exception) -> tuple[str, ...]:
        return "failed:", str(error)


FRAMING = Lines()


async def sent_lines(response: StreamingResponse) -> AsyncIterator[str]:
    async for line in response.body_iterator:
        assert isinstance(line, str)
        yield line


def test_keep_alives_are_sent_until_the_first_line_and_none_after_it() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def lines() -> AsyncIterator[str]:
            await go.wait()
            yield "one\n"
            # Longer than keep-alives are apart.
            await asyncio.wait({asyncio.ensure_future(asyncio.Event().wait())}, timeout=0.05)
            yield "two\n"

        response = await stream_response(lines(), FRAMING, AT_ONCE, {"X-Galago-Model": "m"})
        assert response.status_code == 200
        assert (response.headers["content-type"], response.headers["x-galago-model"]) == ("application/x-ndjson", "m")
        sent = sent_lines(response)
        assert [await anext(sent) for _ in range(3)] == ["waiting\n"] * 3
        go.set()
        rest = [line async for line in sent]
        assert rest[-2:] == ["one\n", "two\n"] and set(rest[:-2]) <= {"waiting\n"}

    asyncio.run(main())


def test_nothing_is_added_to_a_stream_that_begins_soon() -> None:
    async def lines() -> AsyncIterator[str]:
        yield "one\n"
        yield "two\n"

    async def main() -> list[str]:
        return [line async for line in sent_lines(await stream_response(lines(), FRAMING))]

    assert asyncio.run(main()) == ["one\n", "two\n"]


def test_a_failure_before_the_headers_is_raised_and_a_later_one_ends_the_stream() -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def lines() -> AsyncIterator[str]:
            await go.wait()
            raise ValueError("no")
            yield

        response = await stream_response(lines(), FRAMING, AT_ONCE)
        go.set()
        assert [line async for line in sent_lines(response)][-2:] == ["failed:", "no"]
        with pytest.raises(ValueError, match="no"):
            await stream_response(lines(), FRAMING)

    asyncio.run(main())


@pytest.mark.parametrize("silence", [Silence(), AT_ONCE], ids=["before the headers", "after them"])
def test_a_task_that_is_cancelled_ends_what_it_waits_for(silence: Silence) -> None:
    async def main() -> None:
        started, ended = asyncio.Event(), False

        async def lines() -> AsyncIterator[str]:
            nonlocal ended
            try:
                started.set()
                await asyncio.Event().wait()
                yield ""
            finally:
                with anyio.CancelScope(shield=True):  # as a model is released
                    await anyio.to_thread.run_sync(bool)
                ended = True

        async def read() -> None:
            async for _ in sent_lines(await stream_response(lines(), FRAMING, silence)):
                pass

        task = asyncio.create_task(read())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    asyncio.run(main())


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    with queueing(tmp_path / "tiny", AT_ONCE) as found:
        yield found


def test_a_queued_stream_has_its_headers_and_comments_that_clients_pass_over(queue: Queue) -> None:
    body = {"messages": ask("hello"), "max_tokens": 2, "stream": True}
    # The client comes back once the headers are there.
    streamed = sdk(queue.url).chat.completions.create(model="any", **body)
    with httpx.stream("POST", f"{queue.url}/v1/chat/completions", json=body, timeout=PATIENCE) as reply:
        assert reply.headers["x-galago-model"] == queue.model.name
        lines = reply.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        queue.first.cancel()
        *_, end, empty = lines
    assert (end, empty) == ("data: [DONE]", "")
    assert [chunk.choices[0].finish_reason for chunk in streamed] == [None, None, None, "length"]


def test_a_stream_that_waits_for_its_model_is_kept_alive() -> None:
    """A model may be loaded for minutes."""
    may_load = threading.Event()
    may_load.set()

    def opened(name: str, progress: object) -> galago.Model:
        assert may_load.wait(PATIENCE)
        return load("small")

    pool = ModelPool(1, keep_alive=None, load=opened, need=lambda name: 1)
    with serving(create_app(pool, ServerSettings(model=("scenes",)), silence=AT_ONCE)) as url:
        assert httpx.post(f"{url}/v1/models/unload", json={"model": "scenes"}).json()["unloaded"]
        may_load.clear()
        body = {"messages": ask("hello"), "max_tokens": 2, "stream": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=PATIENCE) as reply:
            assert reply.headers["x-galago-model"] == "scenes"
            lines = reply.iter_lines()
            assert next(lines) == ": keep-alive"
            may_load.set()
            *_, end, empty = lines
        assert (end, empty) == ("data: [DONE]", "")

        # One whose client goes meanwhile keeps no model.
        assert httpx.post(f"{url}/v1/models/unload", json={"model": "scenes"}).json()["unloaded"]
        may_load.clear()
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=PATIENCE) as reply:
            assert next(reply.iter_lines()) == ": keep-alive"
        may_load.set()
        end_of_wait = time.monotonic() + PATIENCE
        while not (told := httpx.get(f"{url}/v1/models/scenes").json())["loaded"] or told["in_use"]:
            assert time.monotonic() < end_of_wait, told


def test_what_keeps_ollamas_streams_alive_is_a_record_without_text(queue: Queue) -> None:
    asked = {"model": queue.model.name, "prompt": "hello", "options": {"num_predict": 2}}
    with httpx.stream("POST", f"{queue.url}/api/generate", json=asked, timeout=PATIENCE) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        records = map(json.loads, reply.iter_lines())
        first = next(records)
        queue.first.cancel()
        *_, end = records
    assert first == {"model": queue.model.name, "created_at": first["created_at"], "done": False, "response": ""}
    assert end["done"] and end["eval_count"] == 2


def test_langchain_passes_over_comments(queue: Queue) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    chat = chat_openai(base_url=f"{queue.url}/v1", api_key="none", model="any", max_tokens=2, max_retries=0)
    with ThreadPoolExecutor(1) as threads:
        text = threads.submit(lambda: "".join(str(chunk.content) for chunk in chat.stream("hello")))
        wait_until(text, lambda: queue.model.stats()["queue"]["waiting"] == 1)
        queue.first.cancel()
        assert text.result()


def test_moondreams_client_passes_over_comments(queue: Queue) -> None:
    md = pytest.importorskip("moondream", reason=NO_CLIENT)
    client = md.vl(endpoint=f"{queue.url}/v1")
    with ThreadPoolExecutor(1) as threads:
        asked = {"question": "hello", "stream": True, "settings": {"max_tokens": 2}}
        text = threads.submit(lambda: "".join(client.query(**asked)["answer"]))
        wait_until(text, lambda: queue.model.stats()["queue"]["waiting"] == 1)
        queue.first.cancel()
        assert text.result()


def wait_until(work: Future[Any], is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert not work.done(), work.result()
        assert time.monotonic() < end, "the request does not wait"


def test_a_failure_after_the_headers_is_told_as_an_event(tmp_path: Path) -> None:
    with queueing(tmp_path / "tiny", AT_ONCE, timeout=0.2) as queue:
        streamed = sdk(queue.url).chat.completions.create(model="any", messages=ask("hello"), stream=True)
        with pytest.raises(openai.APIError, match="was not done within") as raised:
            list(streamed)
        with sdk(queue.url).responses.stream(model="any", input="hello") as responses:
            kinds = [event.type for event in responses]
        asked = {"question": "hello", "stream": True}
        lines = httpx.post(f"{queue.url}/v1/query", json=asked, timeout=PATIENCE).iter_lines()
        told, end = [line for line in lines if "data" in line]
        chat = {"model": queue.model.name, "messages": [{"role": "user", "content": "hello"}]}
        *_, last = httpx.post(f"{queue.url}/api/chat", json=chat, timeout=PATIENCE).iter_lines()
    assert raised.value.code == json.loads(told.removeprefix("data: "))["code"] == "timeout"
    assert end == "data: [ERROR]"
    assert json.loads(last).keys() == {"error"}
    assert kinds == ["response.created", "response.in_progress", "response.failed"]


def test_a_failure_before_the_headers_keeps_its_status(tmp_path: Path) -> None:
    with queueing(tmp_path / "tiny", Silence(), timeout=0.2) as queue:
        for path, asked in (("chat/completions", {"messages": ask("hello")}), ("query", {"question": "hello"})):
            reply = httpx.post(f"{queue.url}/v1/{path}", json={**asked, "stream": True}, timeout=PATIENCE)
            assert reply.status_code == 504, reply.text


def test_a_queued_stream_whose_client_goes_leaves_the_queue(queue: Queue) -> None:
    with closing(Wire(("127.0.0.1", int(queue.url.rpartition(":")[2])))) as wire:
        content = json.dumps({"messages": ask("hello"), "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        wire.send(head.encode() + content)
        while wire.line() != b": keep-alive\n":
            pass
        assert queue.model.stats()["queue"]["waiting"] == 1
    end = time.monotonic() + PATIENCE
    while (
        queue.model.stats()["queue"]["waiting"]
        or httpx.get(f"{queue.url}/v1/models/{queue.model.name}").json()["in_use"]
    ):
        assert time.monotonic() < end, "the request stays in the queue, or the model in use"
    assert queue.model.stats()["skills"]["chat"]["cancelled"] == 1


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const stream = await client.chat.completions.create({ model: "any", messages, max_tokens: 2, stream: true });
console.log("waiting");
let text = "";
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
console.log(JSON.stringify(text));
"""


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("npm") and shutil.which("node")), reason="needs Node (apt install npm)")
def test_openais_client_for_node_passes_over_comments(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    install = ["npm", "install", "--ignore-scripts", "openai@6"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"needs the registry of npm: the client cannot be installed: {done.stderr[-200:]}")
    (tmp_path / "program.mjs").write_text(NODE)
    command = ["node", "program.mjs", queue.url]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout
        assert node.stdout.readline() == "waiting\n"
        queue.first.cancel()
        assert json.loads(node.stdout.readline())
