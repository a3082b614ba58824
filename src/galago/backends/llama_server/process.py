"""A llama-server that is kept running: started on a loopback port, watched, started anew when it dies, stopped."""

import contextlib
import http.client
import json
import logging
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from galago.backends.llama_server.binary import ending
from galago.errors import CheckpointError, EngineFailed, GalagoError

log = logging.getLogger(__name__)
HOST = "127.0.0.1"
POLL_S, ANSWER_S = 0.02, 5.0
"""Seconds between two looks at whether it is ready, and for which one of them waits."""
STOP_S = 5.0
"""Seconds in which it ends when it is asked to."""
DEATH_S = 1.0
"""Seconds between the end of a connection and that of its process, at the most."""
PORT_TRIES = 5
"""Another program may take a port between our looking for a free one and its use."""
MOST_DEATHS = 5
"""Deaths without an answer between them after which it is not started again."""
PORT_TAKEN = re.compile(r"couldn't bind|address already in use", re.I)
PREFIX = re.compile(r"^(?:[\d.]+ )?([IWED]) +")
"""How it begins a line of its log: the time and the level."""
LEVELS = {"E": logging.ERROR, "W": logging.WARNING}
BOUND_TO_US = """import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])"""
"""Has Linux kill this process when the thread that started it ends, however that comes, and becomes the program."""


class Server:
    """One llama-server with one model. A thread starts it and waits for its end: Linux ties its life to that thread."""

    def __init__(self, name: str, binary: Path, arguments: Sequence[str], environment: dict[str, str]) -> None:
        """`environment` is set unless a person's own variables say otherwise."""
        self.key = secrets.token_urlsafe(24)
        self.port = 0
        self.is_ready = False
        self.on_change: Callable[[], None] = lambda: None
        """called when it is ready, and when it has died"""
        self.on_failure: Callable[[GalagoError], None] = lambda error: None
        """called when it is given up"""
        self._name, self._command = name, [str(binary), *arguments]
        mine = {name: value for name, value in os.environ.items() if not name.startswith("GALAGO_")}
        self._environment = environment | mine | {"LLAMA_API_KEY": self.key}
        self._lock = threading.Lock()
        self._closed = False
        self._deaths = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: deque[str] = deque(maxlen=200)
        self._errors: list[str] = []
        self._failure: GalagoError | None = None
        self._settled = threading.Event()
        self._thread = threading.Thread(target=self._keep_running, name="galago-llama-server", daemon=True)

    def start(self) -> None:
        """Start it and wait until its model is loaded, which may take as long as it takes. Raises CheckpointError."""
        self._thread.start()
        try:
            while not self._settled.wait(0.1):  # an interrupt of this thread comes between two waits
                pass
            if self._failure:
                raise self._failure
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it, and wait for that."""
        self._closed = True
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
        self._thread.join(STOP_S)
        if self._thread.is_alive() and self._process is not None:
            self._process.kill()
        self._thread.join()

    def note_loss(self) -> None:
        """A connection to it broke: if it has died, say so now, lest the next request goes to nobody."""
        process = self._process
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process is not None:
                process.wait(DEATH_S)
                with self._lock:
                    self.is_ready = self.is_ready and self._process is not process

    def note_answer(self) -> None:
        """It works: forget its deaths."""
        self._deaths = 0

    def get(self, path: str) -> Any:
        """What it answers to a GET, as JSON. Raises OSError or ValueError."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_S)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.key}"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise OSError(f"{path} answered {response.status}")
            return json.loads(body)

    def _keep_running(self) -> None:
        taken = 0
        while not self._closed:
            self.port = free_port()
            self._lines.clear()
            self._errors.clear()
            try:
                process = self._process = self._launch()
            except OSError as error:
                return self._give_up(f"cannot be run: {error.strerror or error}")
            if self._closed:
                process.kill()
            reader = threading.Thread(target=self._read_log, args=(process,), name="galago-llama-log", daemon=True)
            reader.start()
            was_ready = self._wait_until_ready(process)
            if was_ready:
                with self._lock:
                    self.is_ready = process.poll() is None
                self._settled.set()
                self.on_change()
            code = process.wait()
            reader.join()
            self.is_ready = False
            if self._closed:
                return None
            if not was_ready:
                if any(map(PORT_TAKEN.search, self._lines)) and taken < PORT_TRIES:
                    taken += 1
                    continue
                return self._give_up(f"did not start, it {ending(code)}: {self._why()}")
            self._deaths += 1
            taken = 0
            if self._deaths >= MOST_DEATHS:
                return self._give_up(f"{ending(code)}, {self._deaths} times without an answer: {self._why()}")
            log.warning("%s: llama-server %s, and is started anew", self._name, ending(code))
            self.on_change()
        return None

    def _launch(self) -> "subprocess.Popen[bytes]":
        command = [*self._command, "--host", HOST, "--port", str(self.port)]
        if sys.platform == "linux" and sys.executable:
            command = [sys.executable, "-I", "-S", "-c", BOUND_TO_US, str(os.getpid()), *command]
        log.debug("%s: %s", self._name, " ".join(command[-len(self._command) - 4 :]))
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,  # Ctrl-C in a terminal is for us: what runs is finished first
        )

    def _wait_until_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        """Whether it came to answer: it says 503 while it loads its model."""
        while not self._closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
                return False
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                self.get("/health")
                self.get("/props")  # asks for the key, which a stranger on this port does not have
                return process.poll() is None
        return False

    def _read_log(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for raw in lines:
                line = raw.decode("utf-8", "replace").rstrip()
                found = PREFIX.match(line)
                text = line[found.end() :] if found else line
                if text:
                    self._lines.append(text)
                    if found and found[1] == "E":
                        self._errors.append(text)
                    level = LEVELS.get(found[1], logging.DEBUG) if found and self.is_ready else logging.DEBUG
                    log.log(level, "%s: llama-server: %s", self._name, text)

    def _why(self) -> str:
        """The line of its log that tells most of why it ended: the first error, or else the last line."""
        return [*self._errors[:1], *reversed(self._lines), "it said nothing"][0]

    def _give_up(self, why: str) -> None:
        kind = EngineFailed if self._settled.is_set() else CheckpointError
        self._failure = kind(f"{self._name}: llama-server {why}")
        self._settled.set()
        self.on_failure(self._failure)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port: int = free.getsockname()[1]
        return port
