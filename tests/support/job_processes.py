"""Processes that work a queue of jobs and tell of it; they are forked from one that has imported what they need."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

from isolation import HOME

from galago.jobs import Backoff, Callback, Job, NewJob, QueueSettings, open_store

SETTINGS = QueueSettings(retry=Backoff(0.01, 0.02), redelivery=Backoff(0.01, 0.02), max_deliveries=100, patience_s=30)
NEW = NewJob("/v1/caption", "{}", max_attempts=100)
SENDING_S = 2.0
"""Lease of a callback."""
_numbers = count()


@dataclass(frozen=True)
class Worker:
    """A process; `pipe` has what it says, and ends when it does."""

    pid: int
    pipe: Connection

    def kill(self) -> None:
        """SIGKILL, wherever it is. What it said before is still to be read."""
        os.kill(self.pid, signal.SIGKILL)


@contextmanager
def starting_workers() -> Iterator[Callable[..., Worker]]:
    """Starts one of the functions below in a process of its own, which gets these arguments and its end of the pipe."""
    address = str(HOME / f"jobs-{next(_numbers)}.sock")
    code = f"import job_processes, galago.jobs.store; job_processes.fork_for_ever({address!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with (
        Listener(address) as listener,
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        ) as origin,
    ):
        assert origin.stdin is not None
        commands = origin.stdin

        def start(target: Callable[..., None], *arguments: Any) -> Worker:
            print(json.dumps([target.__name__, *arguments]), file=commands, flush=True)
            pipe = listener.accept()
            return Worker(pipe.recv(), pipe)

        yield start


def fork_for_ever(address: str) -> None:
    """Fork a process for each line of standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # none is waited for
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        if os.fork() == 0:
            try:
                with Client(address) as pipe:
                    pipe.send(os.getpid())
                    globals()[name](*arguments, pipe)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)


def tell(job: Job) -> list[Callback]:
    return [Callback("http://a/", job.state, str(job.claims))]


def work(location: str, lease_s: float, pipe: Connection) -> None:
    """Carry out jobs and send callbacks until there are no more; every third attempt and every other callback fails.

    Says ("claimed", job), ("done", job), ("lost", job) and ("sent", job, sequence), before that counts as sent.
    """
    store = open_store(location, settings=SETTINGS, callbacks=tell)
    worker = f"worker-{os.getpid()}"
    while True:
        for job in store.claim(worker, lease_s, 3):
            pipe.send(("claimed", job.id))
            if job.claims % 3 == 1:
                store.fail(job, "not now")
            else:
                pipe.send(("done" if store.complete(job, "{}") else "lost", job.id))
        for delivery in store.deliveries.claim(worker, SENDING_S, 4):
            assert delivery.next_at is not None
            if time.time() > delivery.next_at - SENDING_S / 2:
                continue  # another may be about to send it, and the next of the job after it
            pipe.send(("sent", delivery.job_id, delivery.sequence))
            if delivery.attempts % 2:
                store.deliveries.failed(delivery, "503", status=503)
            else:
                store.deliveries.delivered(delivery, 200)
        states = store.counts().by_state
        if not states["queued"] + states["running"] + store.deliveries.counts().by_state["pending"]:
            break
        store.wait(0.05)
    store.close()


def add_one(location: str, pipe: Connection) -> None:
    """Open the database, at the same time as others, and add a job."""
    store = open_store(location, settings=SETTINGS)
    pipe.send(store.add(NEW)[0].id)
    store.close()
