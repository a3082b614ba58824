"""Settings from the JSON files of the AI Manual Assistant: app_config.json, and the file of a model.

Keys that mean nothing here (how its web page looks, how its runtime prepares images) are ignored; a key that neither
we nor they know gives a warning.
"""

import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.server.settings import SourcedValues
from galago.store.catalog import lookup

Table = dict[str, Any]
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


def read_assistant_file(text: str, file: str, warnings: list[str]) -> SourcedValues:
    """The settings in one of the two files. Adds unknown keys to the warnings. Raises InvalidRequest."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{file} is not valid JSON: {error}", "config") from None
    if not isinstance(table, dict):
        raise InvalidRequest(f"{file} must hold a JSON object", "config")
    app = bool({"model_server", "active_model", "frontend"} & table.keys())
    flat = _flatten(table, _APP if app else _MODEL, file, warnings)
    values: SourcedValues = {}
    for key, setting in (_APP_KEYS if app else _MODEL_KEYS).items():
        if key not in flat:
            continue
        value, origin = _CONVERTERS.get(key, _unchanged)(flat[key], f"{file}: {key}"), f"{file}: {key}"
        if setting not in values:
            if value is not None:
                values[setting] = value, origin
        elif setting != "precision" and values[setting][0] != value:  # a dtype beside the bits is of activations
            warnings.append(f"{origin} is not used, since {values[setting][1]} says {quoted(values[setting][0])}")
    names = ("active_model",) if app else ("model_path", "model_id", "model_name")
    _add_model({name: flat[name] for name in names if name in flat}, file, values)
    return values


def _flatten(table: Table, known: dict[str, tuple[str, ...]], file: str, warnings: list[str]) -> Table:
    """The values by their dotted keys, without nulls."""
    flat: Table = {}
    for key, value in table.items():
        section = known.get(key)
        if section is None:
            warnings.append(_unknown_key_warning(f"{file}: {key}", key, known))
        elif not section:
            flat[key] = value
        elif not isinstance(value, dict):
            if value is not None:
                raise InvalidRequest(f"{file}: {key} must be an object", "config")
        else:
            for name, inner in value.items():
                if name not in section and section is not _ANY:
                    warnings.append(_unknown_key_warning(f"{file}: {key}.{name}", name, section))
                flat[f"{key}.{name}"] = inner
    return {key: value for key, value in flat.items() if value is not None}


def _unknown_key_warning(path: str, key: str, known: Any) -> str:
    close = get_close_matches(key, known, n=1)
    return f"{path} is not known and not used" + (f"; did you mean {close[0]}?" if close else "")


def _add_model(named: Table, file: str, values: SourcedValues) -> None:
    """Set the model to the first of the keys that name it whose value exists here, or else to the first of all."""
    for key, value in named.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"{file}: {key} must be a name or path, not {quoted(value)}", "model")
    if not named:
        return
    key = next((key for key, value in named.items() if _exists(value.removesuffix(_OPTIMIZED))), next(iter(named)))
    name, origin = named[key].removesuffix(_OPTIMIZED), f"{file}: {key}"
    values["model"] = name, origin
    if name != named[key]:
        values["profile"] = "optimized", origin


def _exists(name: str) -> bool:
    return lookup(name) is not None or Path(name).expanduser().exists()


def _unchanged(value: Any, origin: str) -> Any:
    return value


def _bits(value: Any, origin: str) -> str:
    if value not in (4, 8):
        raise InvalidRequest(f"{origin} must be 4 or 8, not {quoted(value)}", "precision")
    return f"int{value}"


def _dtype(value: Any, origin: str) -> Any:
    dtype = value.removeprefix("torch.") if isinstance(value, str) else value
    return None if dtype == "auto" else dtype


_CONVERTERS: dict[str, Callable[[Any, str], Any]] = {
    "mlx_config.quantization_bits": _bits,
    "inference.torch_dtype": _dtype,
}
