"""The default model where none is named: the best that is installed and fits this machine, or a bundled one."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from galago.backends.backend import NATIVE
from galago.backends.memory_estimate import memory_needed
from galago.errors import size_of
from galago.store.catalog import SKILLS, Bundled, Entry, Hosted, entries
from galago.store.hub import installed

VARIABLE = "GALAGO_MODEL"
MEMORY_SHARE = 0.9
"""Share of the available memory that models may take by default"""
FALLBACK = "int4"
"""Tried for a model that does not fit in its default precision"""


@dataclass(frozen=True)
class DefaultModel:
    """A name for galago.load, and a sentence that tells why it was chosen."""

    name: str
    reason: str


def model_from_environment() -> str | None:
    """The model that the environment names for all commands: the first, since a server may have several."""
    return os.environ.get(VARIABLE, "").partition(",")[0].strip() or None


def choose_default_model(
    budget: int, skill: str | None = None, options: Mapping[str, Any] | None = None
) -> DefaultModel:
    """The best installed model that needs `budget` bytes at most, or else the bundled one.

    `skill`, if given, is one of SKILLS that the model must have. `options` has precision, profile and device as
    galago.load takes them.
    """
    options = {} if options is None else options

    def need(name: str) -> int:
        return memory_needed(name, **options)

    fallback = not options.get("precision") and not options.get("profile")
    local = installed()
    candidates = [entry for entry in photo_models(skill) if entry.id in local]
    for entry in candidates:
        if name := fitting_name(entry, budget, need, fallback):
            best = "the best that is installed and fits; -m names another"
            return DefaultModel(name, f"no model was named: {name} answers, {best}")
    entry = next(e for e in entries() if isinstance(e.source, Bundled) and (skill is None or skill in e.can))
    sentence = f"no model was named: {entry.id} {_subject(entry.description)}"
    if candidates:
        short = f"{candidates[0].id} needs {size_of(need(candidates[0].id))}, and {size_of(budget)} are free"
        return DefaultModel(entry.id, f"{sentence}; none that is installed fits, as {short}")
    if (better := recommend(budget, skill, need, fallback)) is None:
        what = f"no other model for {SKILLS[skill]}" if skill else "no other model"
        return DefaultModel(entry.id, f"{sentence}; {what} fits in {size_of(budget)} of memory")
    return DefaultModel(entry.id, f"{sentence}; `galago models pull {better[0].id}` brings one for those")


def photo_models(skill: str | None = None) -> Iterator[Entry]:
    """The catalogue's models for photographs that have this skill (or any), the best first; what needs another program
    or library is left to who names it."""
    own = (e for e in entries() if isinstance(e.source, Hosted) and e.backend == NATIVE)
    return (e for e in own if skill is None or skill in e.can)


def recommend(
    budget: int, skill: str | None, need: Callable[[str], int], fallback: bool = True
) -> tuple[Entry, str] | None:
    """The best model that fits, installed or not, and the name under which it does."""
    named = ((entry, fitting_name(entry, budget, need, fallback)) for entry in photo_models(skill))
    return next(((entry, name) for entry, name in named if name), None)


def fitting_name(entry: Entry, budget: int, need: Callable[[str], int], fallback: bool) -> str | None:
    """The model's id, or the id with FALLBACK; None where neither fits."""
    names = [entry.id, *([f"{entry.id}-{FALLBACK}"] if fallback and FALLBACK in entry.precisions else [])]
    return next((name for name in names if need(name) <= budget), None)


def _subject(description: str) -> str:
    """What a bundled model answers about: its description after the colon."""
    return description.partition(": ")[2]
