"""A home and caches for the tests and every process that they start, and a watch over what lies outside."""

import os
import site
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

KEPT = {"GALAGO_KERNELS", "GALAGO_GOLDEN", "GALAGO_LLAMA_SERVER"}
"""Settings of a person's that mean the tests."""
PREFIXES = ("GALAGO_", "HF_", "HUGGINGFACE_", "XDG_", "LANGCHAIN_", "LANGSMITH_", "OPENAI_")
"""Of what is a person's own: settings, caches, keys, and where else a client would tell of what it does."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = {
    "open": ((0,), ()), "os.remove": ((0,), (1,)), "os.rename": ((0, 1), (2, 3)), "os.mkdir": ((0,), (2,)),
    "os.rmdir": ((0,), (1,)), "os.link": ((1,), (3,)), "os.symlink": ((1,), (2,)), "os.truncate": ((0,), ()),
    "os.chmod": ((0,), (2,)), "os.utime": ((0,), (3,)), "shutil.rmtree": ((0,), ()),
}  # fmt: skip
"""By audit event that changes files, which of its arguments are paths, and which the open folders of these."""
OPEN_FLAGS = 2
STARTS = {"subprocess.Popen": 3, "os.exec": 2, "os.posix_spawn": 2}
"""By audit event that starts a program, which of its arguments is the environment."""
MADE = {"__pycache__", ".pytest_cache", ".hypothesis"}
"""What Python, pytest and Hypothesis keep in the repository."""


def own_environment(home: Path) -> dict[str, str | None]:
    """The variables that make this folder the home of a process; None for those that it must not have.

    The hub is an address where nobody answers, so that no test downloads anything.
    """
    others = {name: None for name in os.environ if name.startswith(PREFIXES) and name not in KEPT}
    return {**others, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "HF_ENDPOINT": "http://127.0.0.1:9"}


def allow(folder: Path) -> None:
    """Take this folder for one of the tests' own."""
    _inside.append(f"{os.path.realpath(folder)}{os.sep}")


@contextmanager
def noting() -> Iterator[list[str]]:
    """What this process opens for writing, makes, moves or removes meanwhile outside the tests' own folders, and the
    programs that it starts with another home: the person's, which is also that of a process without HOME."""
    global _noted
    before, _noted = _noted, []
    try:
        yield _noted
    finally:
        _noted = before


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event in STARTS:
        environment = args[STARTS[event]]
        if environment is not None and not _ours(os.fsdecode(_home(environment))):
            _noted.append(f"{event} {args[0]} with the home {_home(environment)!r}")
    if event not in EVENTS or (event == "open" and not _writes(args)):
        return
    paths, folders = EVENTS[event]
    # A name in an open folder is how shutil.rmtree goes down; of the folder itself it has told.
    if any(isinstance(args[i], int) and args[i] >= 0 for i in folders):
        return
    for i in paths:
        if isinstance(args[i], str | bytes | os.PathLike) and not _ours(path := os.fsdecode(args[i])):
            _noted.append(f"{event} {path}")


def _writes(args: tuple[Any, ...]) -> bool:
    flags = args[OPEN_FLAGS]
    return isinstance(flags, int) and bool(flags & WRITES)


def _home(environment: Any) -> str | bytes:
    return environment.get("HOME") or environment.get(b"HOME") or ""


def _ours(path: str) -> bool:
    real = os.path.realpath(os.path.abspath(path)) if path else path
    return f"{real}{os.sep}".startswith(tuple(_inside)) or not MADE.isdisjoint(real.split(os.sep))


# Importing this begins it, before anything of ours is imported: the hub's client reads its folders then.
# A process beside others inherits the temporary folder of the one that started it, which is inside that one's own.
HOME = Path(tempfile.mkdtemp(prefix="galago-tests-", dir=os.environ.get("TESTS_TMPDIR"))).resolve()
"""Temporary files, pytest's folders and every home are in here."""
_inside = [f"{HOME}{os.sep}", "/dev/", "/proc/"]
_noted: list[str] = []

(HOME / "tmp").mkdir()
_begun = {
    "TMPDIR": str(HOME / "tmp"),
    "TESTS_TMPDIR": str(HOME.parent),
    # Where a person's packages come from, and lie if there is no environment, stays as it is.
    "NPM_CONFIG_USERCONFIG": os.environ.get("NPM_CONFIG_USERCONFIG", os.path.expanduser("~/.npmrc")),
    "PYTHONUSERBASE": site.getuserbase(),
    # A proxy is not to be asked for what runs here.
    **{
        name: ",".join(filter(None, (os.environ.get(name), "127.0.0.1,localhost"))) for name in ("NO_PROXY", "no_proxy")
    },
}
for _name, _value in {**own_environment(HOME), **_begun}.items():
    if _value is None:
        del os.environ[_name]
    else:
        os.environ[_name] = _value
tempfile.tempdir = None
sys.addaudithook(_heard)
