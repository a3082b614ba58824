"""Every way of a job from one state to another, on both databases."""

from dataclasses import replace

import pytest
from job_clock import Clock, Open

from galago.errors import InvalidRequest
from galago.jobs import Backoff, Job, NewJob, QueueSettings
from galago.jobs.store import JobStore

NEW = NewJob("/v1/caption", '{"image_url": "data:image/png;base64,iVBORw0K"}')
STEADY = QueueSettings(retry=Backoff(5, 30, jitter=0), keep_s=100)


def add(store: JobStore, **changes: object) -> Job:
    return store.add(replace(NEW, **changes))[0]  # type: ignore[arg-type]


def claim(store: JobStore, worker: str = "w", lease_s: float = 10) -> Job:
    (job,) = store.claim(worker, lease_s)
    return job


def test_a_job_is_kept_as_it_came(store: JobStore, clock: Clock) -> None:
    new = NewJob(
        "/v1/caption", '{"ü": "\\ud800 😀"}', image=bytes(range(256)), image_path="a/b.png", priority=7, max_attempts=2,
        delay_s=1.5, keep_s=60, idempotency_key="k", callback_url="http://a/b", external_id="41", extra='{"token": 1}',
    )  # fmt: skip
    job, is_new = store.add(new)
    assert is_new and store.get(job.id) == job
    same = (
        "path",
        "image_path",
        "priority",
        "max_attempts",
        "keep_s",
        "idempotency_key",
        "callback_url",
        "external_id",
    )
    assert [getattr(job, name) for name in same] == [getattr(new, name) for name in same]
    assert (job.state, job.attempts, job.claims, job.extra) == ("queued", 0, 0, new.extra)
    assert (job.created_at, job.not_before) == (clock.now, clock.now + 1.5)
    found = store.read_input(job.id)
    assert found is not None and (found.body, found.image) == (new.body, new.image)
    assert store.get("job_0") is None and store.read_input("job_0") is None


def test_done(opened: Open, clock: Clock) -> None:
    store = opened(settings=STEADY)
    added = add(store)
    clock.move(3)
    job = claim(store)
    assert (job.id, job.state, job.attempts, job.leased_by) == (added.id, "running", 1, "w")
    assert (job.started_at, job.lease_until) == (clock.now, clock.now + 10)
    assert store.claim("other", 10) == []
    clock.move(2)
    done = store.complete(job, '{"caption": "a"}')
    assert done is not None and done == store.get(job.id)
    assert (done.state, done.result, done.leased_by, done.lease_until) == ("done", '{"caption": "a"}', None, None)
    assert (done.finished_at, done.expires_at) == (clock.now, clock.now + 100)
    assert store.complete(job, "{}") is None and store.fail(job, "late") is None and store.get(job.id) == done


def test_the_highest_priority_then_the_oldest_goes_first(store: JobStore) -> None:
    ids = [add(store, priority=priority).id for priority in (0, 5, -5, 5, 0)]
    assert [job.id for job in store.claim("w", 10, 3)] == [ids[1], ids[3], ids[0]]
    assert [job.id for job in store.claim("w", 10, 3)] == [ids[4], ids[2]]


def test_a_job_waits_for_its_time(store: JobStore, clock: Clock) -> None:
    add(store, delay_s=1)
    assert store.claim("w", 10) == [] and store.counts().oldest_s is None
    clock.move(1)
    assert claim(store).attempts == 1


def test_waits_double_between_attempts_and_then_it_has_failed(opened: Open, clock: Clock) -> None:
    store = opened(settings=STEADY)
    add(store, max_attempts=5)
    for attempt, wait_s in enumerate((5, 10, 20, 30), 1):
        failed = store.fail(claim(store), f"out of memory {attempt}")
        assert failed is not None and (failed.state, failed.attempts) == ("queued", attempt)
        assert failed.not_before == clock.now + wait_s
        clock.move(wait_s - 1)
        assert store.claim("w", 10) == []
        clock.move(1)
    failed = store.fail(claim(store), "out of memory 5")
    assert failed is not None and (failed.state, failed.error, failed.attempts) == ("failed", "out of memory 5", 5)
    assert not failed.error_is_permanent and failed.expires_at == clock.now + 100


def test_waits_are_longer_by_a_random_part() -> None:
    waits = {Backoff(8, 100, jitter=0.5).delay_s(2) for _ in range(50)}
    assert len(waits) > 1 and all(16 <= wait <= 24 for wait in waits)
    assert 100 <= Backoff(8, 100, jitter=0.5).delay_s(5000) <= 150


def test_what_cannot_succeed_is_not_tried_again(store: JobStore) -> None:
    add(store)
    failed = store.fail(claim(store), "no such file \0 \ud800", permanent=True)
    assert failed is not None and (failed.state, failed.error_is_permanent) == ("failed", True)
    assert failed.error == "no such file \ufffd ?"


def test_a_lost_job_is_given_to_another_and_the_first_changes_nothing(store: JobStore, clock: Clock) -> None:
    add(store)
    lost = claim(store, "slow")
    clock.move(9)
    assert store.renew([lost], 10) == {lost.id}
    clock.move(9)
    assert store.claim("w", 10) == []
    clock.move(1)
    job = claim(store)
    assert (job.id, job.attempts, job.claims) == (lost.id, 2, 2)
    assert store.renew([lost], 10) == set()
    assert store.complete(lost, "{}") is store.fail(lost, "no") is store.release(lost) is None
    assert store.get(job.id) == job
    assert store.complete(job, "{}") is not None


def test_a_lease_that_ran_out_and_nobody_took_is_still_held(store: JobStore, clock: Clock) -> None:
    add(store)
    job = claim(store)
    clock.move(60)
    assert store.complete(job, "{}") is not None


def test_two_leases_of_one_worker_are_two(store: JobStore, clock: Clock) -> None:
    job_id = add(store).id
    first = claim(store)
    store.cancel(job_id)
    store.retry(job_id)
    second = claim(store)
    assert (first.attempts, second.attempts) == (1, 1)
    assert store.complete(first, "1") is None and store.complete(second, "2") is not None


def test_a_job_that_takes_its_workers_along_fails_in_the_end(store: JobStore, clock: Clock) -> None:
    job_id = add(store, max_attempts=2).id
    for _ in range(2):
        claim(store)
        clock.move(10)
    assert store.claim("w", 10) == []
    job = store.get(job_id)
    assert job is not None and (job.state, job.error) == ("failed", "its worker was lost in attempt 2 of 2")


def test_a_worker_that_stops_gives_back_what_it_has(store: JobStore) -> None:
    add(store, max_attempts=1)
    released = store.release(claim(store))
    assert released is not None and (released.state, released.attempts, released.max_attempts) == ("queued", 1, 2)
    assert store.fail(claim(store), "no", permanent=False).state == "failed"  # type: ignore[union-attr]


def test_what_a_worker_cannot_do_it_leaves_to_others(store: JobStore) -> None:
    other, job = add(store), store.add(NewJob("/add_job", "{}"))[0]
    assert [one.id for one in store.claim("w", 10, 5, without=["/add_job"])] == [other.id]
    assert not store.wait(0, without=["/add_job"]) and store.wait(0)
    assert claim(store).id == job.id


@pytest.mark.parametrize("runs", [False, True])
def test_cancelled(store: JobStore, clock: Clock, runs: bool) -> None:
    job_id = add(store).id
    held = store.claim("w", 10) if runs else []
    clock.move(1)
    cancelled = store.cancel(job_id)
    assert cancelled is not None and (cancelled.state, cancelled.finished_at) == ("cancelled", clock.now)
    assert store.renew(held, 10) == set() and store.claim("w", 10) == []
    clock.move(1)
    assert store.cancel(job_id) == cancelled
    assert store.cancel("job_0") is None


def test_retried(store: JobStore, clock: Clock) -> None:
    job_id = add(store).id
    store.fail(claim(store), "no", permanent=True)
    job = store.retry(job_id)
    assert job is not None and (job.state, job.attempts, job.error, job.finished_at) == ("queued", 0, None, None)
    assert (job.expires_at, job.error_is_permanent) == (None, False)
    with pytest.raises(InvalidRequest, match="is queued"):
        store.retry(job_id)
    store.complete(claim(store), "{}")
    with pytest.raises(InvalidRequest, match="only a failed or cancelled job can be tried again"):
        store.retry(job_id)
    assert store.retry("job_0") is None


def test_finished_jobs_go_when_their_time_is_over(opened: Open, clock: Clock) -> None:
    store = opened(settings=STEADY)
    ids = [add(store, keep_s=keep_s).id for keep_s in (None, 10, 0, 10)]
    for job in store.claim("w", 10, 3):
        store.complete(job, "{}")
    assert store.expire() == 1 and store.get(ids[2]) is None and store.read_input(ids[2]) is None
    clock.move(10)
    assert (store.expire(), store.expire()) == (1, 0)
    clock.move(1e9)
    assert store.expire() == 1 and [job.id for job in store.page().jobs] == [ids[3]]


def test_jobs_may_be_kept_for_ever(opened: Open, clock: Clock) -> None:
    store = opened(settings=QueueSettings(keep_s=None))
    add(store)
    done = store.complete(claim(store), "{}")
    assert done is not None and done.expires_at is None
    clock.move(1e9)
    assert store.expire() == 0


def test_a_key_adds_one_job(store: JobStore) -> None:
    first, is_new = store.add(replace(NEW, idempotency_key="k"))
    assert is_new and store.add(replace(NEW, idempotency_key="k", priority=9)) == (first, False)
    with pytest.raises(InvalidRequest, match="'k' was used for another request"):
        store.add(replace(NEW, idempotency_key="k", image=b"x"))
    store.cancel(first.id)
    assert store.add(replace(NEW, idempotency_key="k")) == (store.get(first.id), False)
    assert add(store).id != add(store).id


def test_pages(store: JobStore) -> None:
    ids = [add(store, external_id=str(i % 2), path=f"/{i % 3}").id for i in range(7)]
    first = store.page(limit=3)
    assert [job.id for job in first.jobs] == ids[:3:-1] and first.after == ids[4]
    second = store.page(after=first.after, limit=4)
    assert [job.id for job in second.jobs] == ids[3::-1] and second.after is None
    assert [job.id for job in store.page(newest_first=False, after=ids[4]).jobs] == ids[5:]
    assert [job.id for job in store.page(external_id="1", newest_first=False).jobs] == ids[1::2]
    assert [job.id for job in store.page(path="/0", newest_first=False).jobs] == ids[::3]
    store.cancel(ids[2])
    assert [job.id for job in store.page(["cancelled", "done"]).jobs] == [ids[2]]
    for wrong in ({"states": ["gone"]}, {"after": "job_1"}, {"limit": 0}, {"limit": 1001}):
        with pytest.raises(InvalidRequest):
            store.page(**wrong)  # type: ignore[arg-type]


def test_counts(store: JobStore, clock: Clock) -> None:
    for path in ("/a", "/a", "/b"):
        add(store, path=path)
        clock.move(2)
    store.cancel(claim(store).id)
    counts = store.counts()
    assert counts.by_state == {"queued": 2, "running": 0, "done": 0, "failed": 0, "cancelled": 1}
    assert counts.oldest_s == 4 and store.counts("/b").oldest_s == 2
    assert store.counts("/c").oldest_s is None and sum(store.counts("/c").by_state.values()) == 0


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"priority": 1001}, "priority"), ({"max_attempts": 0}, "max_attempts"), ({"delay_s": -1}, "delay_s"),
        ({"delay_s": float("nan")}, "delay_s"), ({"keep_s": -1}, "keep_s"), ({"external_id": "x" * 256}, "external_id"),
        ({"idempotency_key": ""}, "idempotency_key"), ({"extra": "\0"}, "extra"), ({"body": "\ud800"}, "body"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_job(changes: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        replace(NEW, **changes)  # type: ignore[arg-type]
    assert wrong.value.param == param


def test_what_is_too_large_is_not_taken(opened: Open) -> None:
    store = opened(settings=QueueSettings(max_body_bytes=100, max_image_bytes=10))
    with pytest.raises(InvalidRequest, match="the image of a job may have 10 bytes, and this has 11"):
        add(store, image=bytes(11))
    with pytest.raises(InvalidRequest, match="the body of a job may have 100 bytes"):
        add(store, body="ü" * 51)
    assert store.page().jobs == ()


def test_what_was_added_is_there_after_a_restart(opened: Open) -> None:
    first = opened()
    job = add(first, image=b"x")
    first.close()
    second = opened()
    found = second.read_input(job.id)
    assert second.get(job.id) == job and found is not None and found.image == b"x"
