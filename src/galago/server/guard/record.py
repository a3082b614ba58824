"""The record, outermost of the layers: each request's id, its line in the log, its place among those in flight, and an
error reply if it fails."""

import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from galago.errors import EngineClosed
from galago.server.errors import ErrorReply
from galago.server.guard.logs import log_fields, log_request, request_id
from galago.server.guard.stopping import InFlight
from galago.server.request_target import HEALTH_PATHS, normalise_target

_HEADERS = "galago.headers"
_SANE_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")


def reply_headers(scope: Scope) -> dict[str, str]:
    """Headers that the reply gets beside its own, whoever writes it. One that it has already gets both values."""
    headers: dict[str, str] = scope.setdefault(_HEADERS, {})
    return headers


class RecordMiddleware:
    """Middleware that normalises the target, counts the request while it is in flight, turns what fails into an error
    reply, and logs one line when all is done. The requests that `in_flight` cancels get an error too.

    HEALTH_PATHS do not count as in flight. A failure after the reply has begun is raised.
    """

    def __init__(self, app: ASGIApp, in_flight: InFlight, reply: ErrorReply, *, log_content: bool = False) -> None:
        self._app, self._in_flight, self._reply, self._log_content = app, in_flight, reply, log_content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        normalise_target(scope)
        is_counted = scope["path"] not in HEALTH_PATHS
        entry = _Entry(scope, receive, send, self._in_flight if is_counted else None)
        token = request_id.set(entry.id)
        try:
            await (self._count(entry) if is_counted else self._answer(entry))
        finally:
            log_request(entry.line(self._log_content))
            request_id.reset(token)

    async def _count(self, entry: "_Entry") -> None:
        request = self._in_flight.enter()
        try:
            with request:
                await self._answer(entry)
            if request.cancelled_caught and entry.status is None:
                await self._fail(entry, EngineClosed("the server was shut down before the request was done"))
        finally:
            self._in_flight.leave(request)

    async def _answer(self, entry: "_Entry") -> None:
        try:
            await self._app(entry.scope, entry.receive, entry.send)
        except Exception as error:
            if entry.status is not None:
                raise
            await self._fail(entry, error)

    async def _fail(self, entry: "_Entry", error: Exception) -> None:
        await self._reply(entry.scope["path"], error)(entry.scope, entry.receive, entry.send)


class _Entry:
    """What is noted of one request while its messages pass. X-Request-Id is the client's own if that is sane."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, in_flight: InFlight | None) -> None:
        self.scope = scope
        self.status: int | None = None
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        self._receive, self._send, self._in_flight = receive, send, in_flight
        self._begun = time.perf_counter()
        self._bytes_in = self._bytes_out = 0
        self._has_ended = self._is_gone = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        self._is_gone = self._is_gone or (message["type"] == "http.disconnect" and not self._has_ended)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            for name, value in reply_headers(self.scope).items():
                headers[name] = ", ".join([*headers.getlist(name), value])
            if self._in_flight is not None and self._in_flight.stopping:
                headers["Connection"] = "close"
        else:
            self._bytes_out += len(message.get("body", b""))
            self._has_ended = not message.get("more_body", False)
        await self._send(message)

    def line(self, log_content: bool) -> dict[str, Any]:
        """The fields of the log line. The path is the pattern of the route, such as /models/{name}, if one matched."""
        fields = log_fields(self.scope)
        content = fields.pop("content", None)
        line = {
            "method": self.scope["method"],
            "path": str(getattr(self.scope.get("route"), "path", self.scope["path"]))[:200],
            "status": self.status,
            "seconds": round(time.perf_counter() - self._begun, 4),
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
            "gone": self._is_gone,
            **fields,
        }
        return line | {"content": repr(content)} if log_content and content is not None else line
