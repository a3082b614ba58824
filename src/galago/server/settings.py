"""The server's settings and their allowed values; setting_sources.py reads them from files, the environment and flags.

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
SourcedValues = dict[str, tuple[Any, str]]
"""Values of settings by name, each with the place that it comes from, such as "galago.toml: port" or "--port"."""
_BOOLEANS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class SettingRule:
    """The allowed values of a setting, in words and as a check."""

    allowed: str
    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any] = str
    """parses the text of an environment variable, or raises ValueError"""
    normalise: Callable[[Any], Any] = lambda value: value
    """brings the forms that a file or flag may give into the one that is checked"""


def _whole(low: int, high: int | None = None) -> SettingRule:
    allowed = f"a whole number >= {low}" if high is None else f"a whole number in {low}..{high}"
    return SettingRule(allowed, lambda v: type(v) is int and low <= v and (high is None or v <= high), int)


def _positive(maximum: float) -> SettingRule:
    allowed = f"a number above 0, at most {maximum:g}"
    return SettingRule(allowed, lambda v: type(v) in (int, float) and 0 < v <= maximum, float)


def _seconds(high: float) -> SettingRule:
    return SettingRule(f"seconds, 0 to {high:g}", lambda v: type(v) in (int, float) and 0 <= v <= high, float)


def _boolean() -> SettingRule:
    def parse(text: str) -> bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]

    return SettingRule("true or false", lambda v: isinstance(v, bool), parse)


def _text(allowed: str, pattern: str = r".*\S.*") -> SettingRule:
    return SettingRule(allowed, matches(pattern))


def _host() -> SettingRule:
    def bare(value: Any) -> Any:
        return value[1:-1] if isinstance(value, str) and re.fullmatch(r"\[[^\]]*\]", value) else value

    return SettingRule("a host name or an address, without a port, which is a setting of its own", is_host, str, bare)


def _one_of(*names: str) -> SettingRule:
    allowed = f"{', '.join(names[:-1])} or {names[-1]}"
    return SettingRule(allowed, lambda v: v in names, normalise=lambda v: v.lower() if isinstance(v, str) else v)


def _list(allowed: str, each: Callable[[Any], bool], minimum: int = 0) -> SettingRule:
    """A tuple of strings: in a file an array or one string, in an environment variable separated by commas."""

    def accepts(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) >= minimum and all(map(each, value))

    def normalise(value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    return SettingRule(allowed, accepts, lambda text: tuple(part.strip() for part in text.split(",")), normalise)


def matches(pattern: str) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None and "\0" not in v


def is_host(value: Any) -> bool:
    """Whether the value can be a host name or an address, without a port: only IPv6 addresses have colons."""
    if not matches(r"[^\s/]+")(value):
        return False
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return ":" not in value
    return True


def _setting(default: Any, rule: SettingRule, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"rule": rule})


_PRECISIONS = tuple(dict.fromkeys(p for e in entries() for p in e.precisions))
KEY = r"[\x21-\x7e]+"
"""What an API key is made of: it has to travel in a header."""


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server; None leaves one to the model or the machine.

    Raises InvalidRequest, with the setting as `param`, for what is out of range.
    """

    model: tuple[str, ...] | None = _setting(
        None, _list("names or paths of models, one at least", matches(r".*\S.*"), minimum=1)
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
    several_images: str = _setting("refuse", _one_of("refuse", "sheet"))
    """what happens to several images for a model that takes one: a contact sheet of them is one"""
    max_image_side: int | None = _setting(None, _whole(64))
    """pixels of an image's longer side; larger ones are made smaller"""
    detail: str = _setting("high", _one_of("low", "high"))
    """how closely images are looked at where a request does not say"""
    remote_images: bool = _setting(True, _boolean())
    """whether images may be given by URL"""
    allow_image_hosts: tuple[str, ...] = _setting(
        (), _list("host names or addresses, without a scheme, a port or a path", is_host)
    )
    """private hosts that such URLs may name"""

    jobs: bool = _setting(False, _boolean())
    """whether requests may be jobs, which are kept and carried out in the background"""
    jobs_db: str | None = _setting(None, _text("a path of an SQLite file, or a postgresql:// URL"), secret=True)
    """where jobs are kept, which turns them on; by default in the user's folder"""
    jobs_keep_s: float = _setting(7 * 86400.0, _seconds(100 * 365 * 86400))
    """how long a finished job is kept that does not say so itself"""
    allow_callback_hosts: tuple[str, ...] = _setting(
        (), _list("host names or addresses, without a scheme, a port or a path", is_host)
    )
    """private hosts that jobs may call back"""
    webhook_secret: str | None = _setting(None, _text("one or more keys in base64"), secret=True)
    """signs what is called back"""
    meme_search: bool = _setting(False, _boolean())
    """whether the job API of meme-search is served, a captioning application, which turns jobs on"""
    image_root: str = _setting("/app/public/memes", _text("the path of a folder"))
    """where its images are"""
    callback_url: str | None = _setting(None, _text("an http:// or https:// URL", r"https?://\S+"))
    """the address of its receivers, before /status_receiver; by default from its own variables GEN_URL and APP_PORT"""
    job_delay: float = _setting(1.0, _seconds(3600))
    """before its jobs are begun: it may still ask how many wait"""
    meme_search_legacy: bool = _setting(False, _boolean())
    """whether its jobs may lack attempt_id and callback_token, as before May 2026"""

    strict_model_names: bool = _setting(False, _boolean())
    """whether a request for another model is refused, instead of answered by the one that is served"""
    assistant_compat: bool = _setting(False, _boolean())
    """whether chat completions tell times as texts too, in `performance`, as the AI Manual Assistant's servers do"""

    log_level: str = _setting("info", _one_of(*LEVELS))
    log_format: str = _setting("text", _one_of("text", "json"))
    log_content: bool = _setting(False, _boolean())
    """whether prompts and answers may be in the log"""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata["rule"]
            if not (rule.accepts(value) or (value is None and f.default is None)):
                raise InvalidRequest(rejection(f.name, f.name, value), f.name)

    @property
    def body_limit(self) -> int:
        """Bytes"""
        return int(self.body_limit_mb * (1 << 20))

    @property
    def keeps_jobs(self) -> bool:
        return self.jobs or self.jobs_db is not None or self.meme_search


RULES: dict[str, SettingRule] = {f.name: f.metadata["rule"] for f in fields(ServerSettings)}
"""The rule of each setting, in the order of the fields"""
SECRET = frozenset(f.name for f in fields(ServerSettings) if not f.repr)


def rejection(name: str, origin: str, value: Any) -> str:
    """The error message for a value that a setting does not allow; `origin` says where it was given."""
    return f"{origin} must be {RULES[name].allowed}" + ("" if name in SECRET else f", not {quoted(value)}")
