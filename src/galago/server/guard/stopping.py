"""Stopping in time, and without cutting off what can finish until then."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, cast

import anyio
import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from galago.errors import EngineClosed
from galago.server.errors import Reply
from galago.server.guard.connection import HEAD_LIMIT, Connection, Times
from galago.server.guard.crowd import Crowd
from galago.system.signals import STOPPING, at_once, exit_code

log = logging.getLogger(__name__)

GRACE = 8.0
CONNECTIONS = 512
LAST_WORDS = 2.0
"""Seconds at the end of a stop in which what was cut off is told so, and models and connections are closed."""


class Underway:
    """The requests under way, and whether the server takes more of them."""

    def __init__(self) -> None:
        self.stopping = False
        self._requests: set[anyio.CancelScope] = set()
        self._none = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self) -> anyio.CancelScope:
        """What cancels a request that begins here."""
        request = anyio.CancelScope()
        self._requests.add(request)
        self._none.clear()
        return request

    def leave(self, request: anyio.CancelScope) -> None:
        self._requests.discard(request)
        if not self._requests:
            self._none.set()

    async def wait(self, seconds: float) -> None:
        """Until all are over, but no longer than this."""
        if self._requests:
            with anyio.move_on_after(seconds):
                await self._none.wait()

    def cancel(self) -> None:
        for request in self._requests:
            request.cancel()


def with_underway(app: ASGIApp, underway: Underway, reply: Reply) -> ASGIApp:
    """The app, which refuses requests while it is stopping, and tells those that are cancelled why.

    `/health` is always answered, and does not count.
    """

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == "/health":
            await app(scope, receive, send)
            return
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if underway.stopping:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        if underway.stopping:
            await reply(scope["path"], EngineClosed("the server is shutting down"))(scope, receive, noting)
            return
        request = underway.enter()
        try:
            with request:
                await app(scope, receive, noting)
            if request.cancelled_caught and not started:
                told = EngineClosed("the server was shut down before the request was done")
                await reply(scope["path"], told)(scope, receive, noting)
        finally:
            underway.leave(request)

    return counted


class Server(uvicorn.Server):
    """Serves an app. After SIGTERM, SIGINT or SIGHUP it takes nothing new, lets what it has accepted go on until
    LAST_WORDS before the end, ends the rest with an error, and closes the app.

    The end is `grace` seconds after the signal (LAST_WORDS at the least), whatever clients, models and threads do
    then: what is left is cut off with the process. A second signal ends the process at once.

    There may be `connections` at one time, kept ones that are idle included; further ones are closed with a 503.
    `ready` is called when requests are answered. `ended_by` is the signal that ended it, `served` whether it had come
    to serve by then, which whoever runs it sets.
    """

    def __init__(
        self,
        app: ASGIApp,
        underway: Underway,
        *,
        grace: float = GRACE,
        connections: int = CONNECTIONS,
        times: Times | None = None,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, partial(Connection, times=times or Times(), crowd=Crowd(connections))),
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                h11_max_incomplete_event_size=HEAD_LIMIT,
            )
        )
        self.underway, self.ready = underway, ready
        self.ended_by: int | None = None
        self.served = False
        self._seconds = max(grace, LAST_WORDS)
        self._end: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Under nohup a terminal that is closed ends nothing.
        wanted = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, self.handle_exit) for number in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        at_once()  # which does not wait for this thread
        self.ended_by, self.should_exit = sig, True
        self._end = time.monotonic() + self._seconds
        out_of_time = threading.Timer(self._seconds, self._cut_off)
        out_of_time.daemon = True
        out_of_time.start()

    @property
    def code(self) -> int:
        """The exit code of a process that a signal ended so: 0, unless it was Ctrl-C or came before it served."""
        assert self.ended_by is not None
        return 0 if self.served and self.ended_by != signal.SIGINT else exit_code(self.ended_by)

    def _cut_off(self) -> None:
        log.warning("something did not end within the time of a stop (%g s) and was cut off", self._seconds)
        os._exit(self.code)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.underway.stopping = True
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        end = self._end or time.monotonic() + self._seconds

        def left(before_end: float) -> float:
            """Seconds until so many before the end."""
            return max(0.0, end - before_end - time.monotonic())

        accepted = len(self.underway)
        log.info("stopping: %d requests under way have %.0f s", accepted, left(LAST_WORDS))
        await self.underway.wait(left(LAST_WORDS))
        cut = len(self.underway)
        # The app closes its models, and what runs on them ends with an error in its client's own form.
        with anyio.move_on_after(left(0.6 * LAST_WORDS)):
            await self.lifespan.shutdown()
        if cut:
            await self.underway.wait(min(LAST_WORDS / 4, left(0.5 * LAST_WORDS)))
            self.underway.cancel()
            await self.underway.wait(left(0.4 * LAST_WORDS))
        for connection in list(self.server_state.connections):
            cast(Connection, connection).end()
        # What is written may not be sent yet.
        with anyio.move_on_after(left(0.2 * LAST_WORDS)):
            while self.server_state.connections:
                await asyncio.sleep(0.01)
        for connection in list(self.server_state.connections):
            cast(Connection, connection).abort()
        log.info("stopped: %d requests finished, %d cancelled", accepted - cut, cut)
        if self.ended_by is not None and self.server_state.tasks:
            self._cut_off()  # the loop's own end would wait for them
