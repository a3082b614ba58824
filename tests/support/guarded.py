"""The server as `galago serve` runs it: in a thread of the test, or as a process that takes signals."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny_moondream as tiny
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import hosting

from galago.server.guard.connection import Timeouts
from galago.server.guard.stopping import InFlight, Server

HERE = Path(__file__).parent
# Modules of the tests that a process runs are beside this one.
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE)]))}
PATIENCE = 60
"""Seconds after which a test gives up."""


@contextmanager
def running(app: FastAPI, timeouts: Timeouts, **options: Any) -> Iterator[tuple[str, int]]:
    """The address of a server with these limits on time."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    server = Server(app, InFlight(), timeouts=timeouts, **options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[:2]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[TestClient]:
    """A client, without sockets, of an app that serves this checkpoint with these settings."""
    app = hosting(tiny.open_model(folder), **settings)
    with TestClient(app, base_url="http://localhost") as client:
        app.state.startup.result()
        yield client


def endless(folder: Path) -> Path:
    """A checkpoint that writes on for many seconds."""
    return tiny.write(folder, members=tiny.config(max_context=100_000))


class Process:
    """`galago serve` with its log; `module` is what runs it."""

    def __init__(self, *args: str | Path, module: tuple[str, ...] = ("galago.cli.app",)) -> None:
        command = [sys.executable, "-m", *module, "serve", *map(str, args), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        self.said: list[str] = []
        line = self.until("listening on")
        self.url = line[line.index("http://") :].split()[0].rstrip('"')
        self.port = int(self.url.rpartition(":")[2])

    def until(self, text: str) -> str:
        """The next line of its log that holds this."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if text in line:
                return line
        raise AssertionError(f"it ended without {text!r}: {''.join(self.said)}")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """The exit code, when it is over."""
        assert self.process.stderr is not None
        self.said += self.process.stderr.readlines()
        return self.process.wait(PATIENCE)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


class Wire:
    """A connection by hand."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=PATIENCE)
        self._read = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of one reply that has a length."""
        status = int(self._read.readline().split()[1])
        headers = {}
        while line := self._read.readline().strip().decode():
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        return status, headers, self._read.read(int(headers.get("content-length", 0)))

    def line(self) -> bytes:
        return self._read.readline()

    def rest(self) -> bytes:
        """All until the server closes."""
        try:
            return self._read.read()
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self._read.close()
        self.socket.close()
