"""Atomic writes, and file locks that end with the process that holds them."""

import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)
PART = ".part"
"""Suffix of a file that is still being written."""
UNFINISHED = ".quantizing"
"""A folder that quantise_model works in, inside the one that it is asked for."""
POLL_S = 0.1


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a new, empty file beside `path`, under a unique name, which replaces `path` at the end.

    Who reads `path` finds what was there before or all of the new, and of two writers the later one's. What does not
    come to its end is deleted. The name ends in .part, so a library that goes by endings has to be told the format.
    A link is followed, and a file that is there keeps its permissions. What is no file on a disk (a pipe,
    /dev/stdout) is given itself, to be written in place. `sync` waits until the data are on the disk, so that a power
    cut does not leave the name without them. Raises OSError, PermissionError for a file that may not be written.
    """
    if is_written_in_place(path):
        yield path
        return
    path = Path(os.path.realpath(path))
    part = path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}{PART}")
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    if mode is not None and not os.access(path, os.W_OK):
        raise PermissionError(13, os.strerror(13), str(path))
    # Not as private as tempfile makes them: the umask decides, as for any file.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        if mode is not None:
            part.chmod(mode)
        yield part
        if sync:
            _sync(part)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def lock_file(path: Path, waiting: Callable[[str], None]) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`, against threads and processes; yields whether it could be locked.

    Whoever holds it already is waited for, and `waiting` is told once who that is. A holder that is killed lets go of
    it. Some file systems have no locks (NFS without a lock service): then there is a warning and False, and two may be
    here at once. The file stays. Raises OSError where it cannot be made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            held = _lock(path, file.fileno(), waiting)
            if not _is_same_file(file.fileno(), path):
                continue  # it was deleted meanwhile, and others may hold another one
            if held:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
                file.flush()
            # Closing the file lets go of it.
            yield held
            return


def _is_same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(path: Path, file: int, waiting: Callable[[str], None]) -> bool:
    told = False
    while True:
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not told:
                waiting(_read_holder(file))
                told = True
            # Not a lock that blocks: that would keep a thread where no stop reaches it.
            time.sleep(POLL_S)
        except OSError as error:
            log.warning("%s cannot be locked (%s): another process may do the same work", path, error.strerror or error)
            return False


def try_lock(file: int) -> bool:
    """Lock an open file until it is closed; False if another process has the lock.

    True too on file systems without locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("a file that is written cannot be locked: %s", error.strerror or error)
    return True


@contextmanager
def try_lock_file(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if it is free; yields whether it is held. False too on file systems without locks."""
    with path.open("a+b") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = fcntl is not None
        except OSError:
            held = False
        yield held


def _read_holder(file: int) -> str:
    with open(os.dup(file), "rb") as opened:
        opened.seek(0)
        return opened.read(200).decode(errors="replace") or "another process"


def is_written_in_place(path: Path) -> bool:
    """Whether `path` is written in place, since it is no regular file: a terminal, a pipe or /dev/null."""
    # /dev/stdout may lead to a file, which the shell has opened: to put another in its place would lose the output.
    first = path.absolute().parts[1:3]
    opened = first[:1] == ("proc",) or first in (("dev", "stdout"), ("dev", "stderr"), ("dev", "fd"))
    return path.exists() and (opened or not path.is_file())


def _sync(file: Path) -> None:
    handle = os.open(file, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_path(path: str | Path) -> str:
    """A path for JSON; one that is not UTF-8, which JSON cannot hold, as a file:// URL, which commands take too."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Path(path).absolute().as_uri()
    return str(path)
