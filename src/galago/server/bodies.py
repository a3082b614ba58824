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
    **dict.fromkeys(("missing", "member_missing"), "is required"),
    **dict.fromkeys(("model_type", "dict_type", "model_attributes_type"), "must be an object"),
    "list_type": "must be an array",
    "string_type": "must be a string",
    "string_unicode": "holds half of a surrogate pair",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "{pattern}",
    "bool_type": "must be true or false",
    **dict.fromkeys(("int_type", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "finite_number"), "must be a number"),
    "literal_error": "must be {expected}",
    "none_required": "is not supported by this server",
    "less_than_equal": "must be at most {le}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "greater_than": "must be above {gt}",
    "too_long": "must have {max_length} items at the most",
    "too_short": "must have {min_length} or more items",
    "union_tag_invalid": "must be one of {expected_tags}",
    "union_tag_not_found": "is required",
    "value_error": "{error}",
}
"""What is said of a value, by pydantic's type of its error"""
_QUOTED = {"literal_error", "union_tag_invalid", "less_than_equal", "greater_than_equal", "less_than", "greater_than"}
"""Of these what was given is told"""
_PATTERNS = {r"\S": "must not be blank", "^[0-9]{1,9}$": "must be the id of a token"}
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


def validate(kind: type[T], given: Json) -> T:
    """A body as its declared type; null counts as absent. Raises InvalidRequest with the path of what is wrong."""
    try:
        return kind.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False), given) from None


def _refusal(found: list[Any], given: Json) -> InvalidRequest:
    """What is wrong with a body, where, and what is allowed, from what pydantic found."""
    for one in found:
        # Some checks name the field themselves, with a code of their own.
        if isinstance(cause := one.get("ctx", {}).get("error"), InvalidRequest) and cause.param:
            return cause
    # Of the forms that a value may have, each tells why it is not that one: the one that came furthest was meant.
    places = [_place(one, given) for one in found]
    at = max(places, key=len)
    told, shown = dict[str, None](), ""
    for one, place in zip(found, places, strict=True):
        if place == at:
            if one["type"] == "unsupported_parameter":
                return Refused(one["type"], f"{'.'.join(map(str, at))} {one['msg']}", ".".join(map(str, at)))
            words = {name: _plain(value) for name, value in one.get("ctx", {}).items()}
            words |= {"msg": one["msg"], "pattern": _PATTERNS.get(words.get("pattern", ""), "has not the right form")}
            told[_MESSAGES.get(one["type"], "is not right: {msg}").format(**words)] = None
            if one["type"] in _QUOTED:
                shown = f"; got {quoted(words.get('tag', one['input']))}"
    path, why = ".".join(map(str, at)), " or ".join(told).replace(" or must be ", " or ").replace(" or must ", " or ")
    return InvalidRequest(f"{path} {why}{shown}", path)


def _plain(bound: Any) -> Any:
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _place(error: Any, given: Any) -> tuple[str | int, ...]:
    """Where a field stands: beside names and indices pydantic tells which form of a union it tried."""
    place: list[str | int] = []
    for step in error["loc"]:
        if (isinstance(given, dict) and step in given) or (
            isinstance(given, list) and isinstance(step, int) and step < len(given)
        ):
            given = given[step]
        elif error["type"] != "missing" or step is not error["loc"][-1]:
            continue
        place.append(step)
    # What an object's own check misses, and what tells which of several forms it has.
    context = error.get("ctx", {})
    return (*place, *(context[name].strip("'") for name in ("at", "discriminator") if name in context))


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
