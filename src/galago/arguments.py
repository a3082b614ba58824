"""Reading the arguments of a Model's methods. All raise InvalidRequest, naming the argument."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, TypeVar

from galago.errors import InvalidRequest, quoted
from galago.request import DetectGaze, Media, Priority, Query, Request, Sampling, Skill
from galago.values import Box, Spot

SettingsDict = Mapping[str, Any]
"""temperature, top_p, min_p, top_k, repetition_penalty, frequency_penalty, presence_penalty, logit_bias, seed,
max_tokens, stop, json_schema, max_objects, variant, detail; each may be left out.

Text is greedy unless a temperature is given. `json_schema`, a JSON Schema as a dict or as text, makes it JSON that
fits the schema. `variant` names a LoRA file; see load(). With detail `low` a
large image is seen as a whole only (quicker, and coarser); the default is `high`.
"""
SPOT_KEYS = ("x", "y")
BOX_KEYS = ("x_min", "y_min", "x_max", "y_max")
T = TypeVar("T")
_SAMPLING = {f.name for f in fields(Sampling)}
SETTING_NAMES = _SAMPLING | {"max_objects", "variant", "detail"}


def check_settings(settings: SettingsDict | None) -> dict[str, Any]:
    """A copy of the settings that were given, all of which exist."""
    if not (settings is None or isinstance(settings, Mapping)):
        raise InvalidRequest(f"settings must be a dict or None, not {type(settings).__name__}", "settings")
    given = dict(settings or {})
    if unknown := sorted(quoted(name) for name in set(given) - SETTING_NAMES):
        known = ", ".join(sorted(SETTING_NAMES))
        raise InvalidRequest(f"unknown setting {unknown[0]}; known are {known}", "settings")
    return {name: to_python(value) for name, value in given.items() if value is not None}


def sampling_from_settings(settings: SettingsDict | None) -> Sampling:
    """Sampling from a settings dict as Moondream's clients pass it (its other settings are read elsewhere)."""
    given = {name: value for name, value in check_settings(settings).items() if name in _SAMPLING}
    match given.get("stop"):
        case str(stop):
            given["stop"] = (stop,) if stop else ()
        case list(stops):
            given["stop"] = tuple(stops)
    if isinstance(given.get("json_schema"), Mapping):
        try:
            given["json_schema"] = json.dumps(dict(given["json_schema"]))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"json_schema must be a JSON Schema: {error}", "json_schema") from None
    return Sampling(**given)


def make_request(
    skill: Skill, image: Media | None, settings: SettingsDict | None, priority: Priority = "interactive"
) -> Request:
    """The request for a skill with these settings."""
    given, sampling = check_settings(settings), sampling_from_settings(settings)
    return Request(skill, image, sampling, given.get("variant"), given.get("detail", "high"), priority)


def object_limit(settings: SettingsDict | None) -> dict[str, int]:
    given = check_settings(settings)
    return {"max_objects": given["max_objects"]} if "max_objects" in given else {}


def read_query(question: Any, reasoning: Any, spatial_refs: Any) -> Query:
    """Model.query's arguments as a skill; what is out of range is refused by the request."""
    return Query(question, to_python(reasoning), read_places(spatial_refs, "spatial_refs"))


def read_gaze(eye: Any, face: Any, unstable_settings: Any, accurate: Any, force: Any) -> DetectGaze:
    """Model.detect_gaze's arguments as a skill; what is out of range is refused by the request."""
    usual = {"prioritize_accuracy": accurate, "force_detect": force}
    flags = read_flags(unstable_settings, usual, "unstable_settings")
    eye, face = read_place(eye, "eye", SPOT_KEYS), read_place(face, "face", BOX_KEYS)
    return DetectGaze(eye, face, accurate=flags["prioritize_accuracy"], force=flags["force_detect"])


def spot_dict(point: tuple[float, float]) -> dict[str, float]:
    return {"x": point[0], "y": point[1]}


def read_place(value: Any, param: str, *forms: tuple[str, ...]) -> Any:
    """A point or a box, given as a list, an array or a dict with the keys of one of these forms, as a tuple.

    What is none of those is refused by the request.
    """
    value = to_python(value)
    if isinstance(value, Mapping):
        keys = next((form for form in forms if set(value) == set(form)), None)
        if keys is None:
            raise InvalidRequest(f"{param} must have {', or '.join(map(', '.join, forms))}", param)
        value = [value[key] for key in keys]
    return tuple(map(to_python, value)) if isinstance(value, list | tuple) else value


def read_places(value: Any, param: str) -> tuple[Spot | Box, ...]:
    """A list of points and boxes, each as read_place takes it."""
    value = to_python(value)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise InvalidRequest(f"{param} must be a list of points (x, y) and boxes (x0, y0, x1, y1), all in 0..1", param)
    return tuple(read_place(one, param, SPOT_KEYS, BOX_KEYS) for one in value)


def iterate(values: Iterable[T], param: str) -> Iterator[T]:
    """Iterate over sources; a single one is refused, not iterated over by its letters or lines."""
    if not isinstance(values, str | bytes | bytearray | memoryview | Mapping) and not hasattr(values, "read"):
        with suppress(TypeError):
            return iter(values)
    raise InvalidRequest(f"{param} must be a list or another iterable, not a {type(values).__name__}", param)


def read_flags(given: Any, usual: Mapping[str, Any], param: str) -> dict[str, Any]:
    """Flags by name: those that are given, and the defaults in `usual`, which lists all."""
    if not (given is None or isinstance(given, Mapping)):
        raise InvalidRequest(f"{param} must be a dict or None, not {type(given).__name__}", param)
    flags = {**usual, **{name: to_python(value) for name, value in (given or {}).items() if value is not None}}
    if unknown := sorted(quoted(name) for name in set(flags) - set(usual)):
        raise InvalidRequest(f"unknown setting {unknown[0]}; known are {', '.join(usual)}", param)
    return flags


def to_python(value: Any) -> Any:
    """Arrays and numbers of NumPy and PyTorch as lists and numbers of Python; anything else as it is."""
    return value.tolist() if hasattr(value, "tolist") and not isinstance(value, type) else value
