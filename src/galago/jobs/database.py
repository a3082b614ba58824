"""A database of either kind: how it is opened, its transactions and its clock, and what is wrong with it in words."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from galago.errors import InvalidRequest, JobsDatabaseError, shortened
from galago.jobs.changes import Changes, watch_postgres, watch_sqlite
from galago.jobs.schema import HEAD, VERSION_TABLE

POOL = {"pool_size": 4, "max_overflow": 12, "pool_timeout": 60}
"""Connections that are kept, and how many more there may be while many threads ask at once."""
CHANNEL = "galago_jobs"
MIGRATION_LOCK = 0x67616C61676F
"""Of PostgreSQL's advisory locks, ours while the schema changes."""
RECHECK_S = 5.0
"""Longest wait without looking, should a notification be lost or the clock be set."""
RETRY_S = 0.02
NOW = text("SELECT CAST(extract(epoch FROM clock_timestamp()) AS double precision)")


@dataclass
class Transaction:
    """An open transaction, and its time in seconds since 1970. `wakes` is set where there is more to do afterwards,
    `is_numbered` where its changes have their number."""

    connection: Connection
    now: float
    wakes: bool = False
    is_numbered: bool = False


class Database:
    """The engine of a database and who waits for its changes. All methods may be called by several threads."""

    def __init__(self, engine: Engine, name: str, patience_s: float, clock: Callable[[], float] | None) -> None:
        self.engine, self.name = engine, name
        self.is_postgres = engine.dialect.name == "postgresql"
        self._reader = engine.execution_options(galago_reads=True)
        self._patience_s = patience_s
        self._clock = clock or (None if self.is_postgres else time.time)
        # SQLite lets one write at a time, and who waits for it sleeps: threads of one process take turns sooner here.
        self._turn: AbstractContextManager[Any] = nullcontext() if self.is_postgres else threading.Lock()
        self._changes = Changes(lambda: watch_postgres(engine, CHANNEL) if self.is_postgres else watch_sqlite(engine))

    def close(self) -> None:
        """Close all connections; who waits stops waiting."""
        self._changes.close()
        self.engine.dispose()

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """A transaction that may write, committed at the end unless there is an exception."""
        with self._errors_in_words():
            with self._turn, self.engine.begin() as connection:
                tx = Transaction(connection, self._now(connection))
                yield tx
                if tx.wakes and self.is_postgres:
                    connection.execute(text(f"NOTIFY {CHANNEL}"))
            if tx.wakes:
                self._changes.tell()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A transaction that only reads; on SQLite it waits for no writer."""
        with self._errors_in_words(), self._reader.begin() as connection:
            yield Transaction(connection, self._now(connection))

    def page(
        self, table: Table, where: Iterable[ColumnElement[bool]], after: str | None, limit: int, newest_first: bool
    ) -> tuple[Sequence[Row[Any]], str | None]:
        """At most `limit` rows of a table in the order of its ids, from the one after the id `after` on; and the id to
        go on from, None at the end."""
        order = table.c.id.desc() if newest_first else table.c.id
        beyond = [] if after is None else [table.c.id < after if newest_first else table.c.id > after]
        query = select(table).where(*where, *beyond).order_by(order).limit(limit + 1)
        with self.read() as tx:
            found = tx.connection.execute(query).all()
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    def wait(self, timeout_s: float, next_due: Callable[[Transaction], float | None]) -> bool:
        """Wait until `next_due` gives a time that has come, and return True; False after `timeout_s` seconds of the
        machine's clock, or when the database is closed."""
        ends = time.monotonic() + timeout_s
        while not self._changes.closed:
            seen = self._changes.count()
            with self.read() as tx:
                due = next_due(tx)
            if due is not None and due <= tx.now:
                return True
            left = ends - time.monotonic()
            if left <= 0:
                return False
            self._changes.wait(seen, min(left, RECHECK_S, RECHECK_S if due is None else due - tx.now))
        return False

    def migrate(self, must_exist: bool = False) -> None:
        """Bring the schema up to date, in one transaction. Raises JobsDatabaseError if it is newer than ours, or if it
        must exist and does not."""
        with self.write() as tx:
            if self.is_postgres:
                tx.connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            current = None
            if inspect(tx.connection).has_table(VERSION_TABLE):
                current = tx.connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
            elif must_exist:
                raise JobsDatabaseError(f"the database {self.name} is not one of galago's jobs")
            if current == HEAD:
                # A database that may not be written is to be told of now, not with the first job.
                tx.connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = version_num"))
            else:
                # Alembic takes longer to import than all the rest, and is seldom needed.
                from galago.jobs.migrations import upgrade

                upgrade(tx.connection, current, self.name)

    def _now(self, connection: Connection) -> float:
        return self._clock() if self._clock else float(connection.execute(NOW).scalar_one())

    @contextmanager
    def _errors_in_words(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error
            raise JobsDatabaseError(f"the job database {self.name} {self._trouble(cause)}") from error

    def _trouble(self, cause: BaseException) -> str:
        said = " ".join(str(cause).split())
        kind = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or ""
        for start, words in TROUBLES.items():
            if kind.startswith(start):
                return words.format(said=said, patience=f"{self._patience_s:g}")
        return f"cannot be used: {said}"


TROUBLES = {
    "SQLITE_BUSY": "was locked by another process for more than {patience} s: stop that process, or try again later",
    "SQLITE_READONLY": "may not be written: check the permissions of the file and of its folder",
    "SQLITE_FULL": "cannot be written, since its disk is full: make room, then try again",
    "SQLITE_IOERR": "cannot be read or written ({said}): check that its disk is there and not full",
    "SQLITE_NOTADB": "is a file of another kind, or damaged: name another file, or move this one away",
    "SQLITE_CORRUPT": "is damaged ({said}): restore a copy, or move it away to begin with an empty one",
    "SQLITE_CANTOPEN": "cannot be opened: check that its folder exists and may be written, and that it is a file",
    "25006": "may not be written: the server or the transaction is read-only",
    "53100": "cannot be written, since the server's disk is full: make room, then try again",
}
"""What to say by the start of SQLite's name of an error, or of PostgreSQL's SQLSTATE."""


def open_database(
    location: str | PathLike[str], patience_s: float, clock: Callable[[], float] | None, must_exist: bool = False
) -> Database:
    """Open and migrate the database at a path or URL. Raises JobsDatabaseError, and InvalidRequest for a URL of
    another kind."""
    url = _url(location)
    if url.get_backend_name() == "postgresql":
        options: dict[str, Any] = {"connect_timeout": max(2, int(patience_s))}
        engine = create_engine(url, pool_pre_ping=True, connect_args=options, **POOL)
        name = url.render_as_string(hide_password=True)
    else:
        name = str(url.database)
        if must_exist and not Path(name).exists():
            raise JobsDatabaseError(f"there is no job database {name}")
        engine = create_engine(url, connect_args={"timeout": patience_s}, **POOL)
        # One that must exist may turn out to be another program's: then nothing of it is changed.
        event.listen(engine, "connect", lambda connection, _: _prepare_sqlite(connection, patience_s, not must_exist))
        event.listen(engine, "begin", _begin_sqlite)
    database = Database(engine, name, patience_s, clock)
    try:
        database.migrate(must_exist)
    except BaseException:
        database.close()
        raise
    return database


def _url(location: str | PathLike[str]) -> URL:
    path = fspath(location)
    if isinstance(location, Path) or "://" not in path:
        return URL.create("sqlite", database=path)
    # As other programs write it: postgres:// is not known to SQLAlchemy, and postgresql:// means another driver to it.
    scheme, _, rest = path.partition("://")
    driver = "postgresql+psycopg" if scheme in ("postgres", "postgresql") else scheme
    try:
        url = make_url(f"{driver}://{rest}")
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername not in ("sqlite", "postgresql+psycopg") or not url.database:
        # Not the whole of it, which may have a password.
        raise InvalidRequest(
            "a job database is the path of an SQLite file, sqlite:///PATH or postgresql://USER@HOST/DATABASE, not "
            f"{shortened(scheme)}://..."
        )
    return url


def _prepare_sqlite(connection: sqlite3.Connection, patience_s: float, may_be_new: bool) -> None:
    """Set up a new connection. Without an isolation level Python begins no transactions of its own."""
    connection.isolation_level = None
    # Committed means on the disk, even if the power fails: a job that was accepted is not lost.
    connection.execute("PRAGMA synchronous = FULL")
    ends = time.monotonic() + patience_s
    while may_be_new:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            # While another process does the same with a new file, SQLite gives up at once instead of waiting.
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > ends:
                raise
            time.sleep(RETRY_S)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes would fail if another wrote in between, instead of waiting.
    reads = connection.get_execution_options().get("galago_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
