"""What a full queue of jobs does to requests that somebody waits for.

    python benchmarks/jobs_beside.py --rounds 5
    python benchmarks/jobs_beside.py --model FOLDER --precision int8 --detail low --tokens 16 --requests 16 --jobs 48

Starts `galago serve --jobs-db`, and lets some clients at once send requests, each on an image of its own, beside an
empty queue and beside one that stays full, in turn. Each round has new images. Prints the latencies beside both, their
ratio, and how many jobs were done a minute meanwhile, and alone.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from PIL import Image
from server_program import server_program

from galago.jobs import NewJob, open_store
from galago.lab.eval.scenes.draw import draw_scene

PATIENCE_S = 600
SETTLED_S = 0.3
"""What the server has after jobs were cancelled, before anything is measured"""


class Client:
    """One connection to the server, made anew where the server has let it go."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)

    def ask(self, method: str, path: str, body: str | None = None) -> Any:
        try:
            self._connection.request(method, path, body, {"Content-Type": "application/json"})
            reply = self._connection.getresponse()
        except http.client.RemoteDisconnected:
            self._connection.close()
            return self.ask(method, path, body)
        told = json.loads(reply.read())
        if reply.status >= 300:
            raise SystemExit(f"{method} {path} was answered with {reply.status}: {told}")
        return told

    def jobs(self) -> dict[str, int]:
        found: dict[str, int] = self.ask("GET", "/health")["queue"]["jobs"]
        return found


@dataclass
class Bodies:
    """Requests, no two of which show the same image."""

    tokens: int
    scenes: list[Image.Image]
    numbers: Iterator[int] = field(default_factory=count)

    def caption(self) -> str:
        out, n = io.BytesIO(), next(self.numbers)
        image = self.scenes[n % len(self.scenes)].copy()
        image.putpixel((0, 0), (n % 256, n // 256 % 256, 0))
        image.save(out, "PNG")
        url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
        return json.dumps({"image_url": url, "length": "normal", "settings": {"max_tokens": self.tokens}})


@dataclass
class Found:
    seconds: list[float] = field(default_factory=list)
    """of each request"""
    jobs: int = 0
    """done meanwhile"""
    wall_s: float = 0.0

    def percentile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))

    @property
    def jobs_per_minute(self) -> float:
        return 60 * self.jobs / self.wall_s


def measure(address: str, bodies: list[str], clients: int, found: Found) -> None:
    """So many clients send the requests, each its next when it has the reply to the last."""
    taken, watcher = iter(bodies), Client(address)

    def go_on() -> None:
        client = Client(address)
        while body := next(taken, None):
            begin = time.perf_counter()
            client.ask("POST", "/v1/caption", body)
            found.seconds.append(time.perf_counter() - begin)

    done, begin = watcher.jobs()["done"], time.perf_counter()
    threads = [threading.Thread(target=go_on) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.wall_s += time.perf_counter() - begin
    found.jobs += watcher.jobs()["done"] - done


def fill(client: Client, store: Any, bodies: Bodies, jobs: int) -> None:
    """Put so many jobs into the queue, and wait until some have been done."""
    done = client.jobs()["done"]
    for _ in range(jobs):
        store.add(NewJob("/v1/caption", bodies.caption()))
    while client.jobs()["done"] == done:
        time.sleep(0.01)


def empty(client: Client) -> None:
    """Cancel all jobs."""
    while (left := client.jobs())["queued"] or left["running"]:
        for job in client.ask("GET", "/v1/jobs?status=queued&status=running&limit=100")["data"]:
            client.ask("DELETE", f"/v1/jobs/{job['id']}")
    time.sleep(SETTLED_S)


@contextlib.contextmanager
def started(model: str, precision: str | None, detail: str) -> Iterator[tuple[str, str]]:
    """A server's address and its queue's file."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [model, "--log-level", "warning", "--jobs-db", f"{folder}/jobs.db", "--timeout", str(PATIENCE_S)]
        arguments += ["--detail", detail, *(["--precision", precision] if precision else [])]
        with server_program(*arguments) as (_, url):
            yield url.removeprefix("http://"), f"{folder}/jobs.db"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--precision")
    parser.add_argument("--detail", default="high")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--requests", type=int, default=64, help="of each round")
    parser.add_argument("--jobs", type=int, default=600, help="in the queue when a round begins")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at the most")
    parser.add_argument("--side", type=int, default=192, help="of the images, in pixels")
    options = parser.parse_args()
    scenes = [draw_scene(np.random.default_rng([47, n])).image for n in range(64)]
    bodies, alone = Bodies(options.tokens, [one.resize((options.side, options.side)) for one in scenes]), Found()
    found = {(clients, beside): Found() for clients in options.clients for beside in (False, True)}
    short = 0
    with started(options.model, options.precision, options.detail) as (address, file):
        client, store = Client(address), open_store(file)
        measure(address, [bodies.caption() for _ in range(8)], 4, Found())  # the first are slower
        for _ in range(options.rounds):
            for (clients, beside), into in found.items():
                given = [bodies.caption() for _ in range(options.requests)]
                if beside:
                    fill(client, store, bodies, options.jobs)
                measure(address, given, clients, into)
                short += beside and not client.jobs()["queued"]
                empty(client)
            fill(client, store, bodies, options.jobs)
            done, begin = client.jobs()["done"], time.perf_counter()
            while (now := client.jobs())["queued"] > options.jobs // 2:
                time.sleep(0.05)
            alone.jobs += now["done"] - done
            alone.wall_s += time.perf_counter() - begin
            empty(client)
    print("| clients | queue | p50 ms | p99 ms | jobs/min |\n|--:|---|--:|--:|--:|")
    for (clients, beside), into in found.items():
        p50, p99 = (1000 * into.percentile(share) for share in (0.5, 0.99))
        rate = f"{into.jobs_per_minute:,.0f}" if beside else ""
        print(f"| {clients} | {'full' if beside else 'empty'} | {p50:.1f} | {p99:.1f} | {rate} |")
        if beside:
            without = found[clients, False]
            ratios = (into.percentile(share) / without.percentile(share) for share in (0.5, 0.99))
            print(f"| {clients} | ratio | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " | |")
    print(f"| 0 | full | | | {alone.jobs_per_minute:,.0f} |")
    if short:
        print(f"the queue ran empty in {short} rounds: give more --jobs", file=sys.stderr)
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
