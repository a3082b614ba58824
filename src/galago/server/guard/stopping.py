"""Stopping without cutting off what was accepted."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
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

log = logging.getLogger(__name__)

GRACE = 10.0
CONNECTIONS = 512
# For the errors of what was cut off to reach those who read them.
_LAST_WORDS = 2.0


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
    """Serves an app. After SIGTERM or SIGINT it takes nothing new, gives what it has accepted `grace` seconds, ends
    the rest with an error, and closes the app; a second signal ends the process at once.

    There may be `connections` at one time, kept ones that are idle included; further ones are closed with a 503.
    `ready` is called when requests are answered; `ended_by` is the signal that ended it.
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
        self.underway, self.grace, self.ready = underway, grace, ready
        self.ended_by: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.ended_by, self.should_exit = sig, True
        # The system's own way, which does not wait for this thread.
        for handled in (signal.SIGINT, signal.SIGTERM):
            signal.signal(handled, signal.SIG_DFL)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.underway.stopping = True
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        accepted = len(self.underway)
        log.info("stopping: %d requests under way have %g s", accepted, self.grace)
        await self.underway.wait(self.grace)
        cut = len(self.underway)
        # The app closes its models, and what runs on them ends with an error in its client's own form.
        await self.lifespan.shutdown()
        if cut:
            await self.underway.wait(_LAST_WORDS)
            self.underway.cancel()
            await self.underway.wait(_LAST_WORDS)
        for connection in list(self.server_state.connections):
            cast(Connection, connection).end()
        # What is written may not be sent yet.
        with anyio.move_on_after(_LAST_WORDS):
            while self.server_state.connections:
                await asyncio.sleep(0.01)
        log.info("stopped: %d requests finished, %d cancelled", accepted - cut, cut)
