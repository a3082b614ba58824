"""How a database is opened, and what is said of one that cannot be."""

import ast
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from postgres import new_database
from sqlalchemy import inspect, text

from galago.errors import InvalidRequest, JobsDatabaseError
from galago.jobs import NewJob, QueueSettings, open_store
from galago.jobs.database import open_database
from galago.jobs.schema import HEAD, VERSION_TABLE, metadata

NEW = NewJob("/v1/caption", "{}")
QUICK = QueueSettings(patience_s=0.1)


def one_sentence(error: JobsDatabaseError) -> str:
    assert error.code == "jobs_database" and "\n" not in str(error) and "Traceback" not in str(error)
    return str(error)


def refused(location: str | Path) -> str:
    with pytest.raises(JobsDatabaseError) as error:
        open_store(location, settings=QUICK)
    return one_sentence(error.value)


def test_an_empty_database_gets_the_tables_that_the_program_knows(location: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    database = open_database(location, 10, None)
    with database.read() as tx:
        context = MigrationContext.configure(tx.connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD
    database.close()


def test_one_that_must_exist_is_not_made(location: str) -> None:
    open_database_unmigrated(location).close()
    with pytest.raises(JobsDatabaseError, match=r"is not one of galago's jobs|there is no job database"):
        open_store(location, must_exist=True)
    database = open_database_unmigrated(location)
    with database.read() as tx:
        assert inspect(tx.connection).get_table_names() == []
    database.close()
    with closing(open_store(location)) as first, closing(open_store(location, must_exist=True)) as second:
        job, _ = first.add(NEW)
        assert second.get(job.id) == job


def test_it_may_lie_in_another_applications_database(location: str) -> None:
    """Such as one with a table of jobs of its own, and migrations of its own."""
    database = open_database(location, 10, None)
    with database.write() as tx:
        for statement in (
            "CREATE TABLE jobs (id INTEGER)", "CREATE TABLE alembic_version (version_num TEXT)",
            "INSERT INTO alembic_version VALUES ('theirs')",
            "DROP TABLE galago_jobs", "DROP TABLE galago_job_inputs", "DROP TABLE galago_deliveries",
            "DROP TABLE galago_changes", f"DROP TABLE {VERSION_TABLE}",
        ):  # fmt: skip
            tx.connection.execute(text(statement))
    database.close()
    with closing(open_store(location)) as store:
        assert store.add(NEW)[1]


def test_one_of_a_newer_program_is_refused(location: str) -> None:
    database = open_database(location, 10, None)
    with database.write() as tx:
        tx.connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    database.close()
    said = refused(location)
    assert "written by a newer Galago (its schema is 9999, this one knows up to 0001)" in said


def test_the_same_migration_makes_all_or_nothing(location: str) -> None:
    """The last of its statements fails, and the next start finds no half of it."""
    database = open_database(location, 10, None)
    with database.write() as tx:
        for statement in (
            "DROP TABLE galago_jobs", "DROP TABLE galago_job_inputs", "DROP TABLE galago_changes",
            f"DROP TABLE {VERSION_TABLE}",
        ):  # fmt: skip
            tx.connection.execute(text(statement))
    database.close()
    assert "galago_deliveries" in refused(location)
    database = open_database_unmigrated(location)
    with database.write() as tx:
        tx.connection.execute(text("DROP TABLE galago_deliveries"))
    database.close()
    with closing(open_store(location)) as store:
        assert store.add(NEW)[1]


def open_database_unmigrated(location: str):  # type: ignore[no-untyped-def]
    """With whatever tables there are."""
    from galago.jobs import database

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database.Database, "migrate", lambda *_: None)
        return open_database(location, 10, None)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("mysql://root:secret@host/db", "not mysql://..."), ("postgresql://u:secret@host", "not postgresql://..."),
        ("sqlite://", "not sqlite://..."), ("postgres://u:secret@host:port/db", "not postgres://..."),
    ],
)  # fmt: skip
def test_another_kind_of_url_is_refused(location: str, said: str) -> None:
    with pytest.raises(
        InvalidRequest, match="the path of an SQLite file, sqlite:///PATH or postgresql://USER"
    ) as wrong:
        open_store(location)
    assert said in str(wrong.value) and "secret" not in str(wrong.value)


def test_a_url_of_a_file(tmp_path: Path) -> None:
    for location in (f"sqlite:///{tmp_path}/a.db", tmp_path / "b ?.db", str(tmp_path / "c.db")):
        open_store(location).close()
    assert {f.name for f in tmp_path.iterdir()} == {"a.db", "b ?.db", "c.db"}


def test_a_folder_that_is_not_there_and_one_in_place_of_a_file(tmp_path: Path) -> None:
    assert "cannot be opened: check that its folder exists" in refused(tmp_path / "gone" / "jobs.db")
    assert "cannot be opened" in refused(tmp_path)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    file.write_bytes(b"GIF89a" * 1000)
    assert f"the job database {file} is a file of another kind, or damaged" in refused(file)
    assert file.read_bytes() == b"GIF89a" * 1000


def test_a_damaged_file(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    with closing(open_store(file)) as store:
        for _ in range(50):
            store.add(NEW)
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    assert "damaged" in refused(file)


def test_a_file_that_may_not_be_written(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    open_store(file).close()
    assert "may not be written: check the permissions" in refused(f"sqlite:///file:{file}?mode=ro&uri=true")
    if os.getuid() != 0:  # who may write everything
        file.chmod(0o400)
        assert "may not be written: check the permissions" in refused(file)


def test_a_file_that_is_locked_for_long(tmp_path: Path) -> None:
    file = tmp_path / "jobs.db"
    store = open_store(file, settings=QUICK)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "was locked by another process for more than 0.1 s" in refused(file)
        with pytest.raises(JobsDatabaseError, match="was locked by another process"):
            store.add(NEW)
        assert store.page().jobs == () and store.counts().oldest_s is None  # reading needs no lock
        other.execute("ROLLBACK")
    assert store.add(NEW)[1]
    store.close()


FULL = """if True:
    import resource, signal, sys
    from galago.errors import JobsDatabaseError
    from galago.jobs import NewJob, open_store
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = open_store(sys.argv[1])
    job, _ = store.add(NewJob("/v1/caption", "{}"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), limits[1]))
    try:
        store.add(NewJob("/v1/caption", "x" * 2_000_000))
    except JobsDatabaseError as error:
        print(error)
    assert [j.id for j in store.page().jobs] == [job.id]
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.add(NewJob("/v1/caption", "x" * 2_000_000))[1]
    assert len(store.page().jobs) == 2
"""


def test_where_a_file_may_not_grow_nothing_is_lost_and_all_goes_on_later(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "jobs.db"), "500000"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be read or written (disk I/O error): check that its disk is there and not full" in done.stdout


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 300 kB, where one can be mounted."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "galago-test", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs to be allowed to mount a small file system")
    try:
        with closing(open_store(tmp_path / "jobs.db")) as store:
            job, _ = store.add(NEW)
            with pytest.raises(JobsDatabaseError, match="its disk is full: make room") as error:
                store.add(NewJob("/v1/caption", "x" * 500_000))
            one_sentence(error.value)
            assert [j.id for j in store.page().jobs] == [job.id]
        (tmp_path / "filler").write_bytes(bytes(os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize))
        assert "full" in refused(tmp_path / "other.db")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    said = refused(f"postgresql://user:secret@/jobs?host={tmp_path}")
    assert "cannot be used: connection" in said and "secret" not in said


def test_a_read_only_server(postgres: str) -> None:
    location = new_database(postgres)
    open_store(location).close()
    said = refused(f"{location}&options=-c%20default_transaction_read_only%3Don")
    assert "may not be written: the server or the transaction is read-only" in said


def test_a_server_that_was_restarted_is_reached_again(postgres: str) -> None:
    import psycopg

    location = new_database(postgres)
    with closing(open_store(location)) as store:
        store.add(NEW)
        with psycopg.connect(location, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert store.add(NEW)[1]


IMPORTED = (
    "import sys, galago, galago.jobs; print([m for m in ('sqlalchemy', 'alembic', 'psycopg') if m in sys.modules])"
)


def test_what_runs_no_jobs_imports_none_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert ast.literal_eval(done.stdout) == []


@pytest.mark.parametrize(
    ("missing", "location", "extra"),
    [("sqlalchemy", "jobs.db", "jobs"), ("alembic", "jobs.db", "jobs"), ("psycopg", "postgresql://h/d", "postgres")],
)
def test_what_is_not_installed_is_named(missing: str, location: str, extra: str, tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        sys.modules[{missing!r}] = None
        from galago.jobs import open_store
        try:
            open_store({location!r})
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == f"JobsDatabaseError this job database needs {missing}: pip install 'galago[{extra}]'\n", done
