"""A server and workers, real processes, that are killed at any moment while jobs are added and carried out."""

import base64
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from guarded import PATIENCE
from receiver import Receiver, receiving

from galago.jobs import open_store

QUICK = Path(__file__).parents[1] / "support" / "quick_jobs.py"
PICTURE = (Path(__file__).parents[2] / "examples" / "scene.png").read_bytes()
SECRET = base64.b64encode(bytes(range(32))).decode()
EVENTS = ("job.queued", "job.started", "job.done", "job.failed")
LOST = "its worker was lost in attempt 3 of 3"
JOBS, KILLS = 1000, 32
LOOK_S = 0.05


class Processes:
    """Commands that run; each that is killed is started again at once."""

    def __init__(self, commands: list[list[str]]) -> None:
        self._commands = commands
        self._running = [self._start(command) for command in commands]

    def kill(self, which: int) -> None:
        self._running[which].kill()
        self._running[which].wait()
        self._running[which] = self._start(self._commands[which])

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.wait()

    def check(self) -> None:
        assert [process.poll() for process in self._running] == [None] * len(self._running)

    def _start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, str(QUICK), *command], stderr=subprocess.DEVNULL)


@contextmanager
def running(location: str, port: int) -> Iterator[Processes]:
    shared = ["scenes", "--jobs-db", location, "--allow-callback-host", "127.0.0.1", "--webhook-secret", SECRET]
    server, worker = ["serve", *shared, "--port", str(port)], ["worker", *shared]
    processes = Processes([server, worker, worker])
    try:
        yield processes
    finally:
        processes.close()


def add_all(port: int, callback_url: str, over: threading.Event) -> None:
    """Add the jobs, each again until it is known to be there."""
    image = base64.b64encode(PICTURE).decode()
    body = {"path": "/v1/query", "image_url": image, "question": "What color is the circle?"}
    for i in range(JOBS):
        job = body | {"callback_url": callback_url, "idempotency_key": f"job {i}", "max_tokens": 4 + i % 60}
        while not over.is_set():
            try:
                reply = httpx.post(f"http://127.0.0.1:{port}/v1/jobs", json=job, timeout=PATIENCE)
                assert reply.status_code in (200, 202), reply.text
                break
            except httpx.TransportError:
                over.wait(LOOK_S)


@pytest.mark.slow
def test_whoever_is_killed_every_job_ends_once_and_is_told_in_order(location: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store, chance, over = open_store(location), random.Random(27), threading.Event()
    with receiving(share=0.5, ways=("status", "close"), seed=27) as receiver, running(location, port) as processes:
        adding = threading.Thread(target=add_all, args=[port, receiver.url, over])
        adding.start()
        try:
            kills, end = 0, time.monotonic() + 20 * PATIENCE
            while True:
                states, callbacks = store.counts().by_state, store.deliveries.counts().by_state
                ended = states["done"] + states["failed"]
                if kills < KILLS and ended >= kills * JOBS // (KILLS + 1):
                    processes.kill(chance.randrange(3))
                    kills += 1
                if ended == JOBS and not callbacks["pending"]:
                    break
                assert time.monotonic() < end, (kills, states, callbacks)
                over.wait(LOOK_S)
            processes.check()
        finally:
            over.set()
            adding.join()
    assert kills == KILLS
    jobs = store.page(limit=1000).jobs
    assert len(jobs) == JOBS and store.deliveries.counts().by_state["dead"] == 0
    for job in jobs:
        if job.state == "done":
            assert json.loads(job.result or "")["answer"] == "blue"
        else:
            assert (job.state, job.error) == ("failed", LOST)
    check_told(receiver, {job.id: job.state for job in jobs})


def check_told(receiver: Receiver, states: dict[str, str]) -> None:
    """Each job was told of from its first state to its last, in that order, and of one end alone."""
    told: dict[str, list[tuple[str, str]]] = {}
    for one in receiver.received:
        event = json.loads(one.body)
        told.setdefault(event["data"]["id"], []).append((event["type"], one.headers["webhook-id"]))
    taken = Counter(one.headers["webhook-id"] for one in receiver.taken)
    assert told.keys() == states.keys()
    for job_id, events in told.items():
        kinds = list(dict.fromkeys(kind for kind, _ in events))
        assert kinds == ["job.queued", "job.started", f"job.{states[job_id]}"]
        assert [kind for kind, _ in events] == sorted((kind for kind, _ in events), key=EVENTS.index)
        ids = dict.fromkeys(id for _, id in events)
        assert len(ids) == 3 and all(taken[id] for id in ids)
