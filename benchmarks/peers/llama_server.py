"""One caption through llama.cpp's `llama-server`.

    python benchmarks/peers/llama_server.py --checkpoint runs/moondream2-random --server build/bin/llama-server
    python benchmarks/peers/llama_server.py --checkpoint runs/moondream2-random --precision q8_0 --image 1024x768
    python benchmarks/peers/llama_server.py --checkpoint runs/moondream2-random --at-once 4

Wants the GGUF pair of `gguf_checkpoint.py` in the checkpoint's folder `gguf`. llama.cpp has no crops: it sees an
image of any size as one view of 378x378. The encoding time is what lies between two lines of the server's log.

With `--at-once` it is so many questions about one image instead, each in a slot of its own: `requests_per_minute`, and
`total_s` from the first question to the last answer's end. Every run has another image.
"""

import argparse
import base64
import io
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from common import PROMPT_AFTER, PROMPT_BEFORE, missing, noise_image, parser, peak_rss, report

LOAD_LIMIT_S = 300
CONTEXT = 2048
# A log line begins with its time: minutes, seconds, milliseconds, microseconds.
STAMP = r"^(\d+)\.(\d+)\.(\d+)\.(\d+) "
ENCODING, ENCODED = "encoding mtmd batch", "decoding image batch"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def wait_until_loaded(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LOAD_LIMIT_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit(f"llama-server ended with code {server.returncode}: {last_line(log)}")
        try:
            get(f"{url}/health")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise SystemExit(f"llama-server did not load within {LOAD_LIMIT_S} s")


def stamped(log: str, text: str) -> list[float]:
    """Seconds at which each line that contains `text` was written."""
    times = []
    for line in log.splitlines():
        found = re.match(STAMP, line)
        if found and text in line:
            minutes, seconds, milli, micro = (int(part) for part in found.groups())
            times.append(minutes * 60 + seconds + milli / 1e3 + micro / 1e6)
    return times


def request(url: str, body: bytes) -> dict[str, float]:
    """Stream one answer; times are the client's, except those the last event carries."""
    begin = time.perf_counter()
    first, last = None, {}
    post = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(post) as reply:
        for line in reply:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - begin
                last = json.loads(line.removeprefix(b"data: "))
    total = time.perf_counter() - begin
    timings = last["timings"]
    return {
        "prompt_s": timings["prompt_ms"] / 1e3,
        "ttft_s": first or total,
        "decode_tokens_per_s": (timings["predicted_n"] - 1) / timings["predicted_ms"] * 1e3,
        "total_s": total,
    }


def measure(args: argparse.Namespace, url: str, log: TextIO) -> list[dict[str, float]]:
    png = io.BytesIO()
    noise_image(args.image).save(png, "PNG")
    body = {
        "prompt": {
            "prompt_string": "a" * PROMPT_BEFORE + get(f"{url}/props")["media_marker"] + "a" * PROMPT_AFTER,
            "multimodal_data": [base64.b64encode(png.getvalue()).decode()],
        },
        "n_predict": args.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,  # so that each run encodes the image anew
        "stream": True,
    }
    runs = []
    for _ in range(args.runs):
        log.seek(0, io.SEEK_END)
        run = request(url, json.dumps(body).encode())
        said = log.read()
        begun, ended = stamped(said, ENCODING), stamped(said, ENCODED)
        prompt = run.pop("prompt_s")
        if len(begun) == len(ended) == 1:
            run = {"encode_s": ended[0] - begun[0], "prefill_s": prompt - (ended[0] - begun[0]), **run}
        runs.append(run)
    return runs


def questions_at_once(args: argparse.Namespace, url: str) -> list[dict[str, float]]:
    marker = get(f"{url}/props")["media_marker"]
    runs = []
    for number in range(args.runs):
        png = io.BytesIO()
        noise_image(args.image, number).save(png, "PNG")
        data = base64.b64encode(png.getvalue()).decode()
        bodies = [
            {
                "prompt": {
                    "prompt_string": "a" * PROMPT_BEFORE + marker + chr(ord("b") + i) * PROMPT_AFTER,
                    "multimodal_data": [data],
                },
                "n_predict": args.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
            }
            for i in range(args.at_once)
        ]
        begin = time.perf_counter()
        with ThreadPoolExecutor(args.at_once) as clients:
            list(clients.map(lambda body: request(url, json.dumps(body).encode()), bodies))
        total = time.perf_counter() - begin
        runs.append({"requests_per_minute": 60 * args.at_once / total, "total_s": total})
    return runs


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--precision", default="q4_0", help="of the text model: text-PRECISION.gguf")
    made.add_argument("--projector", default="f16", help="of the vision part: mmproj-PROJECTOR.gguf")
    made.add_argument("--server", default="llama-server", help="the binary")
    made.add_argument("--at-once", type=int, metavar="N", help="ask N questions about one image at once instead")
    args = made.parse_args()

    binary = shutil.which(args.server)
    if binary is None:
        missing(f"no llama-server at {args.server}; give --server")
    folder = args.checkpoint / "gguf"
    text, projector = folder / f"text-{args.precision}.gguf", folder / f"mmproj-{args.projector}.gguf"
    for file in (text, projector):
        if not file.is_file():
            missing(f"no {file}; make it with benchmarks/peers/gguf_checkpoint.py")
    said = subprocess.run([binary, "--version"], capture_output=True, text=True)
    version = re.search(r"version: (.+)", said.stdout + said.stderr)

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [binary, "--model", text, "--mmproj", projector, "--host", "127.0.0.1", "--port", str(port)]
    slots = args.at_once or 1
    command += ["--threads", str(args.threads), "--parallel", str(slots), "--ctx-size", str(slots * CONTEXT)]
    command += ["--cache-ram", "0"]
    command += ["--verbosity", "4"]  # the lines about encoding
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as out:
            begin = time.perf_counter()
            server = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            wait_until_loaded(url, server, log)
            load_s = time.perf_counter() - begin
            with log.open(errors="replace") as reader:
                runs = questions_at_once(args, url) if args.at_once else measure(args, url, reader)
            peak = peak_rss(server.pid)
        finally:
            server.terminate()
            server.wait()
    report(
        args,
        engine="llama.cpp",
        version=version[1] if version else "unknown",
        precision=f"{args.precision} text, {args.projector} vision",
        load_s=load_s,
        runs=runs,
        peak=peak,
        note="one 378x378 view whatever the image's size",
    )


if __name__ == "__main__":
    main()
