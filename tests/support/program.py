"""A program of its own, which must come to its end."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

PATIENCE = 180
"""Seconds after which it is taken to hang."""


def ran(script: str, *arguments: str | Path) -> str:
    """What it prints. It may import what is in this folder, and ends with 0."""
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(Path(__file__).parent)]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, f"{done.returncode}: {done.stdout[-1000:]}{done.stderr[-4000:]}"
    return done.stdout
