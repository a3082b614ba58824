"""However clients, sites and loads behave, a server that is stopped is gone when its time is over."""

import json
import signal
import socket
import threading
from contextlib import ExitStack, closing
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from guarded import Process, Wire, endless
from websites import hosted

GRACE = 3
GUARD = 2 * GRACE
"""Seconds: it takes this long only where something is waited for beyond the grace."""
LONG = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 90_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless(tmp_path_factory.mktemp("in-time") / "tiny")


def post(path: str, body: object, sent: int | None = None, extra: str = "") -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{extra}Content-Length: {len(content)}\r\n\r\n".encode()
    return head + content[:sent]


def test_whatever_clients_do(folder: Path) -> None:
    asked, let_go = threading.Event(), threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            let_go.wait()

    with ExitStack() as stack:
        site = stack.enter_context(hosted(Silent))
        stack.callback(let_go.set)
        server = stack.enter_context(Process("--model", folder, "--grace-s", GRACE, "--allow-image-host", "127.0.0.1"))
        address = ("127.0.0.1", server.port)

        def wire(*sent: bytes) -> Wire:
            one = stack.enter_context(closing(Wire(address)))
            for data in sent:
                one.send(data)
            return one

        shown = [{"type": "image_url", "image_url": {"url": f"{site}/never.png"}}]
        chunked = b'POST /v1/query HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"q":\r\n'
        wire(post("/v1/chat/completions", {"messages": [{"role": "user", "content": shown}]}))  # waits for a site
        wire(post("/v1/chat/completions", LONG, 10))  # half an upload
        wire(chunked)
        wire(b"GET /health HTTP/1.1\r\nHost: loc")  # half a header
        wire()  # nothing at all
        long = wire(post("/v1/chat/completions", LONG))
        unread = stack.enter_context(closing(socket.socket()))
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        unread.connect(address)
        unread.sendall(post("/v1/chat/completions", {**LONG, "stream": True}))
        streamed = wire(post("/v1/chat/completions", {**LONG, "stream": True}))
        while not streamed.line().startswith(b"data:"):
            pass
        idle = wire(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.reply()[0] == 200
        assert asked.wait(GUARD * 10)
        server.stop()
        server.until("stopping: ")
        # Those who read are told, in time.
        status, _, body = long.reply()
        assert (status, json.loads(body)["error"]["code"]) == (503, "shutting_down")
        server.process.wait(GUARD)
        server.ended()
    assert "Traceback" not in "".join(server.said), "".join(server.said)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_each_signal_stops_it_alike(folder: Path, number: int, code: int) -> None:
    with Process("--model", folder, "--grace-s", 60) as server, closing(Wire(("127.0.0.1", server.port))) as wire:
        wire.send(post("/v1/chat/completions", {**LONG, "max_tokens": 400, "stream": True}))
        while not wire.line().startswith(b"data:"):
            pass
        server.process.send_signal(number)
        assert b"data: [DONE]" in wire.rest()
        assert server.ended() == code
    assert "stopped: 1 requests finished, 0 cancelled" in server.said[-1]


def test_a_terminal_that_is_closed_does_not_end_what_nohup_started(folder: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = Process("--model", folder)
    finally:
        signal.signal(signal.SIGHUP, before)
    with server:
        server.process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{server.url}/health").json()["status"] == "healthy"
        server.stop()
        assert server.ended() == 0
