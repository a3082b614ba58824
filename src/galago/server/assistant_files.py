"""The JSON files of the AI Manual Assistant, for those who have them: app_config.json, and that of a model.

What is known there and means nothing here (how its web page looks, how its runtime prepares images) is passed
over without a word; a key that neither we nor they know is told.
"""

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.store.catalog import lookup

Json = dict[str, Any]
Given = dict[str, tuple[Any, str]]
_ANY: tuple[str, ...] = ("*",)
"""Sections that have no fixed keys."""

_APP = {
    "server": ("host", "port"),
    "frontend": ("video_width", "video_height", "api_base_url"),
    "model_server": ("host", "port"),
    "active_model": (),
}
_MODEL = {
    "model_name": (),
    "model_id": (),
    "model_path": (),
    "device": (),
    "max_tokens": (),
    "timeout": (),
    "version": (),
    "description": (),
    "server": ("host", "port", "framework", "cors_enabled", "log_level", "health_endpoint"),
    "image_processing": (
        "size",
        "max_size",
        "format",
        "quality",
        "jpeg_quality",
        "optimize",
        "preserve_aspect_ratio",
        "resize_method",
    ),
    "inference": ("max_tokens", "temperature", "do_sample", "torch_dtype"),
    "generation_config": ("max_new_tokens", "do_sample", "temperature", "top_p", "repetition_penalty"),
    "memory": ("required_gb", "max_memory_gb", "cleanup_aggressive", "pre_check_memory"),
    "mlx_config": _ANY,
    "limits": ("max_sequence_length", "max_image_size", "timeout_seconds"),
    "performance": _ANY,
    "ui": ("default_instruction", "capture_intervals", "default_interval"),
}
# Where two keys give one setting, the first that is there.
_APP_KEYS = {"model_server.host": "host", "model_server.port": "port"}
_MODEL_KEYS = {
    "device": "device",
    "timeout": "timeout",
    "limits.timeout_seconds": "timeout",
    "server.host": "host",
    "server.port": "port",
    "server.log_level": "log_level",
    "memory.max_memory_gb": "max_memory_gb",
    "mlx_config.quantization_bits": "precision",
    "inference.torch_dtype": "precision",
}
_OPTIMIZED = "_optimized"


def read_assistant_file(text: str, file: str, warnings: list[str]) -> Given:
    """The settings in one of the two files. Raises InvalidRequest; adds to the warnings what it does not know."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} is not valid JSON: {error}", "config") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f"{file} must hold a JSON object", "config")
    app = bool({"model_server", "active_model", "frontend"} & table.keys())
    flat = _flat(table, _APP if app else _MODEL, file, warnings)
    given: Given = {}
    for key, setting in (_APP_KEYS if app else _MODEL_KEYS).items():
        if key not in flat:
            continue
        value, origin = _CONVERTED.get(key, _same)(flat[key], f"{file}: {key}"), f"{file}: {key}"
        if setting not in given:
            if value is not None:
                given[setting] = value, origin
        elif setting != "precision" and given[setting][0] != value:  # a dtype beside the bits is of activations
            warnings.append(f"{origin} is not used, since {given[setting][1]} says {quoted(given[setting][0])}")
    names = ("active_model",) if app else ("model_path", "model_id", "model_name")
    _add_model({name: flat[name] for name in names if name in flat}, file, given)
    return given


def _flat(table: Json, known: dict[str, tuple[str, ...]], file: str, warnings: list[str]) -> Json:
    """The values by their dotted keys, without those that are null."""
    flat: Json = {}
    for key, value in table.items():
        section = known.get(key)
        if section is None:
            warnings.append(_unknown(f"{file}: {key}", key, known))
        elif not section:
            flat[key] = value
        elif not isinstance(value, dict):
            if value is not None:
                raise InvalidRequest(f"{file}: {key} must be an object", "config")
        else:
            for name, inner in value.items():
                if name not in section and section is not _ANY:
                    warnings.append(_unknown(f"{file}: {key}.{name}", name, section))
                flat[f"{key}.{name}"] = inner
    return {key: value for key, value in flat.items() if value is not None}


def _unknown(path: str, key: str, known: Any) -> str:
    close = get_close_matches(key, known, n=1)
    return f"{path} is not known and not used" + (f"; did you mean {close[0]}?" if close else "")


def _add_model(named: Json, file: str, given: Given) -> None:
    """Of several keys that name the model, the first whose value can be found here, or else the first."""
    for key, value in named.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"{file}: {key} must be a name or path, not {quoted(value)}", "model")
    if not named:
        return
    key = next((key for key, value in named.items() if _found(value.removesuffix(_OPTIMIZED))), next(iter(named)))
    name, origin = named[key].removesuffix(_OPTIMIZED), f"{file}: {key}"
    given["model"] = name, origin
    if name != named[key]:
        given["profile"] = "optimized", origin


def _found(name: str) -> bool:
    return lookup(name) is not None or Path(name).expanduser().exists()


def _same(value: Any, origin: str) -> Any:
    return value


def _bits(value: Any, origin: str) -> str:
    if value not in (4, 8):
        raise InvalidRequest(f"{origin} must be 4 or 8, not {quoted(value)}", "precision")
    return f"int{value}"


def _dtype(value: Any, origin: str) -> Any:
    dtype = value.removeprefix("torch.") if isinstance(value, str) else value
    return None if dtype == "auto" else dtype


_CONVERTED: dict[str, Callable[[Any, str], Any]] = {
    "mlx_config.quantization_bits": _bits,
    "inference.torch_dtype": _dtype,
}
