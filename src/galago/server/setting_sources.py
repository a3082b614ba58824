"""Reading the settings: defaults, a file, the environment and flags, of which the last that sets one wins."""

import os
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from galago.errors import InvalidRequest, quoted
from galago.server.assistant_files import read_assistant_file
from galago.server.settings import KEY, RULES, SECRET, ServerSettings, SourcedValues, matches, rejection

PREFIX = "GALAGO_"
_OTHER_VARIABLES = ("GALAGO_CACHE", "GALAGO_GOLDEN", "GALAGO_KERNELS", "GALAGO_LLAMA_SERVER", "GALAGO_NO_KERNELS")
"""Variables that other parts of Galago read"""


@dataclass(frozen=True)
class EffectiveSettings:
    """The settings in effect, the place that each comes from, and warnings about the sources."""

    settings: ServerSettings
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def read_settings(
    flags: Mapping[str, Any] | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> EffectiveSettings:
    """Merge the settings of all sources. Flags that are None were not given.

    `config` is a TOML file, or a JSON file of the AI Manual Assistant. Every source is checked, also where a later
    one has the last word. Raises InvalidRequest, which names the source, the key and what is allowed.
    """
    warnings: list[str] = []
    values: SourcedValues = {}
    for source in (
        {} if config is None else _read_file(config, warnings),
        _read_environment(os.environ if environment is None else environment, warnings),
        {name: (value, flag(name, value)) for name, value in (flags or {}).items() if value is not None},
    ):
        for name, (raw, origin) in source.items():
            value = RULES[name].normalise(raw)
            if not RULES[name].accepts(value):
                raise InvalidRequest(rejection(name, origin, raw), name)
            values[name] = value, origin
    if "api_key_file" in values:
        _add_key_file(values, warnings)
    settings = ServerSettings(**{name: value for name, (value, _) in values.items()})
    origins = {f.name: values[f.name][1] if f.name in values else "default" for f in fields(ServerSettings)}
    return EffectiveSettings(settings, origins, tuple(warnings))


def flag(name: str, value: Any = None) -> str:
    """The flag of a setting: in the singular where it may be given again, with --no- for the value False."""
    dashed = name.replace("_", "-")
    if isinstance(getattr(ServerSettings, name), tuple):
        dashed = dashed.removesuffix("s")
    return f"--no-{dashed}" if value is False else f"--{dashed}"


def _read_file(path: Path, warnings: list[str]) -> SourcedValues:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {_read_failure(error)}", "config") from None
    match path.suffix.lower():
        case ".toml":
            values = _read_toml(text, path.name)
        case ".json":
            values = read_assistant_file(text, path.name, warnings)
        case _:
            raise InvalidRequest(f"--config takes a .toml or .json file, not {path}", "config")
    if SECRET & values.keys():
        _warn_if_open(path, warnings)
    return values


def _read_toml(text: str, file: str) -> SourcedValues:
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        raise InvalidRequest(f"{file} is not valid TOML: {error}", "config") from None
    for key in table:
        # A mistyped api_keys must not leave a server open to everybody.
        if key not in RULES:
            raise InvalidRequest(f"{file}: there is no setting {quoted(key)}{_suggestion(key, RULES)}", "config")
    return {key: (value, f"{file}: {key}") for key, value in table.items()}


def _read_environment(variables: Mapping[str, str], warnings: list[str]) -> SourcedValues:
    ours = {PREFIX + name.upper(): name for name in RULES}
    suggest = partial(_suggestion, known=[v.removeprefix(PREFIX) for v in (*ours, *_OTHER_VARIABLES)], prefix=PREFIX)
    values: SourcedValues = {}
    for variable, text in sorted(variables.items()):
        if not variable.startswith(PREFIX) or variable in _OTHER_VARIABLES:
            continue
        name = ours.get(variable)
        if name is None:
            if hint := suggest(variable.removeprefix(PREFIX)):
                warnings.append(f"{variable} is not a setting{hint}")
        elif text.strip():  # compose files pass on what is not set as empty
            try:
                values[name] = RULES[name].parse(text.strip()), variable
            except ValueError:
                raise InvalidRequest(rejection(name, variable, text), name) from None
    return values


def _suggestion(name: str, known: Mapping[str, Any] | list[str], prefix: str = "") -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _add_key_file(values: SourcedValues, warnings: list[str]) -> None:
    """Add the keys of the key file to those of the other sources."""
    name, origin = values["api_key_file"]
    path = Path(name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{origin}: cannot read {path}: {_read_failure(error)}", "api_key_file") from None
    found = [(number, key) for number, line in enumerate(lines, 1) if (key := line.partition("#")[0].strip())]
    if not found:
        raise InvalidRequest(f"{origin}: {path} holds no key; it must have one a line", "api_key_file")
    for number, key in found:
        if not matches(KEY)(key):
            raise InvalidRequest(rejection("api_keys", f"{origin}: line {number} of {path}", key), "api_key_file")
    _warn_if_open(path, warnings)
    before, sources = values.get("api_keys", ((), ""))
    keys = tuple(dict.fromkeys((*before, *(key for _, key in found))))
    values["api_keys"] = keys, f"{sources}, {path.name}".removeprefix(", ")


def _warn_if_open(path: Path, warnings: list[str]) -> None:
    if path.stat().st_mode & stat.S_IROTH:
        warnings.append(f"{path} holds API keys, and every user of this machine can read it; try chmod 600 {path}")


def _read_failure(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"
