"""Callbacks: written with the change that they tell of, sent in the order of their job, tried for hours."""

from collections.abc import Callable

import pytest
from job_clock import Clock, Open

from galago.errors import InvalidRequest
from galago.jobs import Backoff, Callback, Delivery, Job, NewJob, QueueSettings
from galago.jobs.store import JobStore

NEW = NewJob("/v1/caption", "{}")
STEADY = QueueSettings(redelivery=Backoff(5, 30, jitter=0), max_deliveries=3, keep_s=0)


def tell(job: Job) -> list[Callback]:
    """One of each state; two of the last, as some clients have it."""
    ends = [Callback("http://a/text", "text", f'{{"text": "{job.error}ü"}}')] if job.finished_at else []
    return [*ends, Callback("http://a/state", job.state, f'{{"id":"{job.id}"}}')]


@pytest.fixture
def store(opened: Open) -> JobStore:
    return opened(callbacks=tell, settings=STEADY)


def finish(store: JobStore) -> Job:
    """A job that is done, with callbacks for queued, running, text and done."""
    store.add(NEW)
    (job,) = store.claim("w", 10)
    assert store.complete(job, "{}")
    return job


def send(store: JobStore, limit: int = 10) -> list[Delivery]:
    return store.deliveries.claim("sender", 20, limit)


def events(store: JobStore, **which: str) -> list[str]:
    return [delivery.event for delivery in store.deliveries.page(newest_first=False, **which).deliveries]  # type: ignore[arg-type]


def test_each_change_of_a_job_is_told_of_in_order(store: JobStore, clock: Clock) -> None:
    job = finish(store)
    assert events(store) == ["queued", "running", "text", "done"]
    for sequence, event in enumerate(("queued", "running", "text", "done"), 1):
        (sent,) = send(store)
        assert (sent.job_id, sent.sequence, sent.event, sent.attempts) == (job.id, sequence, event, 1)
        assert send(store) == []
        delivered = store.deliveries.delivered(sent, 204)
        assert delivered is not None and (delivered.state, delivered.last_status) == ("delivered", 204)
        assert delivered.delivered_at == clock.now and delivered == store.deliveries.get(sent.id)
    assert send(store) == [] and store.deliveries.counts().by_state == {"pending": 0, "delivered": 4, "dead": 0}
    assert store.deliveries.page(["delivered"]).deliveries[1].body == '{"text": "Noneü"}'


def test_jobs_do_not_wait_for_each_other(store: JobStore) -> None:
    jobs = [finish(store).id for _ in range(3)]
    sent = send(store)
    assert [delivery.job_id for delivery in sent] == jobs
    store.deliveries.failed(sent[0], "refused")
    for delivery in sent[1:]:
        store.deliveries.delivered(delivery, 200)
    assert [(delivery.job_id, delivery.event) for delivery in send(store)] == [(job, "running") for job in jobs[1:]]


def test_a_new_change_waits_for_what_is_not_delivered(store: JobStore, clock: Clock) -> None:
    store.add(NEW)
    (queued,) = send(store)
    (job,) = store.claim("w", 100)
    assert send(store) == []
    assert store.deliveries.failed(queued, "503", status=503)
    store.complete(job, "{}")
    assert send(store) == []
    clock.move(5)
    (again,) = send(store)
    assert (again.id, again.attempts) == (queued.id, 2)


def test_waits_double_and_then_it_is_dead_and_the_next_goes_out(store: JobStore, clock: Clock) -> None:
    finish(store)
    for attempt, wait_s in ((1, 5), (2, 10)):
        (sent,) = send(store)
        failed = store.deliveries.failed(sent, f"no route {attempt}")
        assert failed is not None and (failed.state, failed.next_at) == ("pending", clock.now + wait_s)
        clock.move(wait_s - 1)
        assert send(store) == []
        clock.move(1)
    (sent,) = send(store)
    dead = store.deliveries.failed(sent, "refused \0", status=500)
    assert dead is not None and (dead.state, dead.last_error, dead.last_status) == ("dead", "refused \ufffd", 500)
    assert dead.attempts == 3 and dead.next_at is None
    (following,) = send(store)
    assert following.event == "running"


def test_what_can_never_arrive_is_dead_at_once(store: JobStore) -> None:
    finish(store)
    (sent,) = send(store)
    dead = store.deliveries.failed(sent, "this address is not allowed", permanent=True)
    assert dead is not None and dead.state == "dead" and send(store)[0].event == "running"


@pytest.mark.parametrize(("asked_s", "waits_s"), [(1, 5), (20, 20), (1e9, 30)])
def test_a_receiver_may_ask_for_a_later_time(store: JobStore, clock: Clock, asked_s: float, waits_s: float) -> None:
    finish(store)
    failed = store.deliveries.failed(send(store)[0], "429", status=429, retry_after_s=asked_s)
    assert failed is not None and failed.next_at == clock.now + waits_s


def test_what_a_lost_sender_had_is_sent_again(store: JobStore, clock: Clock) -> None:
    finish(store)
    (lost,) = send(store)
    clock.move(20)
    (again,) = send(store)
    assert (again.id, again.attempts) == (lost.id, 2)
    assert store.deliveries.failed(lost, "too late") is None
    assert store.deliveries.delivered(lost, 200) is not None  # it arrived after all
    assert store.deliveries.delivered(again, 200) is None and store.deliveries.failed(again, "no") is None
    assert [delivery.event for delivery in send(store)] == ["running"]


def dead_one(store: JobStore) -> Delivery:
    (sent,) = send(store)
    dead = store.deliveries.failed(sent, "gone", permanent=True)
    assert dead is not None
    return dead


@pytest.mark.parametrize("end", [dead_one, lambda store: store.deliveries.delivered(send(store)[0], 200)])
def test_replayed(store: JobStore, end: Callable[[JobStore], Delivery]) -> None:
    store.add(NEW)
    first = end(store)
    replayed = store.deliveries.replay(first.id)
    assert replayed is not None and (replayed.state, replayed.attempts) == ("pending", 0)
    (sent,) = send(store)
    assert (sent.id, sent.body) == (first.id, first.body)
    assert store.deliveries.replay(sent.id) == sent  # it is being sent
    store.deliveries.delivered(sent, 200)
    assert send(store) == [] and store.deliveries.replay("msg_0") is None


def test_a_replay_follows_what_is_on_its_way(store: JobStore, clock: Clock) -> None:
    finish(store)
    first = dead_one(store)
    (second,) = send(store)
    assert store.deliveries.replay(first.id) == store.deliveries.replay(first.id)
    assert send(store) == []
    store.deliveries.delivered(second, 200)
    (again,) = send(store)
    assert again.id == first.id
    store.deliveries.delivered(again, 200)
    assert [delivery.event for delivery in send(store)] == ["text"]


def test_a_late_success_of_one_that_was_replayed_leaves_the_one_on_its_way_alone(store: JobStore, clock: Clock) -> None:
    finish(store)
    first = dead_one(store)
    (second,) = send(store)
    store.deliveries.replay(first.id)
    assert store.deliveries.delivered(first, 200) is not None
    assert store.deliveries.get(second.id) == second and send(store) == []


def test_what_waits_for_its_next_attempt_can_be_sent_now(store: JobStore) -> None:
    finish(store)
    (sent,) = send(store)
    store.deliveries.failed(sent, "503")
    assert send(store) == [] and store.deliveries.replay(sent.id)
    assert [delivery.id for delivery in send(store)] == [sent.id]


def test_a_job_stays_until_its_callbacks_have_arrived(store: JobStore) -> None:
    job = finish(store)
    while sent := send(store):
        assert store.expire() == 0
        store.deliveries.delivered(sent[0], 200)
    assert store.expire() == 1 and store.get(job.id) is None and events(store) == []


def test_a_failed_callback_function_keeps_the_job_as_it_was(opened: Open) -> None:
    def tell_queued(job: Job) -> list[Callback]:
        if job.state != "queued":
            raise InvalidRequest("no body")
        return tell(job)

    store = opened(callbacks=tell_queued)
    job, _ = store.add(NEW)
    with pytest.raises(InvalidRequest, match="no body"):
        store.cancel(job.id)
    assert store.get(job.id) == job and events(store) == ["queued"]


def test_pages(store: JobStore) -> None:
    jobs = [finish(store).id for _ in range(2)]
    whole = store.deliveries.page().deliveries
    assert len(whole) == 8 and [d.id for d in whole] == sorted((d.id for d in whole), reverse=True)
    first = store.deliveries.page(limit=5)
    rest = store.deliveries.page(after=first.after, limit=5)
    assert first.deliveries + rest.deliveries == whole and rest.after is None
    assert {d.job_id for d in store.deliveries.page(job_id=jobs[1]).deliveries} == {jobs[1]}
    with pytest.raises(InvalidRequest, match="state must be one of pending, delivered, dead, not 'done'"):
        store.deliveries.page(["done"])


def test_how_long_the_oldest_waits(store: JobStore, clock: Clock) -> None:
    assert store.deliveries.counts().oldest_s is None
    finish(store)
    clock.move(7)
    finish(store)
    assert store.deliveries.counts().oldest_s == 7
    send(store)
    assert store.deliveries.counts().oldest_s is None
