"""Graceful shutdown with a deadline: requests in flight finish if they can, and get an error if they cannot."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any, cast

import anyio
import uvicorn
from starlette.types import ASGIApp

from galago.server.guard.connection import HEAD_LIMIT, Connection, Timeouts
from galago.server.guard.connection_limit import ConnectionLimit
from galago.system.signals import exit_code, handle_stop_signals

log = logging.getLogger(__name__)

GRACE_S = 8.0
MAX_CONNECTIONS = 512
CLOSING_S = 2.0
"""Seconds at the end of a stop in which unfinished requests get their error, and models and connections are closed"""


class InFlight:
    """The requests being served, and whether the server takes more of them."""

    def __init__(self) -> None:
        self.stopping = False
        self.on_stop: list[Callable[[], None]] = []
        """Called when a stop begins, to end what never ends by itself"""
        self._requests: set[anyio.CancelScope] = set()
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._requests)

    def enter(self) -> anyio.CancelScope:
        """Register a request; the scope that is returned cancels it."""
        request = anyio.CancelScope()
        self._requests.add(request)
        self._empty.clear()
        return request

    def leave(self, request: anyio.CancelScope) -> None:
        self._requests.discard(request)
        if not self._requests:
            self._empty.set()

    def begin_stop(self) -> None:
        """Take no more requests."""
        self.stopping = True
        for call in self.on_stop:
            call()

    async def wait(self, seconds: float) -> None:
        """Wait until no request is left, for `seconds` at the most."""
        if self._requests:
            with anyio.move_on_after(seconds):
                await self._empty.wait()

    def cancel(self) -> None:
        for request in self._requests:
            request.cancel()


@dataclass
class GracefulStop:
    """A stop that a signal begins, and its deadline `grace` seconds later, at which the process is cut off.

    `has_served` is set when the models are loaded, which decides the exit code.
    """

    grace: float
    ended_by: int | None = None
    has_served: bool = False
    deadline: float | None = None
    """of time.monotonic"""

    def begin(self, number: int) -> None:
        self.ended_by, self.deadline = number, time.monotonic() + self.grace
        cutoff_timer = threading.Timer(self.grace, self.cut_off)
        cutoff_timer.daemon = True
        cutoff_timer.start()

    @property
    def code(self) -> int:
        """The exit code after a signal: 0, unless it was Ctrl-C or came before the models were loaded."""
        assert self.ended_by is not None
        return 0 if self.has_served and self.ended_by != signal.SIGINT else exit_code(self.ended_by)

    def cut_off(self) -> None:
        log.warning("something did not end within the time of a stop (%g s) and was cut off", self.grace)
        os._exit(self.code)


class Server(uvicorn.Server):
    """A uvicorn server that stops within a bound. After SIGTERM, SIGINT or SIGHUP it accepts nothing new, lets requests
    in flight go on until CLOSING_S before the deadline, ends the rest with an error, and closes the app.

    The deadline is `grace` seconds after the signal (CLOSING_S at the least); what clients, models and threads have
    not ended by then is cut off with the process. A second signal ends the process at once.

    More than `connections` open ones, idle ones included, are closed with a 503. `on_ready` is called when requests
    are answered. `stop` says which signal ended the server; whoever runs it sets `stop.has_served`.
    """

    def __init__(
        self,
        app: ASGIApp,
        in_flight: InFlight,
        *,
        grace: float = GRACE_S,
        connections: int = MAX_CONNECTIONS,
        timeouts: Timeouts | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        protocol = partial(Connection, timeouts=timeouts or Timeouts(), limit=ConnectionLimit(connections))
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, protocol),
                ws="none",
                log_config=None,
                log_level="warning",
                access_log=False,
                h11_max_incomplete_event_size=HEAD_LIMIT,
            )
        )
        self.in_flight, self.on_ready = in_flight, on_ready
        self.stop = GracefulStop(max(grace, CLOSING_S))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        with handle_stop_signals(lambda number: self.handle_exit(number, None)):
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True
        self.stop.begin(sig)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.in_flight.begin_stop()
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        end = self.stop.deadline or time.monotonic() + self.stop.grace

        def seconds_until(before_end: float) -> float:
            """Seconds that are left until `before_end` seconds before the deadline."""
            return max(0.0, end - before_end - time.monotonic())

        accepted = len(self.in_flight)
        log.info("stopping: %d requests under way have %.0f s", accepted, seconds_until(CLOSING_S))
        await self.in_flight.wait(seconds_until(CLOSING_S))
        cut = len(self.in_flight)
        # The app closes its models, and what runs on them ends with an error in its client's own form.
        with anyio.move_on_after(seconds_until(0.6 * CLOSING_S)):
            await self.lifespan.shutdown()
        if cut:
            await self.in_flight.wait(min(CLOSING_S / 4, seconds_until(0.5 * CLOSING_S)))
            self.in_flight.cancel()
            await self.in_flight.wait(seconds_until(0.4 * CLOSING_S))
        for connection in list(self.server_state.connections):
            cast(Connection, connection).close()
        # What is written may not be sent yet.
        with anyio.move_on_after(seconds_until(0.2 * CLOSING_S)):
            while self.server_state.connections:
                await asyncio.sleep(0.01)
        for connection in list(self.server_state.connections):
            cast(Connection, connection).abort()
        log.info("stopped: %d requests finished, %d cancelled", accepted - cut, cut)
        if self.stop.ended_by is not None and self.server_state.tasks:
            self.stop.cut_off()  # the loop's own end would wait for them
