"""Which model answers where nobody names one: the best that is installed and fits this machine, or a bundled one."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from galago.backends.memory_estimate import memory_needed
from galago.errors import size_of
from galago.store.catalog import SKILLS, Bundled, Entry, Hosted, entries
from galago.store.hub import installed

VARIABLE = "GALAGO_MODEL"
SHARE = 0.9
"""Of the memory that is available, what models may take where nobody says how much."""
SMALLER = "int4"
"""What a model is tried in where it does not fit in its usual precision."""


@dataclass(frozen=True)
class Choice:
    """A name for galago.load, and a sentence that tells why it is this one."""

    name: str
    why: str


def configured() -> str | None:
    """The model that the environment names for all commands: the first, since a server may have several."""
    return os.environ.get(VARIABLE, "").partition(",")[0].strip() or None


def choose(budget: int, skill: str | None = None, choice: Mapping[str, Any] | None = None) -> Choice:
    """The best model that is installed and needs no more than so many bytes, or else the bundled one.

    `skill` is one of SKILLS, where not every model will do. `choice` has precision, profile and device as galago.load
    takes them.
    """
    choice = {} if choice is None else choice

    def need(name: str) -> int:
        return memory_needed(name, **choice)

    smaller = not choice.get("precision") and not choice.get("profile")
    here = installed()
    found = [entry for entry in photographic(skill) if entry.id in here]
    for entry in found:
        if name := name_that_fits(entry, budget, need, smaller):
            best = "the best that is installed and fits; -m names another"
            return Choice(name, f"no model was named: {name} answers, {best}")
    entry = next(e for e in entries() if isinstance(e.source, Bundled) and (skill is None or skill in e.can))
    said = f"no model was named: {entry.id} {_after(entry.description)}"
    if found:
        short = f"{found[0].id} needs {size_of(need(found[0].id))}, and {size_of(budget)} are free"
        return Choice(entry.id, f"{said}; none that is installed fits, as {short}")
    if (better := recommended(budget, skill, need, smaller)) is None:
        what = f"no other model for {SKILLS[skill]}" if skill else "no other model"
        return Choice(entry.id, f"{said}; {what} fits in {size_of(budget)} of memory")
    return Choice(entry.id, f"{said}; `galago models pull {better[0].id}` brings one for those")


def photographic(skill: str | None = None) -> Iterator[Entry]:
    """The models of the catalogue that know more than drawings and have this skill, the best first; none elsewhere."""
    return (e for e in entries() if isinstance(e.source, Hosted) and (skill is None or skill in e.can))


def recommended(
    budget: int, skill: str | None, need: Callable[[str], int], smaller: bool = True
) -> tuple[Entry, str] | None:
    """The best model that fits, installed or not, and the name under which it does."""
    named = ((entry, name_that_fits(entry, budget, need, smaller)) for entry in photographic(skill))
    return next(((entry, name) for entry, name in named if name), None)


def name_that_fits(entry: Entry, budget: int, need: Callable[[str], int], smaller: bool) -> str | None:
    """The model's id, or with SMALLER behind it; None where neither fits."""
    names = [entry.id, *([f"{entry.id}-{SMALLER}"] if smaller and SMALLER in entry.precisions else [])]
    return next((name for name in names if need(name) <= budget), None)


def _after(description: str) -> str:
    """What a bundled model answers about, of its description."""
    return description.partition(": ")[2]
