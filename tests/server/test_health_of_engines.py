"""A server whose engine ends: what is told, by /health too, and that it mends itself."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from serving import serving

import galago
from galago.engine.scheduler import Scheduler
from galago.errors import CheckpointError
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings

PATIENCE = 60
BODY = {"messages": [{"role": "user", "content": "what shape?"}], "max_tokens": 4}


class Loads:
    """galago.load, which waits for a test, or fails."""

    def __init__(self) -> None:
        self.go_on, self.begun = threading.Event(), threading.Event()
        self.go_on.set()
        self.fails: galago.GalagoError | None = None
        self.times = 0

    def __call__(self, name: str, progress: Any = None) -> galago.Model:
        self.times += 1
        self.begun.set()
        assert self.go_on.wait(PATIENCE)
        if self.fails:
            raise self.fails
        return galago.load(name)


@contextmanager
def served(loads: Loads, **settings: Any) -> Iterator[httpx.Client]:
    pool = ModelPool(1, keep_alive=None, load=loads, need=lambda name: 1)
    with (
        serving(create_app(pool, ServerSettings(**settings))) as url,
        httpx.Client(base_url=url, timeout=PATIENCE) as client,
    ):
        yield client


def broken(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request ends the engine; it and one beside it are told."""
    turn = Scheduler.turn

    def exits(self: Scheduler) -> bool:
        if self._queue.peek():
            raise SystemExit
        return turn(self)

    monkeypatch.setattr(Scheduler, "turn", exits)
    reply = client.post("/v1/chat/completions", json=BODY)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (503, "engine_failed") and "SystemExit" in error["message"]
    assert reply.headers["retry-after"]
    monkeypatch.setattr(Scheduler, "turn", turn)


def test_a_request_has_it_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads()
    with served(loads) as client:
        broken(client, monkeypatch)
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200
        assert client.get("/health").json()["status"] == "healthy" and loads.times == 2


def test_health_says_so_and_has_it_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a balancer sends no requests to what is not healthy."""
    loads = Loads()
    with served(loads) as client:
        broken(client, monkeypatch)
        loads.go_on.clear()
        loads.begun.clear()
        for path in ("/health", "/readyz", "/health"):
            reply = client.get(path)
            assert reply.status_code == 503 and reply.headers["retry-after"]
            said = reply.json()
            assert said["status"] == "failed" and "SystemExit" in said["error"] and said["model"] == "scenes"
        assert loads.begun.wait(PATIENCE)
        asked: list[int] = []

        def ask() -> None:
            asked.append(httpx.post(f"{client.base_url}/v1/chat/completions", json=BODY, timeout=PATIENCE).status_code)

        asker = threading.Thread(target=ask)
        asker.start()
        loads.go_on.set()
        asker.join(PATIENCE)
        assert asked == [200] and client.get("/health").json()["status"] == "healthy"
        assert loads.times == 2


def test_health_says_that_it_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = Loads()
    with served(loads) as client:
        broken(client, monkeypatch)
        loads.fails = CheckpointError("a file is gone")
        assert client.post("/v1/chat/completions", json=BODY).status_code == 500
        said = client.get("/health")
        assert (said.status_code, said.json()["status"], said.json()["error"]) == (503, "failed", "a file is gone")
        loads.fails = None
        assert client.post("/v1/chat/completions", json=BODY).status_code == 200
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("settings", [{"max_queue": 0}, {"max_queue": 1, "max_batch_size": 6}])
def test_a_queue_is_of_those_that_wait(settings: dict[str, int]) -> None:
    """Six that come together to an idle server are all answered."""
    model = galago.load(limits=galago.Limits(waiting=settings["max_queue"], running=settings.get("max_batch_size", 16)))
    pool = ModelPool(1, keep_alive=None, load=lambda name, progress: model, need=lambda name: 1)
    with serving(create_app(pool, ServerSettings(**settings))) as url:
        start, codes = threading.Barrier(6), []

        def ask() -> None:
            start.wait(PATIENCE)
            codes.append(httpx.post(f"{url}/v1/chat/completions", json=BODY, timeout=PATIENCE).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert codes == [200] * 6
