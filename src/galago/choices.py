"""The words that say how a model is to run, and whether there is such a model: checked without PyTorch.

PyTorch takes seconds to import, and a mistyped name should not.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from galago import hub
from galago.catalog import Route, entries, lookup
from galago.errors import CheckpointError, InvalidRequest, quoted

FLOATS = ("float32", "bfloat16", "float16")
BITS = {"int8": 8, "int4": 4}
PRECISIONS = (*FLOATS, *BITS)
PROFILES = ("standard", "optimized")
DEVICE = r"auto|cpu|mps|cuda(:\d+)?"


def check_precision(name: str | None) -> None:
    if name not in (None, "auto", *PRECISIONS):
        raise InvalidRequest(f"unknown precision {quoted(name)}; use {', '.join(PRECISIONS)}", "precision")


def check_profile(name: str | None) -> None:
    if name not in (None, *PROFILES):
        raise InvalidRequest(f"unknown profile {quoted(name)}; use {' or '.join(PROFILES)}", "profile")


def check_device(name: str | None) -> None:
    """Whether it is the name of one; whether it is here PyTorch knows."""
    if name is not None and not re.fullmatch(DEVICE, name):
        raise InvalidRequest(f"unknown device {quoted(name)}; use auto, cpu, cuda or mps", "device")


def check_threads(count: int | None) -> None:
    if count is not None and count < 1:
        raise InvalidRequest("threads must be at least 1", "threads")


def check_revision(name: str | None) -> None:
    from galago.families.moondream.config import REVISIONS

    known = dict.fromkeys([*REVISIONS, *(entry.revision for entry in entries() if entry.revision)])
    if name is not None and name not in known:
        raise CheckpointError(f"unknown revision {quoted(name)}; known are {', '.join(known)}")


def check_models(names: Sequence[str | Path], routes: bool = False) -> None:
    """Raise ModelNotFound or CheckpointError unless each is a model (or a route) of the catalogue or a checkpoint."""
    for name in names:
        found = lookup(str(name))
        if found is None or (isinstance(found, Route) and not routes):
            hub.locate(name, offline=True)
