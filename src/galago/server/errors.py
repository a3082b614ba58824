"""Exceptions as HTTP errors, with the status and the body that the clients of a dialect understand."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    "invalid_video": 400,
    "unsupported_parameter": 400,
    "too_many_images": 400,
    "context_length_exceeded": 400,
    "invalid_api_key": 401,
    "origin_not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "model_in_use": 409,
    "request_too_large": 413,
    "unsupported_encoding": 415,
    "host_not_allowed": 421,
    "queue_full": 429,
    "head_too_large": 431,
    "generation_failed": 500,
    "not_a_number": 500,
    "load_failed": 500,
    "download_failed": 500,
    "invalid_checkpoint": 500,
    "unsupported_task": 501,
    "jobs_database": 503,
    "model_loading": 503,
    "shutting_down": 503,
    "engine_failed": 503,
    "out_of_memory": 503,
    "too_many_connections": 503,
    "timeout": 504,
}
_LIKE_CHAT = ("/completions", "/messages")
"""Paths of other chat APIs, for which the 404 names that of chat completions"""
# Clients retry 5xx by themselves; the same question would fail in the same way.
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": "1"},
    500: {"x-should-retry": "false"},
    501: {"x-should-retry": "false"},
    503: {"Retry-After": "5"},
}


class Refused(InvalidRequest):
    """A request that the server itself refuses; `code` is a key of _STATUS."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.code = code


@dataclass(frozen=True)
class Failure:
    """An HTTP error before it is written in a dialect: `param` is the field at fault, or the skill's argument of it."""

    status: int
    code: str
    message: str
    param: str | None = None
    is_too_long: bool = False
    """whether the request as a whole has too many tokens, so that no single field is at fault"""


ErrorFormat = Callable[[Failure], dict[str, Any]]
"""Makes the error body of a dialect"""
ErrorReply = Callable[[str, Exception], JSONResponse]
"""Makes the reply to an exception, in the error format of this path"""


def to_failure(error: Exception) -> Failure:
    """The Failure of an exception; the message of one that is not a GalagoError is logged and not shown to clients."""
    message, code = "the server failed to carry out the request", "generation_failed"
    if isinstance(error, GalagoError):
        message, code = str(error), error.code if error.code in _STATUS else code
    else:
        log.error("request failed", exc_info=error)
    param = error.param if isinstance(error, InvalidRequest) else None
    return Failure(_STATUS[code], code, message, param, isinstance(error, ContextLengthExceeded))


def make_error_reply(default: ErrorFormat, formats: Mapping[str, ErrorFormat]) -> ErrorReply:
    """An ErrorReply with these formats by path, or by how paths begin (/api/), and the default elsewhere."""

    def reply(path: str, error: Exception) -> JSONResponse:
        failed, folder = to_failure(error), "/".join(path.split("/")[:2]) + "/"
        format = formats.get(path) or formats.get(folder) or default
        return JSONResponse(format(failed), failed.status, _HEADERS.get(failed.status))

    return reply


def install(app: FastAPI, default: ErrorFormat, formats: Mapping[str, ErrorFormat]) -> ErrorReply:
    """Handle all exceptions of the app, the framework's own included, with the error format of their path."""
    reply = make_error_reply(default, formats)

    async def handle_error(http: Request, error: Exception) -> JSONResponse:
        return reply(http.url.path, error)

    async def handle_http_error(http: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_value")
        refused = Refused(code, f"{http.method} {http.url.path}: {error.detail}{suggest_path(http)}")
        response = reply(http.url.path, refused)
        response.headers.update(error.headers or {})
        return response

    def suggest_path(http: Request) -> str:
        path = http.url.path
        if path.startswith("/v1/v1/"):
            return "; /v1 is in it twice: the base URL has one already"
        return "; use /v1/chat/completions" if path.removeprefix("/v1") in _LIKE_CHAT else ""

    async def handle_validation_error(http: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        refused = Refused("invalid_value", first["msg"], ".".join(str(at) for at in first["loc"][1:]))
        return reply(http.url.path, refused)

    app.add_exception_handler(GalagoError, handle_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(RequestValidationError, handle_validation_error)
    app.add_exception_handler(Exception, handle_error)
    return reply
