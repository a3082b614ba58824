"""What the server itself adds to a request, in one state of Galago beside another: a backend that answers at once.

    python benchmarks/server_overhead.py ../before . --requests 2000

Each folder is a checkout with its `.venv` set up. A process of each serves the toy backend of its tests; requests go to
both in turn over kept connections. Prints the median of each kind of request, in microseconds, and the ratio of the
second state to the first. `--calls` prints instead, for each state, how many of its own functions a chat request of one
image calls before the backend has it, and until the reply is written.
"""

import argparse
import base64
import io
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SERVE = """
import sys; sys.path[:0] = ["tests/support", "src"]
import toy_backend
from serving import serving
from galago.backends import backend
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.store import catalog
tables = catalog._tables()
catalog._tables = lambda: {**tables, "toy": toy_backend.ENTRY}
backend.BACKENDS["toy"] = "toy_backend"
catalog.entries.cache_clear()
app = create_app(ModelPool(1_000_000, keep_alive=None, options={"device": "cpu"}), ServerSettings(model=("toy",)))
"""
ASKED = """
import asyncio, json, time
from collections import Counter

async def ask(path, body):
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"}
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "headers": headers, "client": ("::1", 1)}
    parts, status = [{"type": "http.request", "body": body, "more_body": False}], []

    async def receive():
        if parts:
            return parts.pop()
        await asyncio.Event().wait()

    async def send(message):
        status.append(message.get("status"))

    begin = time.perf_counter()
    await app(scope, receive, send)
    took = time.perf_counter() - begin
    assert status[0] == 200, status
    return took * 1e6

def calls(path, body):
    entered, kept, asked = [], {}, []
    def trace(frame, event, arg):
        code = frame.f_code
        if event != "call" or id(frame) in kept:  # a coroutine that goes on is no new call
            return
        if code.co_filename.endswith("toy_backend.py") and code.co_name == "submit":
            asked.append(len(entered))
        if "/galago/server/" in code.co_filename and not code.co_name.startswith("<"):
            kept[id(frame)] = frame
            entered.append(f"{code.co_filename.rpartition('/')[2]}:{code.co_qualname}")
    async def traced():
        await ask(path, body)
        threading.setprofile(trace); sys.setprofile(trace)
        await ask(path, body)  # in a thread that was there before, and is not traced
        sys.setprofile(None)
    import anyio.to_thread
    run = anyio.to_thread.run_sync
    def in_place(call, *given, **how):
        async def run_here():
            return call(*given)
        return run_here()
    anyio.to_thread.run_sync = in_place
    async def main():
        async with app.router.lifespan_context(app):
            while not app.state.startup.done():
                await asyncio.sleep(0.01)
            await traced()
    import threading
    asyncio.run(main())
    print(asked[0], len(entered), flush=True)
    print("\\n".join(entered), file=sys.stderr)

async def serve():
    async with app.router.lifespan_context(app):
        while not app.state.startup.done():
            await asyncio.sleep(0.01)
        for line in sys.stdin:
            path, body, count = json.loads(line)
            [await ask(path, body.encode()) for _ in range(5)]
            begin = time.process_time()
            times = [await ask(path, body.encode()) for _ in range(count)]
            print(json.dumps([times, (time.process_time() - begin) * 1e6 / count]), flush=True)

if sys.argv[1:]:
    calls(*[(path, body.encode()) for path, body, _ in [json.loads(sys.stdin.readline())]][0])
else:
    asyncio.run(serve())
"""
ROUNDS = 20


def picture(side: int) -> str:
    from PIL import Image

    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(0).randbytes(side * side * 3)).save(out, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def bodies() -> dict[str, tuple[str, dict[str, Any]]]:
    small, large = picture(64), picture(1000)

    def chat(image: str | None) -> dict[str, Any]:
        text = {"type": "text", "text": "What is this?"}
        shown = [{"type": "image_url", "image_url": {"url": image}}] if image else []
        return {"model": "toy", "messages": [{"role": "user", "content": [text, *shown]}], "max_tokens": 9}

    path = "/v1/chat/completions"
    return {
        "chat, text": (path, chat(None)),
        "chat, image of 64 pixels": (path, chat(small)),
        "chat, image of 1000 pixels": (path, chat(large)),
        "chat, streamed": (path, chat(small) | {"stream": True}),
        "query": ("/v1/query", {"image_url": small, "question": "What is this?"}),
        "Ollama's chat": ("/api/chat", {"model": "toy", "messages": [{"role": "user", "content": "What?"}]}),
    }


class Server:
    """The app of a checkout in a process of its own, called without sockets, whose times differ more."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command, pipe = [str(folder / ".venv/bin/python"), "-c", SERVE + ASKED, *arguments], subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def ask(self, path: str, body: dict[str, Any], count: int) -> Any:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([path, json.dumps(body), count]), file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs=2, type=Path)
    parser.add_argument("--requests", type=int, default=1000, help="of each kind to each state")
    parser.add_argument("--calls", action="store_true", help="count calls instead")
    options = parser.parse_args()
    if options.calls:
        for folder in options.folders:
            server = Server(folder, "calls")
            before, in_all = server.ask(*bodies()["chat, image of 64 pixels"], 1).split()
            print(f"{folder}: {before} calls before the backend is asked, {in_all} in all")
            print(server.process.communicate()[1], file=sys.stderr)
        return
    servers = [Server(folder) for folder in options.folders]
    for name, (path, body) in bodies().items():
        times: tuple[list[float], list[float]] = ([], [])
        spent: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for server, taken, of_cores in zip(servers, times, spent, strict=True):
                one, cores = json.loads(server.ask(path, body, options.requests // ROUNDS))
                taken += one
                of_cores.append(cores)
        told = []
        for both in (times, spent):
            before, now = map(statistics.median, both)
            told.append(f"{before:8.0f} {now:8.0f} us  {now / before:.3f}")
        print(f"{name:28}", "   of the cores".join(told), flush=True)
    for server in servers:
        server.process.communicate()


if __name__ == "__main__":
    main()
