"""Where settings come from: defaults, a file, the environment, flags; the last that gives one wins."""

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
from galago.server.settings import KEY, RULES, SECRET, Settings, matches, must_be

PREFIX = "GALAGO_"
_OTHERS = ("GALAGO_CACHE", "GALAGO_GOLDEN", "GALAGO_KERNELS", "GALAGO_NO_KERNELS")
"""Variables of other parts of Galago."""
Given = dict[str, tuple[Any, str]]
"""Values by setting, each with what gave it."""


@dataclass(frozen=True)
class InForce:
    """The settings, what gave each of them, and what was odd about the sources."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def read_settings(
    flags: Mapping[str, Any] | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> InForce:
    """The settings in force. Flags that are None were not given.

    `config` is a TOML file, or a JSON file of the AI Manual Assistant. Every source is checked, also where a later
    one has the last word. Raises InvalidRequest, which names the source, the key and what is allowed.
    """
    warnings: list[str] = []
    given: Given = {}
    for source in (
        {} if config is None else _file(config, warnings),
        _environment(os.environ if environment is None else environment, warnings),
        {name: (value, flag(name, value)) for name, value in (flags or {}).items() if value is not None},
    ):
        for name, (raw, origin) in source.items():
            value = RULES[name].tidy(raw)
            if not RULES[name].holds(value):
                raise InvalidRequest(must_be(name, origin, raw), name)
            given[name] = value, origin
    if "api_key_file" in given:
        _add_keys(given, warnings)
    settings = Settings(**{name: value for name, (value, _) in given.items()})
    origins = {f.name: given[f.name][1] if f.name in given else "default" for f in fields(Settings)}
    return InForce(settings, origins, tuple(warnings))


def flag(name: str, value: Any = None) -> str:
    """The flag of a setting. One that may be given again is in the singular, one that is off begins with --no-."""
    dashed = name.replace("_", "-")
    if isinstance(getattr(Settings, name), tuple):
        dashed = dashed.removesuffix("s")
    return f"--no-{dashed}" if value is False else f"--{dashed}"


def _file(path: Path, warnings: list[str]) -> Given:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"cannot read {path}: {_why(error)}", "config") from None
    match path.suffix.lower():
        case ".toml":
            given = _toml(text, path.name)
        case ".json":
            given = read_assistant_file(text, path.name, warnings)
        case _:
            raise InvalidRequest(f"--config takes a .toml or .json file, not {path}", "config")
    if SECRET & given.keys():
        _warn_if_open(path, warnings)
    return given


def _toml(text: str, file: str) -> Given:
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # also a number of thousands of digits
        raise InvalidRequest(f"{file} is not valid TOML: {error}", "config") from None
    for key in table:
        # A mistyped api_keys must not leave a server open to everybody.
        if key not in RULES:
            raise InvalidRequest(f"{file}: there is no setting {quoted(key)}{_hint(key, RULES)}", "config")
    return {key: (value, f"{file}: {key}") for key, value in table.items()}


def _environment(variables: Mapping[str, str], warnings: list[str]) -> Given:
    ours = {PREFIX + name.upper(): name for name in RULES}
    close = partial(_hint, known=[known.removeprefix(PREFIX) for known in (*ours, *_OTHERS)], prefix=PREFIX)
    given: Given = {}
    for variable, text in sorted(variables.items()):
        if not variable.startswith(PREFIX) or variable in _OTHERS:
            continue
        name = ours.get(variable)
        if name is None:
            if hint := close(variable.removeprefix(PREFIX)):
                warnings.append(f"{variable} is not a setting{hint}")
        elif text.strip():  # compose files pass on what is not set as empty
            try:
                given[name] = RULES[name].parse(text.strip()), variable
            except ValueError:
                raise InvalidRequest(must_be(name, variable, text), name) from None
    return given


def _hint(name: str, known: Mapping[str, Any] | list[str], prefix: str = "") -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.7)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _add_keys(given: Given, warnings: list[str]) -> None:
    """Add the keys of the key file to those that are given elsewhere."""
    name, origin = given["api_key_file"]
    path = Path(name).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{origin}: cannot read {path}: {_why(error)}", "api_key_file") from None
    found = [(number, key) for number, line in enumerate(lines, 1) if (key := line.partition("#")[0].strip())]
    if not found:
        raise InvalidRequest(f"{origin}: {path} holds no key; it must have one a line", "api_key_file")
    for number, key in found:
        if not matches(KEY)(key):
            raise InvalidRequest(must_be("api_keys", f"{origin}: line {number} of {path}", key), "api_key_file")
    _warn_if_open(path, warnings)
    before, sources = given.get("api_keys", ((), ""))
    keys = tuple(dict.fromkeys((*before, *(key for _, key in found))))
    given["api_keys"] = keys, f"{sources}, {path.name}".removeprefix(", ")


def _warn_if_open(path: Path, warnings: list[str]) -> None:
    if path.stat().st_mode & stat.S_IROTH:
        warnings.append(f"{path} holds API keys, and every user of this machine can read it; try chmod 600 {path}")


def _why(error: OSError | UnicodeDecodeError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8"
