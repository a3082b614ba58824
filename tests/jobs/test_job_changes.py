"""Who follows the changes of jobs by a cursor misses none, in whatever order they are committed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from job_clock import Clock, Open

from galago.errors import InvalidRequest
from galago.jobs import Job, NewJob, QueueSettings, open_store
from galago.jobs.store import JobStore

NEW = NewJob("/v1/caption", "{}")
PATIENCE = 60


def told(store: JobStore, after: str, limit: int = 100) -> tuple[list[tuple[str, str]], str]:
    """All that is there behind a cursor, in pages of a limit: ids and states."""
    found: list[Job] = []
    while True:
        jobs, after = store.changes(after, limit)
        found += jobs
        if len(jobs) < limit:
            return [(job.id, job.state) for job in found], after


def now(store: JobStore) -> str:
    jobs, cursor = store.changes(None)
    assert jobs == ()
    return cursor


def test_each_change_is_told_once_and_in_order(opened: Open, clock: Clock) -> None:
    store = opened(settings=QueueSettings(keep_s=0))
    store.add(NEW)
    cursor = now(store)
    assert told(store, cursor) == ([], cursor)
    first, second = (store.add(NEW)[0].id for _ in range(2))
    found, cursor = told(store, cursor)
    assert found == [(first, "queued"), (second, "queued")]
    claimed = store.claim("w", 10, 3)
    store.renew(claimed, 20)
    clock.move(-1000)  # set back, as clocks are
    store.complete(claimed[1], "{}")
    store.cancel(second)
    found, cursor = told(store, cursor)
    # As they are now: that both ran in between is left out.
    assert found == [(claimed[0].id, "running"), (first, "done"), (second, "cancelled")]
    store.renew(claimed, 20)
    assert told(store, cursor)[0] == []
    assert store.retry(second) and store.release(claimed[0])
    assert told(store, cursor)[0] == [(second, "queued"), (claimed[0].id, "queued")]


def test_numbers_of_what_was_removed_are_not_used_again(opened: Open, clock: Clock) -> None:
    store = opened(settings=QueueSettings(keep_s=0))
    cursors = []
    for _ in range(3):
        job, _ = store.add(NEW)
        store.cancel(job.id)
        (last,), cursor = store.changes(cursors[-1] if cursors else "0")
        assert last.id == job.id
        cursors.append(cursor)
        clock.move(1)
        assert store.expire() == 1


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_pages_end_within_one_change_of_many(store: JobStore, limit: int) -> None:
    cursor, ids = now(store), sorted(store.add(NEW)[0].id for _ in range(5))
    assert len(store.claim("w", 10, 5)) == 5
    found, cursor = told(store, cursor, limit)
    assert sorted(found) == [(one, "running") for one in ids] and told(store, cursor)[0] == []


def test_the_last_change_differs_whenever_more_is_told(store: JobStore) -> None:
    cursor, seen = now(store), {store.last_change()}
    job, _ = store.add(NEW)
    for change in (lambda: store.claim("w", 10), lambda: store.cancel(job.id), lambda: store.retry(job.id)):
        seen.add(store.last_change())
        change()
        found, cursor = told(store, cursor)
        assert len(found) == 1 and store.last_change() not in seen


@pytest.mark.parametrize("after", ["", "x", "-1", "1.5", "1-", "1-job_x", "9" * 18, "9" * 30, "٣", "1\n"])
def test_a_cursor_of_nothing_is_refused(store: JobStore, after: str) -> None:
    with pytest.raises(InvalidRequest, match="after") as refused:
        store.changes(after)
    assert refused.value.param == "after"


def test_what_is_committed_late_is_not_lost(location: str) -> None:
    """A transaction begins, others change what they want meanwhile and are told, and then it ends."""
    begun, go = threading.Event(), threading.Event()

    def stay(job: Job) -> list[object]:
        begun.set()
        assert go.wait(PATIENCE)
        return []

    with (
        closing(open_store(location)) as store,
        closing(open_store(location, callbacks=stay)) as slow,  # type: ignore[arg-type]
        ThreadPoolExecutor(1) as thread,
    ):
        cursor = now(store)
        late = thread.submit(slow.add, NEW)
        try:
            assert begun.wait(PATIENCE)
            # SQLite lets nobody else write meanwhile.
            others = [] if not location.startswith("postgres") else [store.add(NEW)[0].id for _ in range(3)]
            found, cursor = told(store, cursor)
            assert {one for one, _ in found} <= {*others}
        finally:
            go.set()
        wanted = sorted((one, "queued") for one in (late.result()[0].id, *others))
        end = time.monotonic() + PATIENCE
        while sorted(found) != wanted:
            # Others of the server's databases may have transactions too.
            assert time.monotonic() < end, (found, wanted)
            more, cursor = told(store, cursor)
            found += more


def test_many_writers_at_once_lose_nothing(location: str) -> None:
    last: dict[str, str] = {}
    over = threading.Event()

    def follow(store: JobStore, cursor: str) -> None:
        while True:
            is_last = over.is_set()
            found, cursor = told(store, cursor, 7)
            last.update(found)
            if is_last:
                return

    def work(store: JobStore, number: int) -> None:
        for _ in range(5):
            store.add(NEW)
            for job in store.claim(f"w{number}", 60, 2):
                if job.claims % 2:
                    store.release(job)
                else:
                    store.complete(job, "{}")

    with (
        closing(open_store(location)) as reader,
        closing(open_store(location)) as one,
        closing(open_store(location)) as two,
        ThreadPoolExecutor(7) as threads,
    ):
        cursor = now(reader)
        following = threads.submit(follow, reader, cursor)
        for done in [threads.submit(work, (one, two)[i % 2], i) for i in range(6)]:
            done.result()
        jobs = {job.id: job.state for job in reader.page(limit=1000).jobs}
        assert len(jobs) == 30
        over.set()
        following.result()
    assert last == jobs
