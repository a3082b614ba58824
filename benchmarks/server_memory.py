"""Memory of a server that gets large pictures, all at once.

python benchmarks/server_memory.py
python benchmarks/server_memory.py --pictures 64 --side 8000 --json
python benchmarks/server_memory.py --galago other/bin/galago

It starts `galago serve` with the bundled model, asks it once about a small picture, and then sends all pictures
together: PNGs of --side pixels each way, of about a megabyte, each another. What is told is the most resident memory
that the server's process had, by the kernel's count. Exit code 1 if anything but 200 and 429 was answered.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image


def picture(seed: int, side: int, mode: str) -> bytes:
    """A PNG with patches of noise on slopes of colour: large in pixels, small as a file."""
    rng = np.random.default_rng(seed)
    slope = np.linspace(0, 255, side).astype(np.uint8)
    pixels = np.empty((side, side, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = slope, slope[:, None], rng.integers(256)
    noisy = min(side, 550)
    pixels[:noisy, :noisy] = rng.integers(0, 256, (noisy, noisy, 3))
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, "PNG", compress_level=6)
    return out.getvalue()


def resident(pid: int) -> tuple[int, int]:
    """Bytes now, and the most since the count was last reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {line[:5]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found["VmRSS"], found["VmHWM"]


def worked(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask(client: httpx.AsyncClient, data: bytes, statuses: Counter[int]) -> None:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    image = {"type": "image_url", "image_url": {"url": url, "detail": "low"}}
    body = {"messages": [{"role": "user", "content": [image]}], "max_tokens": 8}
    reply = await client.post("/v1/chat/completions", json=body)
    statuses[reply.status_code] += 1


async def load(address: str, pid: int, given: list[bytes]) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        await ask(client, picture(0, 400, "RGB"), Counter())
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the most counts from here on
        before, spent, begin = resident(pid)[0], worked(pid), time.perf_counter()
        await asyncio.gather(*(ask(client, data, statuses) for data in given))
        seconds, spent, most = time.perf_counter() - begin, worked(pid) - spent, resident(pid)[1]
        await asyncio.sleep(3)
    left = resident(pid)[0]
    times = {"seconds": round(seconds, 2), "processor_seconds": round(spent, 2)}
    return {"before": before, "peak": most, "after": left, **times, "statuses": dict(statuses)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--pictures", type=int, default=10)
    arguments.add_argument("--side", type=int, default=8000)
    arguments.add_argument("--mode", default="RGB", help="RGB, RGBA, L, ...")
    arguments.add_argument("--galago", default=str(Path(sys.executable).with_name("galago")))
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()

    with ProcessPoolExecutor(2) as pool:
        pictures = list(pool.map(partial(picture, side=given.side, mode=given.mode), range(1, given.pictures + 1)))
    command = [given.galago, "serve", "scenes", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr
        try:
            address = next(found[1] for line in server.stderr if (found := re.search(r"(http://\S+) with", line)))
            found = asyncio.run(load(address, server.pid, pictures))
        finally:
            server.terminate()
            server.communicate()
    size = sum(map(len, pictures)) / len(pictures)
    found |= {"pictures": given.pictures, "side": given.side, "mode": given.mode, "file_bytes": round(size)}
    if given.json:
        print(json.dumps(found))
    else:
        what = f"{given.pictures} PNGs of {given.side} x {given.side} ({given.mode}, {size / 1e6:.1f} MB)"
        megabytes = {key: f"{found[key] / 1e6:.0f} MB" for key in ("before", "peak", "after")}
        answers = ", ".join(f"{n} x {status}" for status, n in found["statuses"].items())
        told = "{before} before, {peak} at the peak, {after} after".format(**megabytes)
        took = "{seconds:.1f} s, {processor_seconds:.1f} s of a processor".format(**found)
        print(f"{what}: {told}; {took}; {answers}")
    return 0 if set(found["statuses"]) <= {200, 429} else 1


if __name__ == "__main__":
    sys.exit(main())
