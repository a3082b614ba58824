"""Moondream's REST API, as its Python client and Moondream Station have it: from JSON to a Request.

There is one path for each skill, with and without /v1 in front. The way back is in moondream_reply.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

from galago.arguments import BOX_KEYS, SPOT_KEYS
from galago.errors import InvalidRequest, UnsupportedTask
from galago.messages import attached_media
from galago.request import Caption, Detect, DetectGaze, Length, Point, Query, Request, Sampling, Skill
from galago.server.bodies import Json, load_json
from galago.server.errors import Refused
from galago.server.fields import (
    MediaRef,
    ParsedBody,
    media_ref_at,
    read,
    read_detail,
    read_sampling,
    read_schema,
    required,
)
from galago.server.settings import MAX_TIMEOUT
from galago.server.unread_media import check_no_unread_media
from galago.values import Box, Spot

# Clients nest their settings; one of Station's back ends also takes them beside the other fields.
_SETTINGS = ("temperature", "top_p", "max_tokens", "max_objects")


Reader = Callable[[bytes], ParsedBody]


def _parse(body: bytes, skill: Callable[[Json, int | None], Skill], streams: bool = False) -> ParsedBody:
    """The request that a body asks for. Slow where it holds an image: not for the event loop."""
    given = load_json(body)
    model = read(given, "model", str)
    stream = streams and (read(given, "stream", bool) or False)
    timeout = read(given, "timeout", float)
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidRequest(f"timeout must be a number of seconds above 0, at most {MAX_TIMEOUT}", "timeout")
    sampling, most = _settings(given)
    wanted, shown = skill(given, most), _media_refs(given)
    # Questions may do without one.
    if not shown and not isinstance(wanted, Query):
        told = "image_url is required: the image, as a data: URL, as bare base64, or as an http or https URL"
        raise InvalidRequest(told, "image_url")
    if isinstance(wanted, Query) and wanted.spatial_refs and not shown:
        raise InvalidRequest("spatial_refs need an image to refer to", "spatial_refs")
    detail = read_detail(read(given, "settings", dict) or {}, "settings.") or (shown[0].detail if shown else "high")
    return ParsedBody(Request(wanted, sampling=sampling, timeout=timeout, detail=detail), model, stream, shown)


def _settings(given: Json) -> tuple[Sampling, int | None]:
    """How text is drawn, and how many objects are looked for."""
    beside = {name: given[name] for name in _SETTINGS if given.get(name) is not None}
    read_so_far = _limits(beside, "")  # first alone, so that a mistake is told by its own path
    nested = read(given, "settings", dict)
    if nested is None:
        return read_so_far
    # A variant is a file of the server's, and which of them may be opened is not for strangers to say.
    if nested.get("variant") is not None:
        raise Refused("unsupported_parameter", "settings.variant is not supported by this server", "settings.variant")
    sampling, most = _limits(beside | {name: value for name, value in nested.items() if value is not None}, "settings.")
    return replace(sampling, json_schema=read_schema(nested, "json_schema", "settings.")), most


def _limits(settings: Json, path: str) -> tuple[Sampling, int | None]:
    most = read(settings, "max_objects", int, path)
    if most is not None and most < 1:
        raise InvalidRequest(f"{path}max_objects must be >= 1", f"{path}max_objects")
    return read_sampling(settings, path), most


def _media_refs(given: Json) -> tuple[MediaRef, ...]:
    """What is shown, under whichever of the names that clients have for it."""
    shown = tuple(media_ref_at(place, video) for place, video in attached_media(given, ""))
    check_no_unread_media(given, shown, "give it as image_url")
    return shown


def _caption(given: Json, most: int | None) -> Caption:
    length = read(given, "length", str)
    return Caption() if length is None else Caption(cast(Length, length))


def _query(given: Json, most: int | None) -> Query:
    question = required(read(given, "question", str), "question")
    return Query(question, read(given, "reasoning", bool) or False, _refs(given))


def _detect(given: Json, most: int | None) -> Detect:
    return Detect(_object(given)) if most is None else Detect(_object(given), most)


def _point(given: Json, most: int | None) -> Point:
    if _refs(given):
        raise UnsupportedTask("this model points without spatial_refs")
    return Point(_object(given)) if most is None else Point(_object(given), most)


def _gaze(given: Json, most: int | None) -> DetectGaze:
    forms = {"eye": SPOT_KEYS, "face": BOX_KEYS}
    eye, face = (None if given.get(n) is None else _position(given[n], n, form) for n, form in forms.items())
    flags, path = read(given, "unstable_settings", dict) or {}, "unstable_settings."
    accurate = read(flags, "prioritize_accuracy", bool, path) or False
    return DetectGaze(eye, face, accurate, read(flags, "force_detect", bool, path) or False)


def _segment(given: Json, most: int | None) -> Skill:
    raise UnsupportedTask("this model has no segmentation")


def _object(given: Json) -> str:
    name = read(given, "object", str)
    return required(read(given, "obj", str) if name is None else name, "object")


def _refs(given: Json) -> tuple[Spot | Box, ...]:
    refs = read(given, "spatial_refs", list) or []
    return tuple(_position(ref, f"spatial_refs.{i}", SPOT_KEYS, BOX_KEYS) for i, ref in enumerate(refs))


def _position(value: Any, path: str, *forms: tuple[str, ...]) -> Any:
    """Coordinates that are given as an array or as an object with the keys of one of these forms."""
    if isinstance(value, dict):
        keys = next((form for form in forms[1:] if form[0] in value), forms[0])
        value = [required(read(value, key, float, f"{path}."), f"{path}.{key}") for key in keys]
    return _numbers(value, path, tuple(map(len, forms)))


def _numbers(value: Any, path: str, counts: tuple[int, ...]) -> Any:
    count = " or ".join(map(str, counts))
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) not in counts:
        raise InvalidRequest(f"{path} must be an array of {count} numbers", path)
    if not all(0 <= v <= 1 for v in value):
        raise InvalidRequest(f"{path} must be within 0..1, relative to the image", path)
    return tuple(map(float, value))


_READERS: dict[str, Reader] = {
    "caption": partial(_parse, skill=_caption, streams=True),
    "query": partial(_parse, skill=_query, streams=True),
    "detect": partial(_parse, skill=_detect),
    "point": partial(_parse, skill=_point),
    # Nobody's client has it yet; the name is that of the model's own method, by which Station would route it.
    "detect_gaze": partial(_parse, skill=_gaze),
    "segment": partial(_parse, skill=_segment),
}
PATHS: dict[str, Reader] = {f"{prefix}/{name}": r for name, r in _READERS.items() for prefix in ("/v1", "")}
"""Every path of a skill, and what reads its requests."""
