"""The models and routes that can be served by name, read from catalog.toml."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any

from galago.errors import ModelNotFound, quoted


@dataclass(frozen=True)
class Remote:
    """One file of a hub repository at a revision (a tag, branch or commit)."""

    repo: str
    revision: str
    file: str


@dataclass(frozen=True)
class Bundled:
    """A checkpoint folder inside the package, under assets/."""

    folder: str


@dataclass(frozen=True)
class Hosted:
    """A checkpoint to download, of whose files some may be of another repository."""

    weights: tuple[Remote, ...]
    tokenizer: Remote
    config: Remote | None = None
    preprocessor: Remote | None = None

    @property
    def files(self) -> tuple[Remote, ...]:
        return (*self.weights, self.tokenizer, *(r for r in (self.config, self.preprocessor) if r))


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue. `revision` is the published state whose behaviour it has."""

    id: str
    family: str
    description: str
    license: str
    precisions: tuple[str, ...]
    source: Bundled | Hosted
    revision: str | None = None
    parameters: int | None = None
    aliases: tuple[str, ...] = ()
    kv_values: int | None = None
    """Keys and values of one position, in numbers: what they take is that times the size of their type."""
    context: int | None = None
    """Positions that one request may take at the most."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the measured peak, by precision; what was not measured is absent."""


@dataclass(frozen=True)
class Way:
    """What a way of a route takes (see routing.MEDIA), and its models, the one that is wanted most first."""

    takes: tuple[str, ...]
    models: tuple[str, ...]


@dataclass(frozen=True)
class Route:
    """A name behind which a server has several models of the catalogue; see routing.py."""

    id: str
    description: str
    ways: tuple[Way, ...]


def _route(name: str, table: dict[str, Any]) -> Route:
    ways = tuple(Way(tuple(way["takes"]), tuple(way["models"])) for way in table["route"])
    return Route(name, table["description"], ways)


def _entry(name: str, table: dict[str, Any]) -> Entry:
    if "folder" in table:
        source: Bundled | Hosted = Bundled(table.pop("folder"))
    elif "repo" in table:
        source = _whole(table.pop("repo"), table.pop("parts", 1))
    else:
        source = Hosted(tuple(Remote(**r) for r in table.pop("weights")), Remote(**table.pop("tokenizer")))
    listed: dict[str, Any] = {k: tuple(table.pop(k)) for k in ("aliases", "precisions") if k in table}
    return Entry(id=name, source=source, **listed, **table)


def _whole(repo: str, parts: int) -> Hosted:
    """All that a repository of the usual layout holds of a model, whose weights are in so many parts."""
    split = [f"model-{i:05d}-of-{parts:05d}.safetensors" for i in range(1, parts + 1)]
    weights = split if parts > 1 else ["model.safetensors"]
    others = ("tokenizer.json", "config.json", "preprocessor_config.json")
    return Hosted(tuple(Remote(repo, "main", f) for f in weights), *(Remote(repo, "main", f) for f in others))


def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("galago").joinpath("catalog.toml").read_text(encoding="utf-8"))


@cache
def entries() -> tuple[Entry, ...]:
    """Every model of the catalogue, the default one first."""
    return tuple(_entry(name, table) for name, table in _tables().items() if "route" not in table)


@cache
def routes() -> tuple[Route, ...]:
    """Every route of the catalogue."""
    return tuple(_route(name, table) for name, table in _tables().items() if "route" in table)


def _named() -> dict[str, Entry | Route]:
    """All of the catalogue by its ids and aliases, in small letters."""
    models = {name.lower(): entry for entry in entries() for name in (entry.id, *entry.aliases)}
    return models | {route.id.lower(): route for route in routes()}


def with_precision(name: str) -> tuple[str, str | None]:
    """A name such as moondream2-int8 as model and precision; (name, None) where it ends in none."""
    known = _named()
    base, _, precision = name.rpartition("-")
    precision = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(precision.lower(), precision.lower())
    if name.lower() not in known and base.lower() in known and any(precision in e.precisions for e in entries()):
        return base, precision
    return name, None


def lookup(name: str) -> Entry | Route | None:
    """What has this id or alias, in any case, with or without a precision (moondream2-int8)."""
    return _named().get(with_precision(name)[0].lower())


def find(name: str) -> Entry:
    """The model of this id or alias, as for lookup(). Raises ModelNotFound, naming what there is."""
    found = lookup(name)
    if isinstance(found, Entry):
        return found
    if found:
        models = ", ".join(dict.fromkeys(model for way in found.ways for model in way.models))
        raise ModelNotFound(f"{found.id} is a route: name one of {models}, or run galago serve {found.id}")
    name = with_precision(name)[0]
    close = get_close_matches(name.lower(), _named(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(dict.fromkeys(found.id for found in _named().values()))
    raise ModelNotFound(f"no model {quoted(name)}{hint} (known are {known}, and folders that hold a checkpoint)")
