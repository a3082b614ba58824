"""The models and routes that can be served by name, read from catalog.toml."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from galago.errors import CheckpointError, ModelNotFound, quoted

SKILLS = {
    "objects": "finding objects, points and gazes",
    "boxes": "finding objects",
    "reasoning": "thinking before an answer",
    "video": "videos",
}
"""What not every model does, in words."""


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
    """Files to download, some of which may be of another repository: a checkpoint's, or one GGUF file.

    A GGUF file has its tokenizer in it, and may have another beside it that sees images, its `projector`.
    """

    weights: tuple[Remote, ...]
    tokenizer: Remote | None = None
    config: Remote | None = None
    preprocessor: Remote | None = None
    projector: Remote | None = None

    @property
    def files(self) -> tuple[Remote, ...]:
        others = (self.tokenizer, self.config, self.preprocessor, self.projector)
        return (*self.weights, *(r for r in others if r))


@dataclass(frozen=True)
class Published:
    """A repository on the hub. What of its files a model needs is found when it is fetched."""

    repository: str
    """owner/name, or owner/name@revision"""


@dataclass(frozen=True)
class Address:
    """A server that has the model: nothing is downloaded."""

    url: str


@dataclass(frozen=True)
class Local:
    """A folder or file that was named by its path, and the files that are read of it."""

    path: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Entry:
    """What is known of a model without loading it. `revision` is the published state whose behaviour it has.

    The catalogue says it of its own models, and a backend of what is named by a path.
    """

    id: str
    description: str
    license: str
    precisions: tuple[str, ...]
    source: Bundled | Hosted | Published | Address | Local
    parameters: int
    backend: str = "native"
    """what runs it, of backend.BACKENDS"""
    family: str = ""
    """of our own engine's models"""
    revision: str | None = None
    commit: str | None = None
    """of the repository that it was downloaded from, where it is here"""
    aliases: tuple[str, ...] = ()
    can: tuple[str, ...] = ()
    """what not every model does, of SKILLS"""
    cannot: tuple[str, ...] = ()
    """what most models do and it does not: caption or query"""
    kv_values: int = 0
    """Keys and values of one position, in numbers: what they take is that times the size of their type. 0 where a model
    holds nothing beside what `memory` says: no caches that could be bounded."""
    context: int = 0
    """Positions that one request may take at the most."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the measured peak, by precision; what was not measured is absent."""
    counted: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the peak as its files tell, where parameters and precision alone would not say."""


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


@dataclass(frozen=True)
class Unsupported:
    """A model that is known elsewhere and that Galago does not run; `why` is a sentence that names another."""

    id: str
    why: str
    aliases: tuple[str, ...] = ()


LONGEST = 80
"""Characters of a name that are repeated in an error."""
FOREIGN = {
    ".mf": "weights of Moondream's former client",
    ".mf.gz": "weights of Moondream's former client",
    ".onnx": "weights of ONNX Runtime",
}
"""Files that hold weights and that nothing here reads, by how they end."""


def _route(name: str, table: dict[str, Any]) -> Route:
    ways = tuple(Way(tuple(way["takes"]), tuple(way["models"])) for way in table["route"])
    return Route(name, table["description"], ways)


def _entry(name: str, given: Mapping[str, Any]) -> Entry:
    table = dict(given)
    if "folder" in table:
        source: Bundled | Hosted | Published | Address = Bundled(table.pop("folder"))
    elif "repository" in table:
        source = Published(table.pop("repository"))
    elif "repo" in table:
        source = _whole(table.pop("repo"), table.pop("parts", 1))
    elif "url" in table:
        source = Address(table.pop("url"))
    else:
        weights = [table.pop("gguf")] if "gguf" in table else table.pop("weights")
        others = {k: Remote(**table.pop(k)) for k in ("tokenizer", "projector") if k in table}
        source = Hosted(tuple(Remote(**r) for r in weights), **others)
    lists = ("aliases", "precisions", "can", "cannot")
    listed: dict[str, Any] = {k: tuple(table.pop(k)) for k in lists if k in table}
    return Entry(id=name, source=source, **listed, **table)


def _whole(repo: str, parts: int) -> Hosted:
    """All that a repository of the usual layout holds of a model, whose weights are in so many parts."""
    split = [f"model-{i:05d}-of-{parts:05d}.safetensors" for i in range(1, parts + 1)]
    weights = split if parts > 1 else ["model.safetensors"]
    others = ("tokenizer.json", "config.json", "preprocessor_config.json")
    return Hosted(tuple(Remote(repo, "main", f) for f in weights), *(Remote(repo, "main", f) for f in others))


def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files("galago.store").joinpath("catalog.toml").read_text(encoding="utf-8"))


@cache
def entries() -> tuple[Entry, ...]:
    """Every model of the catalogue: what is bundled, the default one first; then those for photographs, best first."""
    return tuple(_entry(name, table) for name, table in _tables().items() if {"route", "unsupported"}.isdisjoint(table))


@cache
def routes() -> tuple[Route, ...]:
    """Every route of the catalogue."""
    return tuple(_route(name, table) for name, table in _tables().items() if "route" in table)


@cache
def _unsupported() -> dict[str, Unsupported]:
    """Models that are known and not supported, by all their names as _key() has them."""
    tables = {name: table for name, table in _tables().items() if "unsupported" in table}
    known = [Unsupported(name, t["unsupported"], tuple(t.get("aliases", ()))) for name, t in tables.items()]
    return {_key(name): model for model in known for name in (model.id, *model.aliases)}


def _key(name: str) -> str:
    """One spelling for those that differ in large and small letters, and in underscores for dashes."""
    return name.lower().replace("_", "-")


def _named() -> dict[str, Entry | Route]:
    """All of the catalogue by ids, aliases and repositories with a revision (vikhyatk/moondream2@2025-06-21)."""
    global _table
    known, ways, named = _table
    # Every request looks names up, and the catalogue is read once.
    if entries() is not known or routes() is not ways:
        named = _by_name(entries(), routes())
        _table = (entries(), routes(), named)
    return named


_table: tuple[tuple[Entry, ...], tuple[Route, ...], dict[str, Entry | Route]] = ((), (), {})


def _by_name(known: Sequence[Entry], ways: Sequence[Route]) -> dict[str, Entry | Route]:
    found: dict[str, Entry | Route] = {}
    for entry in known:
        weights = entry.source.weights if isinstance(entry.source, Hosted) else ()
        revisions = [f"{repo}@{w.revision}" for w in weights for repo in (w.repo, w.repo.rpartition("/")[2])]
        found |= {_key(name): entry for name in (entry.id, *entry.aliases, *revisions)}
    return found | {_key(route.id): route for route in ways}


def with_precision(name: str) -> tuple[str, str | None]:
    """A name such as moondream2-int8 as model and precision; (name, None) where it ends in none."""
    base, _, precision = name.replace("_", "-").rpartition("-")
    base = name[: len(base)]
    precision = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(precision.lower(), precision.lower())
    is_whole, is_base = (_key(one) in _named() or _key(one) in _unsupported() for one in (name, base))
    if not is_whole and is_base and any(precision in entry.precisions for entry in entries()):
        return base, precision
    return name, None


def lookup(name: str) -> Entry | Route | None:
    """What has this id or alias, in any case, with or without a precision (moondream2-int8)."""
    return _named().get(_key(with_precision(name)[0]))


def entry_of(name: str) -> Entry | None:
    """The model of this id or alias; None for a route too."""
    found = lookup(name)
    return found if isinstance(found, Entry) else None


def find(name: str) -> Entry:
    """The model of this id or alias, as for lookup(). Raises ModelNotFound, naming what there is."""
    found = lookup(name)
    if isinstance(found, Entry):
        return found
    if found:
        models = ", ".join(dict.fromkeys(model for way in found.ways for model in way.models))
        raise ModelNotFound(f"{found.id} is a route: name one of {models}, or run galago serve {found.id}")
    raise ModelNotFound(foreign(name) or _why_not(with_precision(name[:LONGEST])[0]))


def _why_not(name: str) -> str:
    """What to say of a name that is neither a model's nor a route's."""
    if unsupported := _unsupported().get(_key(name)):
        return unsupported.why
    repo, at, revision = name.partition("@")
    if at and (there := [key.partition("@")[2] for key in _named() if key.startswith(f"{_key(repo)}@")]):
        return f"{repo} is here at {', '.join(there)}, not at {quoted(revision)}"
    close = get_close_matches(_key(name), _named(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(dict.fromkeys(found.id for found in _named().values()))
    others = "repositories as owner/name, and folders that hold a checkpoint"
    return f"no model {quoted(name)}{hint} (known are {known}, {others})"


def is_unsupported(name: str) -> bool:
    """Whether it is known elsewhere, and why not here."""
    return _key(with_precision(name)[0]) in _unsupported() or foreign(name) is not None


def foreign(name: str) -> str | None:
    """What to say of a file of another program's weights; None for any other name."""
    file = re.split(r"[/\\]", name)[-1]
    suffix = next((suffix for suffix in sorted(FOREIGN, key=len, reverse=True) if _key(file).endswith(suffix)), None)
    if suffix is None:
        return None
    stem = file[: -len(suffix)]
    if model := _unsupported().get(_key(with_precision(stem)[0])):
        instead = model.why
    elif same := lookup(stem):
        instead = "take " + "-".join(filter(None, (same.id, with_precision(stem)[1])))
    else:
        instead = "take a .safetensors file, or a name of `galago models`"
    return f"{file[:LONGEST]} is not read, since it holds {FOREIGN[suffix]}; {instead}"


def check_revision(name: str | None) -> None:
    known = dict.fromkeys(entry.revision for entry in entries() if entry.revision)
    if name is not None and name not in known:
        repositories = "a commit or tag of a repository is named as owner/name@commit"
        raise CheckpointError(f"unknown revision {quoted(name)}; known are {', '.join(known)}; {repositories}")
