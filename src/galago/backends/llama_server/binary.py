"""Finding llama-server, the program of llama.cpp, and what it says of itself."""

import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from galago.errors import CheckpointError

VARIABLE = "GALAGO_LLAMA_SERVER"
PROGRAM = "llama-server"
GET_ONE = (
    "install llama.cpp (brew install llama.cpp, winget install llama.cpp, or a release of "
    f"github.com/ggml-org/llama.cpp) so that {PROGRAM} is on PATH, or set {VARIABLE} to its path"
)
VERSION = re.compile(r"^version: (.+)$", re.M)
PATIENCE_S = 30
"""Seconds in which it tells its version, on a machine that is busy."""


def find_binary() -> Path:
    """The program that the setting names, or that is on PATH. Raises CheckpointError, which says how to get one."""
    if chosen := os.environ.get(VARIABLE):
        found = shutil.which(os.path.expanduser(chosen))
        if found is None:
            raise CheckpointError(f"{VARIABLE} is {chosen}, which is no program that can be run; {GET_ONE}")
        return Path(found)
    if (found := shutil.which(PROGRAM)) is None:
        raise CheckpointError(f"GGUF files are run by {PROGRAM}, which is not here: {GET_ONE}")
    return Path(found)


def version_of(binary: Path) -> str:
    """What it calls its version, such as "5394 (6c8b9150)". Raises CheckpointError where it does not run here."""
    return _version(binary, binary.stat().st_mtime_ns)


@lru_cache
def _version(binary: Path, changed: int) -> str:
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, errors="replace", timeout=PATIENCE_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckpointError(f"{binary} cannot be run ({error}); {GET_ONE}") from error
    told = VERSION.search(done.stdout + done.stderr)
    if done.returncode or told is None:
        raise CheckpointError(
            f"{binary} --version {ending(done.returncode)}: it is not built for this machine, or is "
            f"none of llama.cpp's; {GET_ONE}"
        )
    return told[1].strip()


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
