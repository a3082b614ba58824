"""galago jobs: looking into a queue, and changing it, without a server."""

import json
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from galago.cli.jobs import PAGE
from galago.jobs import Job, NewJob, open_store
from galago.jobs.store import JobStore
from galago.jobs.telling import callbacks, job_json

HOOK = "https://example.org/told"
NO_JOB = "job_00000000000000000000000000"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GALAGO_JOBS_DB", str(tmp_path / "jobs.db"))
    return tmp_path / "jobs.db"


@pytest.fixture
def store(database: Path) -> Iterator[JobStore]:
    store = open_store(database, callbacks=callbacks)
    yield store
    store.close()


def add(store: JobStore, count: int = 1, path: str = "/v1/query", hook: str | None = None) -> list[str]:
    return [store.add(NewJob(path, "{}", callback_url=hook))[0].id for _ in range(count)]


def fail(store: JobStore, count: int, error: str = "no image is there") -> list[str]:
    claimed = store.claim("a worker", 60, count)
    for job in claimed:
        store.fail(job, error, permanent=True)
    return [job.id for job in claimed]


def job(store: JobStore, job_id: str) -> Job:
    found = store.get(job_id)
    assert found is not None
    return found


def states(store: JobStore, ids: list[str]) -> list[str]:
    return [job(store, one).state for one in ids]


def test_a_table_of_jobs_the_newest_first(galago: Any, store: JobStore) -> None:
    ids = add(store, 2) + add(store, path="/v1/caption")
    fail(store, 1, "no image is there,\nand none is " + "far and wide " * 20)
    ran = galago("jobs")
    head, *rows = [line.split(maxsplit=5) for line in ran.out.splitlines()]
    assert head == ["ID", "STATUS", "PATH", "ATTEMPTS", "AGE", "ERROR"]
    assert [row[:4] for row in rows] == [
        [ids[2], "queued", "/v1/caption", "0/3"],
        [ids[1], "queued", "/v1/query", "0/3"],
        [ids[0], "failed", "/v1/query", "1/3"],
    ]
    assert rows[2][5].startswith("no image is there, and none is far") and "..." in rows[2][5]
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in galago("jobs", "list").out.splitlines()] == ["ID", *ids[::-1]]


def test_a_list_of_some_says_how_to_see_more(galago: Any, store: JobStore) -> None:
    ids = add(store, 3) + add(store, path="/v1/caption")
    [failed] = fail(store, 1)

    def listed(*args: object) -> tuple[list[str], str]:
        ran = galago("jobs", "list", "--json", *args)
        assert ran.code == 0 and ran.json == [job_json(job(store, one["id"])) for one in ran.json]
        return [one["id"] for one in ran.json], ran.err

    assert listed("--status", "failed") == ([failed], "")
    assert listed("--status", "failed", "--status", "queued") == (ids[::-1], "")
    assert listed("--path", "/v1/caption") == ([ids[3]], "")
    assert listed("--limit", 2) == (ids[:1:-1], f"there are more: --after {ids[2]}\n")
    assert listed("--limit", 2, "--after", ids[2]) == (ids[1::-1], "")
    assert listed("--status", "done") == ([], "")
    empty = galago("jobs", "list", "--status", "done")
    assert (empty.code, empty.out, empty.err) == (0, "", "none\n")


def test_all_about_a_job(galago: Any, store: JobStore) -> None:
    [done] = add(store, hook=HOOK)
    [claimed] = store.claim("a worker", 60)
    store.complete(claimed, '{"answer": "blue"}')
    told = galago("jobs", "show", done).out
    assert done in told and '{"answer": "blue"}' in told and "1 of 3" in told and HOOK in told
    assert [event for event in ("job.queued", "job.started", "job.done") if event in told][-1] == "job.done"
    assert galago("jobs", "show", done, "--json").json == [job_json(job(store, done))]
    assert f"no job {NO_JOB}" in galago("jobs", "show", NO_JOB).error


def test_jobs_that_wait_and_run_are_cancelled_and_it_is_told(galago: Any, store: JobStore) -> None:
    running, waiting, ended = add(store, hook=HOOK) + add(store, 2, hook=HOOK)
    claimed = store.claim("a worker", 60)
    store.cancel(ended)
    ran = galago("jobs", "cancel", running, NO_JOB, "what?", waiting, ended, waiting)
    assert ran.out.splitlines() == [f"{one}: cancelled" for one in (running, waiting, ended)]
    assert ran.code == 2 and [line.split(":")[0] for line in ran.err.splitlines()] == ["error", "error"]
    assert NO_JOB in ran.err and "'what?'" in ran.err
    assert states(store, [running, waiting]) == ["cancelled", "cancelled"]
    assert store.renew(claimed, 60) == set()
    for one in (running, waiting, ended):
        assert [told.event for told in store.deliveries.page(job_id=one).deliveries].count("job.cancelled") == 1


def test_a_job_that_is_done_is_not_cancelled(galago: Any, store: JobStore) -> None:
    add(store)
    [claimed] = store.claim("a worker", 60)
    store.complete(claimed, "{}")
    assert "it is done" in galago("jobs", "cancel", claimed.id).error
    assert "is done" in galago("jobs", "retry", claimed.id).error


def test_jobs_are_queued_again_by_their_ids(galago: Any, store: JobStore) -> None:
    ids = add(store, 3)
    assert fail(store, 2) == ids[:2]
    ran = galago("jobs", "retry", ids[1], ids[2], "--json")
    assert ran.code == 2 and f"{ids[2]} is queued" in ran.err
    assert ran.json == [job_json(job(store, ids[1]))]
    assert states(store, ids) == ["failed", "queued", "queued"] and job(store, ids[1]).error is None


def test_all_that_failed_are_queued_again_once(galago: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = add(store, PAGE + 3)
    [cancelled] = add(store)
    fail(store, len(ids))
    store.cancel(cancelled)
    retry, others = JobStore.retry, [ids[1]]

    def beside_another(self: JobStore, job_id: str) -> Job | None:
        if others:
            retry(self, others.pop())
        return retry(self, job_id)

    monkeypatch.setattr(JobStore, "retry", beside_another)
    ran = galago("jobs", "retry", "--failed")
    assert (ran.code, ran.out, ran.err) == (0, f"jobs queued again: {len(ids) - 1}\n", "")
    assert set(states(store, ids)) == {"queued"} and states(store, [cancelled]) == ["cancelled"]
    assert galago("jobs", "retry", "--failed").out == "jobs queued again: 0\n"
    [failed] = fail(store, 1)
    assert [one["id"] for one in galago("jobs", "retry", "--failed", "--json").json] == [failed]


def test_callbacks_are_listed_and_sent_again(galago: Any, store: JobStore) -> None:
    first, second = add(store, 2, hook=HOOK)
    for delivery in store.deliveries.claim("a worker", 60, 2):
        if delivery.job_id == first:
            store.deliveries.failed(delivery, "nobody answers", permanent=True)
        else:
            store.deliveries.delivered(delivery, 200)
    listed = galago("jobs", "deliveries", "--json").json
    assert [(one["job_id"], one["state"], one["event"]) for one in listed] == [
        (second, "delivered", "job.queued"),
        (first, "dead", "job.queued"),
    ]
    assert listed[1]["url"] == HOOK and json.loads(listed[1]["body"])["data"]["id"] == first
    _, row = galago("jobs", "deliveries", "--job", first).out.splitlines()
    assert row.split()[:4] == [listed[1]["id"], first, "dead", "job.queued"] and row.endswith("nobody answers")
    assert galago("jobs", "deliveries", "--status", "delivered", "--json").json == [listed[0]]

    assert galago("jobs", "replay", "--dead").out == "callbacks to be sent again: 1\n"
    assert store.deliveries.counts().by_state == {"pending": 1, "delivered": 1, "dead": 0}
    ran = galago("jobs", "replay", first, listed[0]["id"])
    assert ran.code == 2 and "not the id of a callback" in ran.err and ran.out == f"{listed[0]['id']}: pending\n"
    assert {one.id for one in store.deliveries.claim("another", 60, 9)} == {one["id"] for one in listed}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("list", "--status", "lost"), "--status must be queued, running, done, failed or cancelled, not 'lost'"),
        (("deliveries", "--status", "done"), "--status must be pending, delivered or dead"),
        (("list", "--limit", "0"), "limit must be from 1 to 1000"),
        (("list", "--after", "x"), "after must be"),
        (("deliveries", "--job", NO_JOB), f"no job {NO_JOB}"),
        (("retry",), "--failed"),
        (("retry", NO_JOB, "--failed"), "--failed"),
        (("replay",), "--dead"),
        (("cancel",), "ID"),
        (("--jobs-db", "other.db", "retry", "--failed"), "galago jobs retry --jobs-db"),
        (("--json", "list"), "galago jobs list --json"),
        (("list", "--jobs-db", "mysql://me:secret@box/jobs"), "not mysql://..."),
    ],
)
@pytest.mark.usefixtures("store")
def test_wrong_words(galago: Any, args: tuple[str, ...], said: str) -> None:
    error = galago("jobs", *args).error
    assert said in error and "secret" not in error


COMMANDS = (
    ("list",), ("show", NO_JOB), ("cancel", NO_JOB), ("retry", "--failed"), ("deliveries",), ("replay", "--dead")
)  # fmt: skip


@pytest.mark.parametrize("args", COMMANDS)
def test_a_database_that_is_not_there_is_not_made(galago: Any, database: Path, args: tuple[str, ...]) -> None:
    for flags, file in (((), database), (("--jobs-db", database.with_name("jbos.db")), "jbos.db")):
        assert f"no job database {database.parent}" in (error := galago("jobs", *args, *flags).error)
        assert str(file) in error
    assert list(database.parent.iterdir()) == []


def test_where_none_is_named_it_is_the_users_own(
    galago: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: JobStore, database: Path
) -> None:
    monkeypatch.delenv("GALAGO_JOBS_DB")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    error = galago("jobs").error
    assert f"no job database {tmp_path}/state/galago/jobs.db" in error and "--jobs-db" in error
    assert not (tmp_path / "state").exists()
    [mine] = add(store)
    assert mine in galago("jobs", "--jobs-db", database).out
    assert mine in galago("jobs", "list", "--jobs-db", f"sqlite:///{database}").out


@pytest.mark.parametrize("kind", ["another program's", "empty", "text"])
def test_a_file_of_another_kind_stays_as_it_is(galago: Any, database: Path, kind: str) -> None:
    if kind == "another program's":
        other = sqlite3.connect(database)
        other.execute("CREATE TABLE addresses (name TEXT)")
        other.commit()
        other.close()
    else:
        database.write_text("" if kind == "empty" else "what to buy: " * 100)
    before = database.read_bytes()
    error = galago("jobs", "retry", "--failed").error
    assert str(database) in error and ("not one of galago's jobs" in error or "another kind" in error)
    assert database.read_bytes() == before and list(database.parent.iterdir()) == [database]


def test_without_sqlalchemy_it_says_what_to_install(
    galago: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "galago.jobs.database", raising=False)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    assert "pip install 'galago[jobs]'" in galago("jobs").error
