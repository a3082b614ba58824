"""Jobs through a server of its own, as meme-search sends them: pictures a minute, jobs a second, and memory.

    python benchmarks/job_queue.py captions --pictures 200 --rounds 3
    python benchmarks/job_queue.py tests --jobs 10000

`captions` describes drawn scenes with the bundled model, on a server that carries out one job at a time and on one that
carries out as many as it may, in turn. `tests` sends jobs of the model `test`, of which 512 run at a time, since each
takes a second and computes nothing. Memory is the resident memory of the server's process (Linux).
"""

import argparse
import json
import re
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from server_program import server_program

from galago.lab.eval.scenes.draw import scene_at

SEED = 27
LOOK_S = 0.02


class Application:
    """What the callbacks come to: it counts descriptions, and jobs that are done or failed."""

    def __init__(self) -> None:
        self.described = self.ended = self.callbacks = 0
        self._lock = threading.Lock()

    def take(self, body: bytes) -> None:
        data = json.loads(body)["data"]
        with self._lock:
            self.callbacks += 1
            self.described += "description" in data
            self.ended += data.get("status") in (3, 5)


@contextmanager
def listening(application: Application) -> Iterator[str]:
    class Site(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            application.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    class Sites(ThreadingHTTPServer):
        request_queue_size = 128

    with Sites(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/image_cores"
        server.shutdown()


@contextmanager
def serving(folder: Path, callback_url: str, database: str, at_a_time: int) -> Iterator[tuple[httpx.Client, int]]:
    """A client of a server, and the id of its process."""
    arguments = ["-m", "scenes", "--meme-search", "--job-delay", "0", "--image-root", str(folder), "--job-db", database]
    arguments += ["--callback-url", callback_url, "--max-batch-size", str(at_a_time), "--log-level", "warning"]
    with server_program(*arguments) as (process, address), httpx.Client(base_url=address, timeout=120) as client:
        yield client, process.pid


def resident_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def run_jobs(
    http: httpx.Client, pid: int, application: Application, jobs: list[dict[str, Any]], every: int
) -> dict[str, Any]:
    """Add jobs, and wait until the application was told of the end of each; memory after every so many."""
    before, began = application.ended, time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda job: http.post("/add_job", json=job).status_code, jobs))
    added, memory = time.perf_counter() - began, []
    assert set(replies) == {200}
    while (ended := application.ended - before) < len(jobs):
        if ended >= every * (len(memory) + 1):
            memory.append(round(resident_mb(pid)))
        time.sleep(LOOK_S)
    took = time.perf_counter() - began
    return {"added_s": added, "took_s": took, "memory_mb": [*memory, round(resident_mb(pid))]}


def jobs_of(paths: list[str], model: str) -> list[dict[str, Any]]:
    return [
        {"image_core_id": i, "image_path": path, "model": model, "attempt_id": i, "callback_token": f"t{i}"}
        for i, path in enumerate(paths)
    ]


def captions(folder: Path, location: Callable[[str], str], options: argparse.Namespace) -> None:
    paths = [f"{i}.png" for i in range(options.pictures + 10)]
    for i, path in enumerate(paths):
        scene_at(SEED, i).image.save(folder / path)
    first, others = jobs_of(paths[:10], "Florence-2-base"), jobs_of(paths[10:], "Florence-2-base")
    speeds: dict[int, list[float]] = {1: [], options.at_a_time: []}
    for number in range(options.rounds):
        for at_a_time, found in speeds.items():
            application = Application()
            with (
                listening(application) as url,
                serving(folder, url, location(f"captions-{number}-{at_a_time}"), at_a_time) as (http, pid),
            ):
                run_jobs(http, pid, application, first, 10)
                told = run_jobs(http, pid, application, others, 25)
            found.append(60 * len(others) / told["took_s"])
            assert application.described == len(paths)
            print(
                f"{at_a_time:3} at a time: {found[-1]:6.0f} pictures a minute; memory {told['memory_mb']} MB",
                flush=True,
            )
    one, many = (statistics.median(found) for found in speeds.values())
    print(f"median: {one:.0f} one at a time, {many:.0f} {options.at_a_time} at a time: {many / one:.2f} times")


def tests(folder: Path, location: Callable[[str], str], options: argparse.Namespace) -> None:
    scene_at(SEED, 0).image.save(folder / "a.png")
    application = Application()
    with (
        listening(application) as url,
        serving(folder, url, location("tests"), options.at_a_time) as (http, pid),
    ):
        run_jobs(http, pid, application, jobs_of(["a.png"] * options.at_a_time, "test"), options.at_a_time)
        told = run_jobs(http, pid, application, jobs_of(["a.png"] * options.jobs, "test"), options.jobs // 10)
        queue = http.get("/health").json()["queue"]
    # Of each job: added, claimed, completed; and four callbacks, each claimed and settled.
    speed = options.jobs / told["took_s"]
    print(
        f"{options.jobs} jobs: added in {told['added_s']:.1f} s ({options.jobs / told['added_s']:.0f} a second), done"
    )
    print(f"and told in {told['took_s']:.1f} s: {speed:.0f} jobs, {11 * speed:.0f} operations a second")
    print(f"memory after each tenth: {told['memory_mb']} MB; queue: {queue}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["captions", "tests"])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-a-time", type=int)
    parser.add_argument("--database", help="a URL of PostgreSQL, by default a file of SQLite")
    options = parser.parse_args()
    options.at_a_time = options.at_a_time or {"captions": 16, "tests": 512}[options.what]
    with tempfile.TemporaryDirectory() as folder:

        def location(name: str) -> str:
            return options.database or str(Path(folder, f"{name}.db"))

        {"captions": captions, "tests": tests}[options.what](Path(folder), location, options)


if __name__ == "__main__":
    main()
