"""What can be set of the server, with what is allowed; sources.py reads it from files, the environment and flags.

The names here are the keys of a TOML file. With GALAGO_ in front they are environment variables (GALAGO_PORT),
with dashes they are flags (--body-limit-mb).
"""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from galago.choices import DEVICE
from galago.errors import InvalidRequest, quoted
from galago.store.catalog import entries

MAX_TIMEOUT = 24 * 60 * 60
LEVELS = ("debug", "info", "warning", "error")
_WORDS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Rule:
    """What a setting may be, in words and as a check."""

    allowed: str
    holds: Callable[[Any], bool]
    parse: Callable[[str], Any] = str
    """makes a value of the text of an environment variable; a ValueError says that it is none"""
    tidy: Callable[[Any], Any] = lambda value: value
    """makes one form of the several that a file may have"""


def _whole(low: int, high: int | None = None) -> Rule:
    allowed = f"a whole number >= {low}" if high is None else f"a whole number in {low}..{high}"
    return Rule(allowed, lambda v: type(v) is int and low <= v and (high is None or v <= high), int)


def _positive(most: float) -> Rule:
    allowed = f"a number above 0, at most {most:g}"
    return Rule(allowed, lambda v: type(v) in (int, float) and 0 < v <= most, float)


def _switch() -> Rule:
    def parse(text: str) -> bool:
        if text.lower() not in _WORDS:
            raise ValueError(text)
        return _WORDS[text.lower()]

    return Rule("true or false", lambda v: isinstance(v, bool), parse)


def _text(allowed: str, pattern: str = r".*\S.*") -> Rule:
    return Rule(allowed, matches(pattern))


def _host() -> Rule:
    def tidy(value: Any) -> Any:
        return value[1:-1] if isinstance(value, str) and re.fullmatch(r"\[[^\]]*\]", value) else value

    return Rule("a host name or an address, without a port, which is a setting of its own", is_host, tidy=tidy)


def _one_of(*names: str) -> Rule:
    allowed = f"{', '.join(names[:-1])} or {names[-1]}"
    return Rule(allowed, lambda v: v in names, tidy=lambda v: v.lower() if isinstance(v, str) else v)


def _list(allowed: str, each: Callable[[Any], bool], least: int = 0) -> Rule:
    """Texts: in a file an array or a single one, in an environment variable with commas between."""

    def holds(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) >= least and all(map(each, value))

    def tidy(value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    return Rule(allowed, holds, lambda text: tuple(part.strip() for part in text.split(",")), tidy)


def matches(pattern: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None and "\0" not in v


def is_host(value: Any) -> bool:
    """Whether it can be a host's name or address; colons are in IPv6 addresses alone."""
    if not matches(r"[^\s/]+")(value):
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return ":" not in value
    return True


def _setting(default: Any, rule: Rule, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"rule": rule})


_PRECISIONS = tuple(dict.fromkeys(p for e in entries() for p in e.precisions))
KEY = r"[\x21-\x7e]+"
"""What an API key is made of: it has to travel in a header."""


@dataclass(frozen=True)
class Settings:
    """What the server does; None leaves it to the model or the machine.

    Raises InvalidRequest, with the setting as `param`, for what is out of range.
    """

    model: tuple[str, ...] | None = _setting(
        None, _list("names or paths of models, one at least", matches(r".*\S.*"), least=1)
    )
    """None: the best that is installed and fits, or else the bundled one"""
    host: str = _setting("127.0.0.1", _host())
    port: int = _setting(8080, _whole(0, 65535))
    """0 takes one that is free"""

    profile: str | None = _setting(None, _one_of("standard", "optimized"))
    precision: str | None = _setting(None, _one_of(*_PRECISIONS))
    device: str = _setting("auto", _text("auto, cpu, cuda, cuda:N or mps", DEVICE))
    revision: str | None = _setting(None, _text("the name of a revision"))
    threads: int | None = _setting(None, _whole(1))
    """more than can run at a time here are cut"""
    max_memory_gb: float | None = _setting(None, _positive(1_000_000))
    """10^9 bytes, for all models together, with their image caches and their keys and values"""
    decode_memory_mb: float | None = _setting(None, _positive(1_000_000_000))
    """2^20 bytes that pictures may take while they are decoded, and the frames of videos as much again"""

    max_batch_size: int = _setting(16, _whole(1, 1024))
    """requests that are carried out together"""
    max_queue: int = _setting(64, _whole(0, 100_000))
    """requests that wait for a place beside those; more are refused"""
    max_connections: int = _setting(512, _whole(1, 100_000))
    """open ones, those that clients keep for later included; more are closed with a 503"""
    timeout: float | None = _setting(None, _positive(MAX_TIMEOUT))
    """seconds for a request that names no limit of its own"""
    body_limit_mb: float = _setting(32, _positive(4096))
    """2^20 bytes"""
    grace_s: int = _setting(8, _whole(0, 3600))
    """seconds that a stop may take; requests under way have all but the last two of them to finish"""

    api_keys: tuple[str, ...] = _setting((), _list("keys of visible ASCII without spaces", matches(KEY)), secret=True)
    """with none, everybody is let in"""
    api_key_file: str | None = _setting(None, _text("a path"))
    """keys that are added to those: one a line, # begins a comment"""
    cors_origins: tuple[str, ...] = _setting(
        (), _list("origins such as https://example.org, or *", matches(r"\*|[a-z][a-z0-9+.-]*://[^\s/]+"))
    )
    """sites whose pages may call the server, beside those of this machine"""
    remote_images: bool = _setting(True, _switch())
    """whether images may be given by URL"""
    allow_image_hosts: tuple[str, ...] = _setting(
        (), _list("host names or addresses, without a scheme, a port or a path", is_host)
    )
    """private hosts that such URLs may name"""

    strict_model_names: bool = _setting(False, _switch())
    """whether a request for another model is refused, instead of answered by the one that is served"""
    assistant_compat: bool = _setting(False, _switch())
    """whether chat completions tell times as texts too, in `performance`, as the AI Manual Assistant's servers do"""

    log_level: str = _setting("info", _one_of(*LEVELS))
    log_format: str = _setting("text", _one_of("text", "json"))
    log_content: bool = _setting(False, _switch())
    """whether prompts and answers may be in the log"""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata["rule"]
            if not (rule.holds(value) or (value is None and f.default is None)):
                raise InvalidRequest(must_be(f.name, f.name, value), f.name)

    @property
    def body_limit(self) -> int:
        """Bytes"""
        return int(self.body_limit_mb * (1 << 20))


RULES: dict[str, Rule] = {f.name: f.metadata["rule"] for f in fields(Settings)}
"""The rule of each setting, in their order."""
SECRET = frozenset(f.name for f in fields(Settings) if not f.repr)


def must_be(name: str, origin: str, value: Any) -> str:
    """What is wrong with this value of a setting, told of where it was given."""
    return f"{origin} must be {RULES[name].allowed}" + ("" if name in SECRET else f", not {quoted(value)}")
