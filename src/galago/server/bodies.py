"""Reading request bodies: receive them within a limit, decompress them, and parse their JSON."""

import json
import re
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from galago.errors import InvalidRequest, quoted
from galago.server.errors import Refused
from galago.system.inflate import CODINGS, TooLarge, inflate, parse_codings

Json = dict[str, Any]
T = TypeVar("T", bound=BaseModel)

_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"\x1aE\xdf\xa3")
_MESSAGES = {
    "missing": "is required",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be an array",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    **dict.fromkeys(("int_type", "int_from_float"), "must be a whole number"),
    "float_type": "must be a number",
    "literal_error": "must be {expected}",
    "none_required": "is not supported by this server",
    "less_than_equal": "must be at most {le}",
    "greater_than_equal": "must be at least {ge}",
    "union_tag_invalid": "must have a type of {expected_tags}",
    "union_tag_not_found": "must have a type",
    "value_error": "{error}",
    "string_pattern_mismatch": "must not be empty",
}
"""What is said of a value, by pydantic's type of its error"""
_FORMS = ("str", "int", "float", "bool")
_TAGS = ("text", "input_text", "output_text", "input_image")
"""Types of parts, which pydantic puts after their index"""
_FIELD = re.compile(r"[a-z][a-z_]*")
"""Not how pydantic calls a form of a union, such as list[TextPart]"""
_FORM = re.compile(rb"[\w.\[\]%-]+=")


async def read_body(http: Request, limit: int) -> bytes:
    """Receive the body as it was sent. Raises Refused as soon as it is known to be over `limit` bytes."""
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for piece in http.stream():
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
    except ClientDisconnect:
        # Nobody is there to read this; it only ends the request quietly.
        raise Refused("invalid_json", "the body ended early") from None
    return bytes(body)


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo the compressions of a Content-Encoding. Returns `limit` bytes at the most.

    Raises Refused where the body would be larger, is damaged, or has an encoding that is not supported.
    """
    for coding in reversed(parse_codings(encoding)):
        if coding not in CODINGS:
            told = f"the body has Content-Encoding {quoted(coding)}; {' and '.join(CODINGS)} are unpacked here"
            raise Refused("unsupported_encoding", told)
        try:
            body = inflate(body, limit)
        except TooLarge:
            raise _too_large(limit) from None
        except ValueError as error:
            raise Refused("invalid_json", f"the body cannot be unpacked as {coding}: {error}") from None
    return body


def _too_large(limit: int) -> Refused:
    return Refused("request_too_large", f"the body is larger than {limit} bytes")


def load_json(body: bytes) -> Json:
    """Parse the JSON object in the body, without Python's extensions (NaN, Infinity).

    In UTF-8, or UTF-16 or 32 as some programs on Windows write them; with or without a byte-order mark.
    """
    try:
        given = json.loads(body.decode(json.detect_encoding(body)), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("invalid_json", _why(body, error)) from None
    if not isinstance(given, dict):
        raise InvalidRequest("the body must be a JSON object")
    return given


def whole_number(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def validate(kind: type[T], given: Json) -> T:
    """A body as its declared type; null counts as absent. Raises Refused with the path of the first field at fault."""
    try:
        return kind.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        found = error.errors()
        # Of the forms of a union each tells why it is not that one: those that came furthest know best.
        deepest = max(len(one["loc"]) for one in found)
        paths = {_path(one["loc"]): None for one in found if len(one["loc"]) == deepest}
        at = next(iter(paths))
        told = [
            _MESSAGES.get(one["type"], "is not right: {msg}").format(**{"msg": one["msg"], **one.get("ctx", {})})
            for one in found
            if _path(one["loc"]) == at
        ]
        why = " or ".join(dict.fromkeys(told)).replace(" or must be ", " or ")
        raise Refused("invalid_value", f"{at} {why}", at) from None


def _path(loc: tuple[int | str, ...]) -> str:
    """Where a field stands: beside names and indices pydantic tells which form of a union it tried."""
    kept = [part for part in loc if isinstance(part, int) or (_FIELD.fullmatch(part) and part not in _FORMS)]
    places = zip([None, *kept], kept, strict=False)
    return ".".join(str(part) for before, part in places if not (isinstance(before, int) and part in _TAGS))


def _why(body: bytes, error: Exception) -> str:
    kinds = {
        "is empty": not body.strip(),
        "is multipart/form-data": body.startswith(b"--"),
        "is a picture or a video itself": body.startswith(_PICTURES) or body[4:8] == b"ftyp",
        "is a form": _FORM.match(body) is not None,
    }
    for kind, found in kinds.items():
        if found:
            return f"the body {kind}, where a JSON object is expected, with pictures in it as data: URLs in base64"
    return f"the body is not valid JSON: {error}"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
