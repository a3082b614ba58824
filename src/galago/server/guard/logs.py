"""How log lines are written, as text or as JSON, with the request's id in every line about it."""

import json
import logging
import re
import sys
import time
from contextvars import ContextVar
from typing import Any, Literal, TextIO, get_args

from starlette.types import Scope

from galago.errors import InvalidRequest, quoted

log = logging.getLogger(__name__)

LogFormat = Literal["text", "json"]
_FIELDS = "galago.fields"
_PLAIN = re.compile(r"[\w./:{}+-]+", re.ASCII)
"""Values that text lines hold without quotes"""
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def log_fields(scope: Scope) -> dict[str, Any]:
    """Extra fields of this request's log line, for routes to fill in.

    `content`, the request's skill with its texts, is only logged where the settings allow it.
    """
    fields: dict[str, Any] = scope.setdefault(_FIELDS, {})
    return fields


def log_request(fields: dict[str, Any]) -> None:
    """Log a request that is done."""
    log.info("request", extra={_FIELDS: fields})


def log_refusal(scope: Scope | None, **fields: Any) -> None:
    """Log an error that the connection answered without the app: in the line of the request in flight, if there is
    one (`scope`), else in a line of its own."""
    if scope is None:
        log.info("refused", extra={_FIELDS: fields})
    else:
        log_fields(scope).update(fields, gone=False)


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
    if (current := request_id.get()) is not None:
        fields["id"] = current
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
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
