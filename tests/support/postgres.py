"""A PostgreSQL server of the tests' own, on a socket in a temporary folder."""

import os
import pwd
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from isolation import HOME, allow

_numbers = count()


def _programs() -> Path:
    """The folder of the newest server's programs, which Debian keeps off the path."""
    found = [Path(p) for p in [shutil.which("initdb")] if p]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]), reverse=True)
    if not found:
        pytest.skip("needs PostgreSQL's server (initdb): apt-get install postgresql")
    return found[0].resolve().parent


@contextmanager
def serving_postgres(*settings: str) -> Iterator[str]:
    """The URL of a fresh server, less the name of a database; it is gone afterwards. `settings` as "fsync=off". Skips
    the test where there is none.

    The server refuses to run as root: then it is the user postgres, who needs a folder that others may enter.
    """
    programs = _programs()
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("needs a user postgres, since PostgreSQL does not run as root")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    folder = HOME.parent / f"galago-postgres-{secrets.token_hex(4)}"
    allow(folder)
    folder.mkdir(mode=0o700)
    if user:
        os.chown(folder, user["user"], user["group"])
    data = folder / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(data), *arguments]
        # Not a pipe: the server would keep it open.
        with (folder / "said").open("w+") as said:
            done = subprocess.run(command, **user, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
            said.seek(0)
            assert done.returncode == 0, said.read()

    try:
        run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync")
        options = " ".join(f"-c {s}" for s in ("listen_addresses=", f"unix_socket_directories={folder}", *settings))
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://postgres@/NAME?host={folder}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """The URL of an empty database of its own."""
    import psycopg

    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.replace("NAME", "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("NAME", name)
