"""An HTTP connection of uvicorn with timeouts for slow clients, which uvicorn has for idle ones alone, and a limit.

A client that sends its request byte by byte, never reads its reply, or is no longer there would otherwise keep
its connection, and the memory held for it, for as long as it likes.
"""

import asyncio
import json
import logging
import sys
from dataclasses import dataclass
from typing import Any, Literal

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from galago.server.guard.connection_limit import MAX_REFUSALS, ConnectionLimit, connection_metrics
from galago.server.guard.lingering import LingeringTransport
from galago.server.guard.logs import log_refusal

log = logging.getLogger(__name__)

HEAD_LIMIT = 32 << 10
"""Most bytes of a request's line and headers"""


@dataclass(frozen=True)
class Timeouts:
    """How long a client may take, in seconds.

    `head` is for a request's line and headers, from the connection or from their first byte; `body` is for the
    body, with one more second for each `rate` bytes that came; `stall` is how long it may leave a reply unread;
    `linger` how long it may go on sending after the server has closed its own side.
    """

    head: float = 10.0
    body: float = 20.0
    rate: float = 8192.0
    stall: float = 60.0
    linger: float = 5.0


class Connection(H11Protocol):
    """An HTTP connection that is closed with a 408 when its client is too slow, and with a 503 above the limit."""

    def __init__(self, *args: Any, timeouts: Timeouts, limit: ConnectionLimit, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeouts, self._limit = timeouts, limit
        self._rejected = False
        self._phase: Literal["head", "body"] | None = None
        self._phase_start = 0.0
        self._received = 0
        self._timeout_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._lingering_transport = LingeringTransport(transport, self._is_sending, self._timeouts.linger)
        super().connection_made(self._lingering_transport)
        connection_metrics.open += 1
        if len(self.connections) - self._limit.closing > self._limit.maximum:
            self._reject()
        else:
            self._set_phase("head")

    def connection_lost(self, exc: Exception | None) -> None:
        self._set_phase(None)
        self._lingering_transport.connection_lost()
        connection_metrics.open -= 1
        self._limit.closing -= self._rejected
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received += len(data)
        super().data_received(data)
        self._update_phase()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_phase()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._timeouts.stall, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def send_400_response(self, msg: str) -> None:
        # Called while h11's error is handled, which knows the status.
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            self._refuse(431, "head_too_large", f"the request's headers are larger than {HEAD_LIMIT} bytes")
        else:
            self._refuse(400, "invalid_value", msg)

    def close(self) -> None:
        """Close, after what is written has been sent; a request in flight is cut off."""
        if not self.transport.is_closing():
            self.shutdown()
            self.transport.close()

    def abort(self) -> None:
        """Close at once, whatever has not been sent or read yet."""
        self.transport.abort()

    def _reject(self) -> None:
        connection_metrics.refused += 1
        self._limit.closing += 1
        self._rejected = True
        if self._limit.closing > MAX_REFUSALS:
            self.transport.abort()
        else:
            self._refuse(503, "too_many_connections", f"more than {self._limit.maximum} connections; try again soon")

    def _is_sending(self) -> bool:
        """Whether the client may be in the middle of a request that nobody will read."""
        return self._rejected or self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _update_phase(self) -> None:
        """Start the timeout of the part of a request that has to come next, if one has to."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._set_phase(None)
        elif state is h11.SEND_BODY:
            self._set_phase("body")
        elif state is h11.IDLE and self.timeout_keep_alive_task is None:
            self._set_phase("head")
        else:
            self._set_phase(None)

    def _set_phase(self, phase: Literal["head", "body"] | None) -> None:
        if phase == self._phase:
            return
        self._phase = phase
        if self._timeout_timer is not None:
            self._timeout_timer.cancel()
            self._timeout_timer = None
        if phase is not None:
            self._phase_start, self._received = self.loop.time(), len(self.conn.trailing_data[0])
            self._timeout_timer = self.loop.call_later(getattr(self._timeouts, phase), self._check_timeout)

    def _check_timeout(self) -> None:
        self._timeout_timer = None
        if self._phase is None or self.transport.is_closing():
            return
        seconds = self._timeouts.head
        if self._phase == "body":
            seconds = self._timeouts.body + self._received / self._timeouts.rate
            if self.flow.read_paused:  # it is the app that does not take it
                self._phase_start = self.loop.time()
        if self._phase_start + seconds > self.loop.time():
            self._timeout_timer = self.loop.call_at(self._phase_start + seconds, self._check_timeout)
            return
        if self._phase == "head" and not self._received:
            log.info("closed a connection on which nothing was said for %g s", seconds)
            self.close()
        else:
            self._refuse(408, "request_timeout", f"the request's {self._phase} took more than {seconds:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Close the connection, with an error reply unless another reply has begun."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
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
            scope: Any = self.scope if is_answering else None
            log_refusal(scope, status=status, code=code, bytes_out=len(body))
        if is_answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
