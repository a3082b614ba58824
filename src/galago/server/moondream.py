"""Moondream's REST API, as its Python client and Moondream Station have it: from JSON to a Request.

There is one path for each skill, with and without /v1 in front. The way back is in moondream_reply.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from galago.errors import InvalidRequest, UnsupportedTask
from galago.request import Box, Caption, Detect, DetectGaze, Length, Point, Query, Request, Sampling, Skill, Spot
from galago.server.errors import Refused
from galago.server.fields import Asked, Json, Shown, load_json, read, read_sampling, required
from galago.server.settings import MAX_TIMEOUT

# Clients nest their settings; one of Station's back ends also takes them beside the other fields.
_SETTINGS = ("temperature", "top_p", "max_tokens", "max_objects")
_CORNERS = ("x_min", "y_min", "x_max", "y_max")


Reader = Callable[[bytes], Asked]


def _asked(body: bytes, skill: Callable[[Json, int | None], Skill], streams: bool = False) -> Asked:
    """The request that a body asks for. Slow where it holds an image: not for the event loop."""
    given = load_json(body)
    model = read(given, "model", str)
    stream = streams and (read(given, "stream", bool) or False)
    timeout = read(given, "timeout", float)
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT:
        raise InvalidRequest(f"timeout must be a number of seconds above 0, at most {MAX_TIMEOUT}", "timeout")
    sampling, most = _settings(given)
    wanted = skill(given, most)
    return Asked(Request(wanted, sampling=sampling, timeout=timeout), model, stream, _image(given, wanted))


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
    return _limits(beside | {name: value for name, value in nested.items() if value is not None}, "settings.")


def _limits(settings: Json, path: str) -> tuple[Sampling, int | None]:
    most = read(settings, "max_objects", int, path)
    if most is not None and most < 1:
        raise InvalidRequest(f"{path}max_objects must be >= 1", f"{path}max_objects")
    return read_sampling(settings, path), most


def _image(given: Json, skill: Skill) -> tuple[Shown, ...]:
    url = read(given, "image_url", str)
    # Questions may do without one.
    if url is None and isinstance(skill, Query):
        return ()
    return (Shown(required(url, "image_url"), "image_url"),)


def _caption(given: Json, most: int | None) -> Caption:
    length = read(given, "length", str)
    return Caption() if length is None else Caption(cast(Length, length))


def _query(given: Json, most: int | None) -> Query:
    question, refs = required(read(given, "question", str), "question"), _refs(given)
    if refs and given.get("image_url") is None:
        raise InvalidRequest("spatial_refs need an image to refer to", "spatial_refs")
    return Query(question, read(given, "reasoning", bool) or False, refs)


def _detect(given: Json, most: int | None) -> Detect:
    return Detect(_object(given)) if most is None else Detect(_object(given), most)


def _point(given: Json, most: int | None) -> Point:
    if _refs(given):
        raise UnsupportedTask("this model points without spatial_refs")
    return Point(_object(given)) if most is None else Point(_object(given), most)


def _gaze(given: Json, most: int | None) -> DetectGaze:
    eye, face = _position(given, "eye", ("x", "y")), _position(given, "face", _CORNERS)
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
    return tuple(_numbers(ref, f"spatial_refs.{i}", (2, 4)) for i, ref in enumerate(refs))


def _position(given: Json, name: str, keys: tuple[str, ...]) -> Any:
    """Coordinates that are given as an array or as an object with these keys."""
    value = given.get(name)
    if isinstance(value, dict):
        value = [required(read(value, key, float, f"{name}."), f"{name}.{key}") for key in keys]
    return None if value is None else _numbers(value, name, (len(keys),))


def _numbers(value: Any, path: str, counts: tuple[int, ...]) -> Any:
    count = " or ".join(map(str, counts))
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    if not numbers or len(value) not in counts:
        raise InvalidRequest(f"{path} must be an array of {count} numbers", path)
    if not all(0 <= v <= 1 for v in value):
        raise InvalidRequest(f"{path} must be within 0..1, relative to the image", path)
    return tuple(map(float, value))


_READERS: dict[str, Reader] = {
    "caption": partial(_asked, skill=_caption, streams=True),
    "query": partial(_asked, skill=_query, streams=True),
    "detect": partial(_asked, skill=_detect),
    "point": partial(_asked, skill=_point),
    # Nobody's client has it yet; the name is that of the model's own method, by which Station would route it.
    "detect_gaze": partial(_asked, skill=_gaze),
    "segment": partial(_asked, skill=_segment),
}
PATHS: dict[str, Reader] = {f"{prefix}/{name}": r for name, r in _READERS.items() for prefix in ("/v1", "")}
"""Every path of a skill, and what reads its requests."""
