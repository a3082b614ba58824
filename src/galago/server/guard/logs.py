"""One line of log for each request, and an id in every line that is about it."""

import json
import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar
from typing import Any, Literal, TextIO, get_args

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from galago.errors import InvalidRequest, quoted
from galago.server.errors import Reply

log = logging.getLogger(__name__)

Form = Literal["text", "json"]
_FACTS = "galago.facts"
_SANE_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def facts_of(scope: Scope) -> dict[str, Any]:
    """What the line of this request will tell beside what every one does, for routes to add to.

    `content`, which is what was asked, is left out unless the log is to hold it.
    """
    facts: dict[str, Any] = scope.setdefault(_FACTS, {})
    return facts


def tell_refusal(scope: Scope | None, **answered: Any) -> None:
    """What the connection itself answered, for which no app was asked: told in the line of the request that this
    ended, if there is one, else in a line of its own."""
    if scope is None:
        log.info("refused", extra={_FACTS: answered})
    else:
        facts_of(scope).update(answered, gone=False)


def with_log(app: ASGIApp, content: bool = False) -> ASGIApp:
    """The app, with a line in the log when a request is over and its id in X-Request-Id.

    An id that the client sends is kept if it is short and plain.
    """

    async def logged(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begun = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        status: int | None = None
        bytes_in = bytes_out = 0
        ended = gone = False

        async def counted_in() -> Message:
            nonlocal bytes_in, gone
            message = await receive()
            bytes_in += len(message.get("body", b""))
            gone = gone or (message["type"] == "http.disconnect" and not ended)
            return message

        async def counted_out(message: Message) -> None:
            nonlocal status, bytes_out, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            else:
                bytes_out += len(message.get("body", b""))
                ended = not message.get("more_body", False)
            await send(message)

        facts = facts_of(scope)
        token = _request_id.set(request_id)
        try:
            await app(scope, counted_in, counted_out)
        finally:
            asked = facts.pop("content", None)
            line = {
                "method": scope["method"],
                "path": _template(scope),
                "status": status,
                "seconds": round(time.perf_counter() - begun, 4),
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "gone": gone,
                **facts,
            }
            if content and asked is not None:
                line["content"] = repr(asked)
            log.info("request", extra={_FACTS: line})
            _request_id.reset(token)

    return logged


def with_failures(app: ASGIApp, reply: Reply) -> ASGIApp:
    """The app, with a reply to what it did not foresee either, which then has an id and a line in the log as others."""

    async def caught(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, noting)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await reply(scope["path"], error)(scope, receive, send)

    return caught


def _template(scope: Scope) -> str:
    """The path of the route, with the names of its parts; the path itself where there is no route."""
    return str(getattr(scope.get("route"), "path", scope["path"]))[:200]


def set_up(form: str, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Send the log to a stream (standard error), as text or as a JSON object a line.

    Galago's own loggers tell what is at `level` or above, those of libraries warnings alone.
    """
    if form not in get_args(Form):
        raise InvalidRequest(f"a log is {' or '.join(get_args(Form))}, and not {quoted(form)}", "log_format")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("galago").setLevel(level)


class TextLines(logging.Formatter):
    """2026-01-31T12:00:00Z INFO request method=GET path=/health … id=…"""

    def format(self, record: logging.LogRecord) -> str:
        told = _told(record)
        head = f"{told.pop('time')} {told.pop('level')} {_plain(told.pop('message'))}"
        trace = told.pop("traceback", None)
        told.pop("logger")
        line = " ".join([head, *(f"{name}={_value(value)}" for name, value in told.items())])
        return line if trace is None else f"{line}\n{trace}"


class JsonLines(logging.Formatter):
    """One JSON object a line, with the traceback inside it."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_told(record), default=str)


def _told(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says, in the order in which it says it."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    told: dict[str, Any] = {
        "time": f"{at}.{int(record.msecs):03}Z",
        "level": record.levelname,
        "logger": record.name,
        "message": record.getMessage(),
        **getattr(record, _FACTS, {}),
    }
    request_id = _request_id.get()
    if request_id is not None:
        told["id"] = request_id
    if record.exc_info:
        told["traceback"] = logging.Formatter().formatException(record.exc_info)
    return told


def _plain(text: str) -> str:
    """Text without what would begin a line of its own, or move the cursor of whoever reads the log."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text if re.fullmatch(r"[\w./:{}+-]+", text, re.ASCII) else json.dumps(text)
