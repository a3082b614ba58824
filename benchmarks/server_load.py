"""Load on a server: many clients, mixed requests, some of whom leave early.

python benchmarks/server_load.py --clients 64 --minutes 3
python benchmarks/server_load.py --url http://127.0.0.1:8080 --json

Without --url it starts `galago serve` with the bundled model and reads its memory. What a request takes beyond the
engine's own time is measured before, with one client. Exit code 1 if anything but 200 and 429 was answered.
"""

import argparse
import asyncio
import base64
import contextlib
import http.client
import io
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from server_program import server_program

from galago.lab.eval.scenes.draw import draw_scene

WAYS = ("caption", "query", "detect", "point", "chat", "chat streamed", "caption streamed", "health")


@dataclass
class Found:
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """of answered requests, by their kind"""
    memory: list[int] = field(default_factory=list)


def pictures(count: int) -> list[str]:
    urls = []
    for n in range(count):
        out = io.BytesIO()
        draw_scene(np.random.default_rng([31, n])).image.save(out, "PNG")
        urls.append("data:image/png;base64," + base64.b64encode(out.getvalue()).decode())
    return urls


def body_of(way: str, url: str) -> tuple[str, dict[str, Any] | None]:
    match way.split()[0]:
        case "health":
            return "/health", None
        case "caption":
            return "/v1/caption", {"image_url": url, "length": "short", "stream": way.endswith("streamed")}
        case "query":
            return "/v1/query", {"image_url": url, "question": "Is there a circle?"}
        case "detect" | "point":
            return f"/v1/{way}", {"image_url": url, "object": "circle"}
    parts = [{"type": "text", "text": "What shapes are there?"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": parts}]
    return "/v1/chat/completions", {"messages": messages, "max_tokens": 20, "stream": way.endswith("streamed")}


async def one(client: httpx.AsyncClient, chance: random.Random, urls: list[str], leave: float, found: Found) -> None:
    way = chance.choice(WAYS)
    path, body = body_of(way, chance.choice(urls))
    begin = time.perf_counter()
    request = client.get(path) if body is None else client.post(path, json=body)
    try:
        if body is not None and chance.random() < leave:
            async with asyncio.timeout(chance.uniform(0.001, 0.2)):
                await request
        else:
            reply = await request
            broken = way.endswith("streamed") and '"error"' in reply.text
            found.statuses["error in a stream" if broken else str(reply.status_code)] += 1
            if reply.status_code == 200 and not broken:
                found.seconds.setdefault(way, []).append(time.perf_counter() - begin)
            elif reply.status_code == 429:
                await asyncio.sleep(chance.uniform(0.05, 0.3))
    except TimeoutError:
        found.statuses["left"] += 1
    except httpx.HTTPError as error:
        found.statuses[type(error).__name__] += 1


async def load(url: str, clients: int, seconds: float, leave: float, pid: int | None) -> Found:
    found, urls, end = Found(), pictures(48), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)

    async def go_on(client: httpx.AsyncClient, seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < end:
            await one(client, chance, urls, leave, found)

    async def watch() -> None:
        while time.monotonic() < end:
            if pid:
                found.memory.append(resident(pid))
            print(f"\r{sum(found.statuses.values())} requests", end="", file=sys.stderr)
            await asyncio.sleep(1)

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(watch(), *(go_on(client, seed) for seed in range(clients)))
    print(file=sys.stderr)
    return found


def overheads(url: str, count: int) -> list[float]:
    """Seconds of requests one by one that the engine did not take, from sending the body to having read the reply.

    The engine's own time is from its taking a request to the last event.
    """
    spent = []
    with contextlib.closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)) as client:
        for picture in pictures(8) * (count // 8):
            path, body = body_of("query", picture)
            given = json.dumps(body)  # not the server's work
            begin = time.perf_counter()
            client.request("POST", path, given, {"Content-Type": "application/json"})
            told = client.getresponse().read()
            seconds = time.perf_counter() - begin
            spent.append(seconds - json.loads(told)["_stats"]["duration"])
    return spent[8:]


def resident(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


@contextlib.contextmanager
def started() -> Iterator[tuple[str, int]]:
    with server_program("scenes", "--log-level", "warning") as (process, address):
        yield address, process.pid


def report(found: Found, spent: list[float], seconds: float) -> dict[str, Any]:
    def percentiles(values: list[float]) -> dict[str, float]:
        ordered = sorted(values)
        return {name: round(ordered[int(len(ordered) * share)], 4) for name, share in (("p50", 0.5), ("p99", 0.99))}

    kept = found.memory[len(found.memory) // 6 :]
    return {
        "requests": sum(found.statuses.values()),
        "per_s": round(sum(map(len, found.seconds.values())) / seconds, 1),
        "statuses": dict(found.statuses),
        "seconds": {way: percentiles(values) for way, values in sorted(found.seconds.items())},
        "overhead_ms": {k: round(v * 1000, 2) for k, v in percentiles(spent).items()} if spent else None,
        "resident_mb": {"after_warm_up": kept[0] >> 20, "most": max(kept) >> 20, "last": kept[-1] >> 20}
        if kept
        else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--leave", type=float, default=0.1, help="share of requests whose client goes away early")
    parser.add_argument("--json", action="store_true", help="nothing but the figures, on one line")
    options = parser.parse_args()
    with contextlib.nullcontext((options.url, None)) if options.url else started() as (url, pid):
        spent = overheads(url, 200)
        found = asyncio.run(load(url, options.clients, 60 * options.minutes, options.leave, pid))
    figures = report(found, spent, 60 * options.minutes)
    print(json.dumps(figures, indent=None if options.json else 1))
    return int(any(status not in ("200", "429", "left") for status in found.statuses))


if __name__ == "__main__":
    sys.exit(main())
