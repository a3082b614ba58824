"""Where the golden vectors lie: numbers that the reference implementations gave for tiny random models."""

import os
from pathlib import Path

VECTORS = Path(__file__).parents[1] / "golden" / "vectors"
"""The repository's own."""


def vectors(kind: str) -> dict[str, Path]:
    """By name, the folders of one kind that hold an `expected.json`.

    A folder that GALAGO_GOLDEN names may add some, laid out as VECTORS is; where names are alike, its own is taken.
    """
    roots = [VECTORS, *map(Path, filter(None, [os.environ.get("GALAGO_GOLDEN")]))]
    found = (file.parent.resolve() for root in roots for file in (root / kind).glob("*/expected.json"))
    return {folder.name: folder for folder in found}
