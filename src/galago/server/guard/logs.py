"""The request log: one line per request, and the request's id in every log line about it."""

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
from galago.server.errors import ErrorReply

log = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]
_FIELDS = "galago.fields"
_SANE_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def log_fields(scope: Scope) -> dict[str, Any]:
    """Extra fields of this request's log line, for routes to fill in.

    `content`, the request's skill with its texts, is only logged where the settings allow it.
    """
    fields: dict[str, Any] = scope.setdefault(_FIELDS, {})
    return fields


def log_refusal(scope: Scope | None, **fields: Any) -> None:
    """Log an error that the connection answered without the app: in the line of the request in flight, if there is
    one (`scope`), else in a line of its own."""
    if scope is None:
        log.info("refused", extra={_FIELDS: fields})
    else:
        log_fields(scope).update(fields, gone=False)


def log_requests(app: ASGIApp, content: bool = False) -> ASGIApp:
    """Middleware that logs each finished request and sets X-Request-Id; a client's own id is kept if it is sane."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begun = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex
        status: int | None = None
        bytes_in = bytes_out = 0
        ended = gone = False

        async def receive_wrapper() -> Message:
            nonlocal bytes_in, gone
            message = await receive()
            bytes_in += len(message.get("body", b""))
            gone = gone or (message["type"] == "http.disconnect" and not ended)
            return message

        async def send_wrapper(message: Message) -> None:
            nonlocal status, bytes_out, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            else:
                bytes_out += len(message.get("body", b""))
                ended = not message.get("more_body", False)
            await send(message)

        fields = log_fields(scope)
        token = _request_id.set(request_id)
        try:
            await app(scope, receive_wrapper, send_wrapper)
        finally:
            request_content = fields.pop("content", None)
            line = {
                "method": scope["method"],
                "path": _route_path(scope),
                "status": status,
                "seconds": round(time.perf_counter() - begun, 4),
                "bytes_in": bytes_in,
                "bytes_out": bytes_out,
                "gone": gone,
                **fields,
            }
            if content and request_content is not None:
                line["content"] = repr(request_content)
            log.info("request", extra={_FIELDS: line})
            _request_id.reset(token)

    return middleware


def reply_to_failures(app: ASGIApp, reply: ErrorReply) -> ASGIApp:
    """Middleware that turns unhandled exceptions into error replies, inside log_requests so that they get an id too."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_wrapper(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, send_wrapper)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await reply(scope["path"], error)(scope, receive, send)

    return middleware


def _route_path(scope: Scope) -> str:
    """The path pattern of the route, such as /models/{name}; the path itself where no route matched."""
    return str(getattr(scope.get("route"), "path", scope["path"]))[:200]


def configure_logging(form: str, level: int = logging.INFO, stream: TextIO | None = None) -> None:
    """Log to a stream (standard error), as text or as one JSON object a line.

    Galago's own loggers log from `level` up, those of libraries from warnings up.
    """
    if form not in get_args(LogFormat):
        raise InvalidRequest(f"a log is {' or '.join(get_args(LogFormat))}, and not {quoted(form)}", "log_format")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("galago").setLevel(level)


class TextLines(logging.Formatter):
    """2026-01-31T12:00:00Z INFO request method=GET path=/health … id=…"""

    def format(self, record: logging.LogRecord) -> str:
        fields = _record_fields(record)
        head = f"{fields.pop('time')} {fields.pop('level')} {_escape(fields.pop('message'))}"
        trace = fields.pop("traceback", None)
        fields.pop("logger")
        line = " ".join([head, *(f"{name}={_format_value(value)}" for name, value in fields.items())])
        return line if trace is None else f"{line}\n{trace}"


class JsonLines(logging.Formatter):
    """One JSON object a line, with the traceback inside it."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_record_fields(record), default=str)


def _record_fields(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a log line, in their order."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    fields: dict[str, Any] = {
        "time": f"{at}.{int(record.msecs):03}Z",
        "level": record.levelname,
        "logger": record.name,
        "message": record.getMessage(),
        **getattr(record, _FIELDS, {}),
    }
    request_id = _request_id.get()
    if request_id is not None:
        fields["id"] = request_id
    if record.exc_info:
        fields["traceback"] = logging.Formatter().formatException(record.exc_info)
    return fields


def _escape(text: str) -> str:
    """The text with unprintable characters escaped, so that it can neither begin a line nor move a cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text if re.fullmatch(r"[\w./:{}+-]+", text, re.ASCII) else json.dumps(text)
