#!/usr/bin/env python3
"""A stand-in for llama-server, as far as Galago asks it: its flags, log and HTTP API, with words drawn by the seed.

It is run as a program of its own.
"""

import argparse
import base64
import json
import os
import random
import re
import select
import socket
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VERSION = "0 (stand-in)"
CONTEXT = 2048
PACE = float(os.environ.get("LLAMA_STANDIN_PACE", 0))
"""Seconds for each token, for benchmarks."""
HELD = b"x" * int(os.environ.get("LLAMA_STANDIN_HELD", 0))
"""Memory that it takes, as a model would."""
ENOUGH = 64
"""Tokens of an answer; a longer one comes no further until its client leaves."""
WORDS = ("a", "small", "red", "square", "on", "white", "paper")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    args: argparse.Namespace

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.tell(200, {"status": "ok"})
        if not self.is_allowed():
            return self.tell(
                401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}
            )
        self.tell(200, {"modalities": {"vision": True}, "model_path": self.args.model, "n_ctx": CONTEXT})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.is_allowed():
            return self.tell(
                401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}
            )
        self.answer(asked)

    def answer(self, asked: dict[str, Any]) -> None:
        parts = [part for m in asked["messages"] for part in m["content"]]
        images = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        assert all(re.match("data:image/(bmp;base64,Qk|jpeg;base64,(/9|iVBO))", url) for url in images)
        if any(map(is_damaged, images)):
            told = {"code": 400, "type": "invalid_request_error", "message": "Failed to load image or audio file"}
            return self.tell(400, {"error": told})
        prompt = len(text.split()) + 10 * len(images)
        if prompt >= CONTEXT:
            told = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": prompt, "n_ctx": CONTEXT}
            return self.tell(400, {"error": {"message": "the request exceeds the available context size", **told}})
        assert asked["repeat_last_n"] >= 0  # as newer versions check
        if "break the cache" in text and asked["cache_prompt"]:
            told = {"code": 500, "type": "server_error", "message": "got exception: Chunk not found"}
            return self.tell(500, {"error": told})
        if "fall over" in text:
            os._exit(3)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self.stream(asked, prompt)
        except OSError:
            say("I", f"stop: cancel task, {threading.get_ident()}")

    def stream(self, asked: dict[str, Any], prompt: int) -> None:
        drawn = random.Random(0 if asked["temperature"] == 0 else asked["seed"])
        schema = asked.get("response_format", {}).get("json_schema", {}).get("schema")
        if schema:
            count = int(re.findall(r"\d+", schema["pattern"])[-1])
            pieces = ['"', *(drawn.choice("abcdefgh") for _ in range(count)), '"']
        else:
            pieces = [f"{drawn.choice(WORDS)} " for _ in range(asked["max_tokens"])]
        reason, made = "stop" if schema else "length", 0
        for piece in pieces:
            if made == asked["max_tokens"]:
                reason = "length"
                break
            select.select([], [], [], PACE)
            made += 1
            if made > ENOUGH:
                self.wait_for_client_to_leave()
            if any(stop in piece for stop in asked.get("stop", ())):
                reason = "stop"
                break
            delta: dict[str, Any] = {"delta": {"content": piece}, "index": 0, "finish_reason": None}
            if asked.get("logprobs"):
                top = [{"token": piece, "bytes": list(piece.encode()), "logprob": -0.5}] * asked["top_logprobs"]
                delta["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]} if top else None
            self.event({"choices": [delta], "timings": {"prompt_n": prompt, "cache_n": 0, "predicted_n": made}})
        self.event({"choices": [{"delta": {}, "index": 0, "finish_reason": reason}]})
        self.event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": made}})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def wait_for_client_to_leave(self) -> None:
        self.connection.recv(1)
        raise ConnectionError

    def event(self, told: dict[str, Any]) -> None:
        self.chunk(b"data: " + json.dumps(told).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {os.environ['LLAMA_API_KEY']}"

    def tell(self, status: int, told: dict[str, Any]) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def is_damaged(url: str) -> bool:
    """Whether it is a PNG of whose chunks one has another checksum."""
    data, at = base64.b64decode(url.partition(",")[2]), 8
    while data.startswith(b"\x89PNG") and at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return True
        at = end + 4
    return False


def say(level: str, text: str) -> None:
    print(f"0.00.001.000 {level} srv  {text}", file=sys.stderr, flush=True)


def main() -> None:
    if "--version" in sys.argv:
        print(f"version: {VERSION}", file=sys.stderr)
        return
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--model", "--mmproj", "--host"):
        parser.add_argument(name, required=True)
    for name in ("--port", "--parallel", "--ctx-size", "--threads"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--jinja", action="store_true")
    args = parser.parse_args()
    assert args.host == "127.0.0.1" and not any(re.search("key", word) for word in sys.argv[1:])
    say("I", f"load_model: loading model '{args.model}'")
    try:
        server = ThreadingHTTPServer((args.host, args.port), type("Bound", (Handler,), {"args": args}))
    except OSError:
        say("E", f"start: couldn't bind HTTP server socket, hostname: {args.host}, port: {args.port}")
        sys.exit(1)
    with open(args.model, "rb") as file:
        if b"unknown_architecture" in file.read(4096):
            say("E", "load_model: error loading model: unknown model architecture: 'unknown_architecture'")
            sys.exit(1)
    server.daemon_threads = True
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    say("I", f"listening on http://{args.host}:{args.port}")
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
