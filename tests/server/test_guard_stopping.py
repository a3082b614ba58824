"""Stopping: what was accepted gets its answer, or an error that can be read."""

import json
import signal
import socket
from contextlib import closing

import httpx
import pytest
from guarded import PATIENCE, Process, Wire, endless

LONG = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 90_000}
SHORT = {**LONG, "max_tokens": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return endless(tmp_path_factory.mktemp("stopping") / "tiny")


def post(path, body, sent=None):
    """A request as bytes, or its beginning."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    return head + content[:sent]


GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def test_what_was_accepted_is_finished_and_nothing_more_is_taken(folder):
    with Process("--model", folder, "--grace-s", PATIENCE) as server:
        address = ("127.0.0.1", server.port)
        with closing(Wire(address)) as half, closing(Wire(address)) as other:
            other.send(GET_HEALTH)
            assert json.loads(other.reply()[2])["status"] == "healthy"
            content = json.dumps(SHORT).encode()
            half.send(post("/v1/chat/completions", SHORT, 10))
            other.send(GET_HEALTH)  # the server has read the half by the time that it answers this
            other.reply()
            server.stop()
            server.until("stopping: 1 requests under way")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            for request in (GET_HEALTH, GET_HEALTH.replace(b"/health", b"/readyz")):
                other.send(request)
                status, headers, body = other.reply()
                assert (status, json.loads(body)["status"]) == (503, "stopping")
            other.send(post("/v1/query", {"question": "hi"}))
            status, headers, body = other.reply()
            assert (status, json.loads(body)["code"], headers["connection"]) == (503, "shutting_down", "close")
            assert int(headers["retry-after"]) > 0
            assert other.rest() == b""
            half.send(content[10:])
            status, headers, body = half.reply()
            assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 2
            assert half.rest() == b""
        assert server.ended() == 0
        assert "stopped: 1 requests finished, 0 cancelled" in server.said[-1]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/query"])
def test_what_does_not_finish_is_told_so(folder, path):
    long = LONG if "chat" in path else {"question": "hello", "settings": {"max_tokens": 90_000}}
    with Process("--model", folder, "--grace-s", 0) as server:
        address = ("127.0.0.1", server.port)
        with closing(Wire(address)) as streamed, closing(Wire(address)) as whole, closing(Wire(address)) as half:
            whole.send(post(path, long))
            half.send(post(path, long, 10))
            streamed.send(post(path, {**long, "stream": True}))
            while not streamed.line().startswith(b"data:"):
                pass
            server.stop()
            lines = [line for line in streamed.rest().split(b"\r\n") if line.startswith(b"data: ")]
            for wire in (whole, half):
                status, headers, body = wire.reply()
                assert status == 503 and b"shutting_down" in body and "x-request-id" in headers
        if "chat" in path:
            assert json.loads(lines[-1].removeprefix(b"data: "))["error"]["code"] == "shutting_down"
        else:
            assert json.loads(lines[-2].removeprefix(b"data: "))["code"] == "shutting_down"
        assert server.ended() == 0
        assert "stopped: 0 requests finished, 3 cancelled" in server.said[-1]
        assert "Traceback" not in "".join(server.said)


def test_a_second_signal_ends_it_at_once(folder):
    with (
        Process("--model", folder, "--grace-s", 10 * PATIENCE) as server,
        closing(Wire(("127.0.0.1", server.port))) as wire,
    ):
        wire.send(post("/v1/chat/completions", {**LONG, "stream": True}))
        while not wire.line().startswith(b"data:"):
            pass
        server.stop()
        server.until("stopping: 1 requests under way")
        server.stop()
        assert server.ended() == -signal.SIGTERM


@pytest.mark.slow
def test_an_open_server_without_a_key_is_warned_about_and_a_key_is_heeded(folder):
    with Process("--model", folder, "--host", "0.0.0.0", "--log-format", "json") as server:
        warning, listening = map(json.loads, server.said)
        assert warning["level"] == "WARNING" and "--api-key" in warning["message"]
        assert listening["message"].startswith("listening on http://0.0.0.0:")
        # Whoever listens for others is called by their names.
        url = f"http://127.0.0.1:{server.port}/v1/models"
        assert httpx.get(url, headers={"Host": "box.lan"}).status_code == 200
        server.stop()
        assert server.ended() == 0
    with Process("--model", folder, "--host", "0.0.0.0", "--api-key", "one", "--api-key", "two") as server:
        assert len(server.said) == 1
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer two"}).status_code == 200
    with Process("--model", folder) as server:
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example"}).status_code == 421
