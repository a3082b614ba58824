"""Failures as OpenAI's error object, so that its clients raise the right exception with code and param."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from galago.errors import ContextLengthExceeded, GalagoError, InvalidRequest

log = logging.getLogger(__name__)

_STATUS = {
    "invalid_json": 400,
    "invalid_value": 400,
    "invalid_image": 400,
    "unsupported_parameter": 400,
    "too_many_images": 400,
    "context_length_exceeded": 400,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "model_in_use": 409,
    "request_too_large": 413,
    "queue_full": 429,
    "generation_failed": 500,
    "load_failed": 500,
    "unsupported_task": 501,
    "shutting_down": 503,
    "out_of_memory": 503,
    "timeout": 504,
}
_TYPE = {429: "rate_limit_error", 500: "server_error", 503: "server_error", 504: "server_error"}
# Clients retry 5xx by themselves; the same question would fail in the same way.
_HEADERS = {
    429: {"Retry-After": "1"},
    500: {"x-should-retry": "false"},
    501: {"x-should-retry": "false"},
    503: {"Retry-After": "5"},
}
# Arguments of skills and the JSON fields that they come from, where the names differ.
_FIELD = {"question": "messages", "image": "messages"}


class Refused(InvalidRequest):
    """A request that the server itself turns down; `code` is one of the table's."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.code = code


def failure(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body for any exception; what was not raised on purpose is logged and not shown."""
    message, code = "the server failed to carry out the request", "generation_failed"
    if isinstance(error, GalagoError):
        message, code = str(error), error.code if error.code in _STATUS else code
    else:
        log.error("request failed", exc_info=error)
    status = _STATUS[code]
    param = error.param if isinstance(error, InvalidRequest) else None
    if isinstance(error, ContextLengthExceeded):
        param = "messages"  # the engine sees tokens, and cannot tell whose they are
    body = {
        "message": message,
        "type": _TYPE.get(status, "invalid_request_error"),
        "param": _FIELD.get(param, param) if param else None,
        "code": code,
    }
    return status, {"error": body}


def _reply(error: Exception, headers: dict[str, str] | None = None) -> JSONResponse:
    status, body = failure(error)
    return JSONResponse(body, status, {**_HEADERS.get(status, {}), **(headers or {})})


async def _ours(http: Request, error: Exception) -> JSONResponse:
    return _reply(error)


async def _routing(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
    return _reply(Refused(code, f"{http.method} {http.url.path}: {error.detail}"), dict(error.headers or {}))


async def _validation(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _reply(Refused("invalid_value", first["msg"], ".".join(str(at) for at in first["loc"][1:])))


def install(app: FastAPI) -> None:
    """Make every failure of the app leave it as an error object, the framework's own included."""
    app.add_exception_handler(GalagoError, _ours)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _ours)
