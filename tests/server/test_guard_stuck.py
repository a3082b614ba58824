"""Clients that take their time: they lose their connection, and nobody else notices."""

import asyncio
import json
import selectors
import socket
import threading
from contextlib import closing

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from guarded import PATIENCE, Wire, running

from galago.server.guard.connection import HEAD_LIMIT, Timeouts

STUCK = 200
QUICK = Timeouts(head=1.0, body=1.0, rate=1e6, stall=1.0)
PATIENT = Timeouts(head=PATIENCE, body=PATIENCE, stall=PATIENCE)
HEAD = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"


@pytest.fixture
def app():
    app = FastAPI()
    app.state.ended, app.state.given_up = 0, threading.Event()

    @app.post("/echo")
    async def echo(http: Request) -> int:
        try:
            return len(await http.body())
        finally:
            app.state.ended += 1

    @app.post("/refused", status_code=403)
    async def refused() -> str:
        return "no"

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def parts():
            try:
                while True:
                    await asyncio.sleep(0)
                    yield b"x" * 65536
            finally:
                app.state.given_up.set()

        return StreamingResponse(parts())

    return app


BEGINNINGS = {
    "says nothing": (b"", b""),
    "trickles a head": (b"GET /echo HTTP/1.1\r\nX: ", b"x"),
    "leaves a head half done": (b"GET /echo HTTP/1.1\r\nHost: localhost\r\n", b""),
    "trickles a body": (HEAD + b"x", b"x"),
    "leaves a body half done": (HEAD + b"half", b""),
    "trickles chunks": (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "trickles a body that was refused": (HEAD.replace(b"echo", b"refused"), b"x"),
    "trickles its second head": (b"GET /none HTTP/1.1\r\nHost: a\r\n\r\nGET /none HTTP/1.1\r\nX: ", b"x"),
}


@pytest.mark.parametrize("begun, more", BEGINNINGS.values(), ids=BEGINNINGS)
def test_stuck_connections_stop_nobody(app, begun, more):
    with running(app, PATIENT) as address:
        stuck = [Wire(address) for _ in range(STUCK)]
        for wire in stuck:
            wire.send(begun)
        for _ in range(3):  # each on a connection of its own
            assert httpx.post(f"http://127.0.0.1:{address[1]}/echo", content=b"x" * 500).json() == 500
        for wire in stuck:
            wire.close()


@pytest.mark.parametrize("begun, more", BEGINNINGS.values(), ids=BEGINNINGS)
def test_each_stuck_connection_is_closed(app, begun, more):
    with running(app, QUICK) as address:
        stuck = [Wire(address) for _ in range(STUCK)]
        for wire in stuck:
            wire.send(begun)
        told = trickled([wire.socket for wire in stuck], more)
        assert httpx.post(f"http://127.0.0.1:{address[1]}/echo", content=b"x" * 500).json() == 500
        for wire in stuck:
            wire.close()
    assert len(told) == STUCK
    if begun and b"refused" not in begun and b"none" not in begun:
        assert all(reply.startswith(b"HTTP/1.1 408 ") for reply in told)
        error = json.loads(told[0].partition(b"\r\n\r\n")[2])["error"]
        assert error["code"] == "request_timeout"
    if b"/echo" in begun and b"POST" in begun:
        assert app.state.ended == STUCK + 1  # nothing waits for them any more


def trickled(sockets: list[socket.socket], more: bytes) -> list[bytes]:
    """What each got until it was closed, while it went on sending a little at a time."""
    got = dict.fromkeys(sockets, b"")
    ended = []
    with selectors.DefaultSelector() as waiting:
        for one in sockets:
            waiting.register(one, selectors.EVENT_READ)
        for _ in range(PATIENCE * 20):
            for key, _ in waiting.select(0.05):
                try:
                    data = key.fileobj.recv(65536)
                except ConnectionResetError:
                    data = b""
                got[key.fileobj] += data
                if not data:
                    waiting.unregister(key.fileobj)
                    ended.append(got[key.fileobj])
            if not waiting.get_map():
                break
            for key in list(waiting.get_map().values()) if more else ():
                try:
                    key.fileobj.send(more)
                except OSError:
                    continue
    return ended


def test_a_slow_client_that_keeps_its_rate_is_served(app):
    with running(app, Timeouts(head=1.0, body=0.5, rate=1000.0)) as address, closing(Wire(address)) as wire:
        wire.send(HEAD.replace(b"1000", b"20000"))
        clock = selectors.DefaultSelector()
        clock.register(wire.socket, selectors.EVENT_READ)
        for _ in range(20):  # a second in all, of the twenty that so much may take
            assert not clock.select(0.05)
            wire.send(b"x" * 1000)
        assert wire.reply()[0] == 200
        # And the connection serves again.
        wire.send(HEAD + b"x" * 1000)
        assert wire.reply()[2] == b"1000"


def test_a_reply_that_nobody_reads_is_given_up(app):
    with running(app, QUICK) as address, closing(Wire(address)) as wire:
        wire.send(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert app.state.given_up.wait(PATIENCE)


def test_headers_have_a_bound(app):
    with running(app, PATIENT) as address:
        with closing(Wire(address)) as wire:
            # Not all at once: what has come in one piece is parsed whether it is large or not.
            wire.send(b"GET / HTTP/1.1\r\nX: ")
            got = trickled([wire.socket], b"x" * 4096)
        assert got[0].startswith(b"HTTP/1.1 431 ")
        assert str(HEAD_LIMIT).encode() in got[0]
        with closing(Wire(address)) as wire:
            wire.send(b"nonsense\r\n\r\n")
            status, _, body = wire.reply()
        assert status == 400 and json.loads(body)["error"]["message"]
        large = {"X": "x" * (HEAD_LIMIT // 2)}
        assert httpx.post(f"http://127.0.0.1:{address[1]}/echo", content=b"x", headers=large).json() == 1
