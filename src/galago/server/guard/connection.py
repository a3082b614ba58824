"""Limits on connections: how long they may take, which uvicorn bounds for idle ones alone, and how many there are.

A client that sends its request byte by byte, never reads its reply, or is no longer there would otherwise keep
its connection, and what is held for it, for as long as it likes.
"""

import asyncio
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from galago.server.guard.crowd import COUNTED, TOLD, Crowd
from galago.server.guard.lingering import Lingering
from galago.server.guard.logs import tell_refusal

log = logging.getLogger(__name__)

HEAD_LIMIT = 32 << 10
"""Bytes of a request's line and headers that may come before they are complete."""


@dataclass(frozen=True)
class Times:
    """How long a client may take: seconds, and bytes a second.

    `head` is for a request's line and headers, from the connection or from their first byte; `body` is for the
    body, with one more second for each `rate` bytes that came; `stall` is how long it may leave a reply unread;
    `linger` how long it may go on sending what nobody wants any more.
    """

    head: float = 10.0
    body: float = 20.0
    rate: float = 8192.0
    stall: float = 60.0
    linger: float = 5.0


class Connection(H11Protocol):
    """A connection that is closed when the client takes too long, if possible with a 408.

    One that is too many is closed with a 503.
    """

    def __init__(self, *args: Any, times: Times, crowd: Crowd, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._times, self._crowd = times, crowd
        self._leaving = False
        self._awaited: Literal["head", "body"] | None = None
        self._begun = 0.0
        self._received = 0
        self._late: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering = Lingering(transport, self._still_sending, self._times.linger)
        super().connection_made(self._lingering)
        COUNTED.open += 1
        if len(self.connections) - self._crowd.leaving > self._crowd.most:
            self._turn_away()
        else:
            self._await("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._await(None)
        self._lingering.closed()
        COUNTED.open -= 1
        self._crowd.leaving -= self._leaving
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self._times.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        # Called while h11's error is handled, which knows the status.
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            self._refuse(431, "head_too_large", f"the request's headers are larger than {HEAD_LIMIT} bytes")
        else:
            self._refuse(400, "invalid_value", msg)

    def end(self) -> None:
        """Close, whatever is under way."""
        if not self.transport.is_closing():
            self.shutdown()
            self.transport.close()

    def abort(self) -> None:
        """Close without waiting for what is not sent yet, or for a client that still sends."""
        self.transport.abort()

    def _turn_away(self) -> None:
        COUNTED.refused += 1
        self._crowd.leaving += 1
        self._leaving = True
        if self._crowd.leaving > TOLD:
            self.transport.abort()
        else:
            self._refuse(503, "too_many_connections", f"more than {self._crowd.most} connections; try again soon")

    def _still_sending(self) -> bool:
        """Whether the client is in the middle of something that nobody will read."""
        return self._leaving or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _look(self) -> None:
        """Begin to wait for what has to come next."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._await(None)
        elif state is h11.SEND_BODY:
            self._await("body")
        elif state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._await("head")
        else:
            self._await(None)

    def _await(self, awaited: Literal["head", "body"] | None) -> None:
        if awaited == self._awaited:
            return
        self._awaited = awaited
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if awaited is not None:
            self._begun, self._received = self.loop.time(), len(self.conn.trailing_data[0])
            self._late = self.loop.call_later(getattr(self._times, awaited), self._check)

    def _check(self) -> None:
        self._late = None
        if self._awaited is None or self.transport.is_closing():
            return
        seconds = self._times.head
        if self._awaited == "body":
            seconds = self._times.body + self._received / self._times.rate
            if self.flow.read_paused:  # it is the app that does not take it
                self._begun = self.loop.time()
        if self._begun + seconds > self.loop.time():
            self._late = self.loop.call_at(self._begun + seconds, self._check)
            return
        if self._awaited == "head" and not self._received:
            log.info("closed a connection on which nothing was said for %g s", seconds)
            self.end()
        else:
            self._refuse(408, "request_timeout", f"the request's {self._awaited} took more than {seconds:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Close with an error, unless a reply has begun."""
        asked = self.cycle is not None and not self.cycle.response_complete
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            kind = "server_error" if status >= 500 else "invalid_request_error"
            error = {"message": message, "type": kind, "param": None, "code": code}
            body = json.dumps({"error": error}).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            if status == 503:
                headers["retry-after"] = "1"
            response = h11.Response(status_code=status, headers=list(headers.items()), reason=STATUS_PHRASES[status])
            for part in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
            scope: Any = self.scope if asked else None
            tell_refusal(scope, status=status, code=code, bytes_out=len(body))
        if asked:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
