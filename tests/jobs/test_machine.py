"""Any sequence of calls leaves the queue as a plain dictionary says, on both databases."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_clock import Clock
from postgres import new_database
from sqlalchemy import delete

from galago.errors import InvalidRequest
from galago.jobs import Backoff, Callback, Delivery, Job, NewJob, QueueSettings
from galago.jobs.database import Database, open_database
from galago.jobs.schema import deliveries, inputs, jobs
from galago.jobs.store import JobStore

STEADY = QueueSettings(Backoff(4, 16, jitter=0), Backoff(4, 16, jitter=0), max_deliveries=2, keep_s=20)
LEASE_S = 10
OPEN = ("queued", "running")
WORKERS = st.sampled_from(["a", "b"])


def tell(job: Job) -> list[Callback]:
    """Two of an end, none of a further attempt."""
    if job.state == "queued" and job.attempts:
        return []
    return [Callback("http://a/", job.state, str(i)) for i in range(2 if job.finished_at else 1)]


@dataclass
class Sent:
    """A callback, as the model has it; `time` is None while it waits for another."""

    event: str
    state: str = "pending"
    attempts: int = 0
    time: float | None = None
    leased: bool = False


@dataclass
class Known:
    """A job, as the model has it."""

    priority: int
    max_attempts: int
    not_before: float
    state: str = "queued"
    attempts: int = 0
    claims: int = 0
    lease_until: float = 0
    finished_at: float | None = None
    sent: list[Sent] = field(default_factory=list)


class Queue:
    """The queue and its model, side by side; each step draws what it does from `draw`."""

    def __init__(self, database: Database, draw: Callable[[Any], Any]) -> None:
        self.database, self.draw = database, draw
        self.clock = Clock()
        database._clock = self.clock
        self.store = JobStore(self.database, STEADY, tell)
        self.known: dict[str, Known] = {}
        self.keys: dict[str, str] = {}
        self.claimed: list[Job] = []
        self.sending: list[Delivery] = []

    def move(self, known: Known, state: str) -> None:
        """It comes into a state, and tells of it."""
        known.state = state
        known.finished_at = None if state in OPEN else self.clock.now
        if state == "queued" and known.attempts:
            return
        first = not any(sent.state == "pending" for sent in known.sent)
        known.sent += [Sent(state) for _ in range(1 if state in OPEN else 2)]
        if first:
            self.promote(known)

    def promote(self, known: Known) -> None:
        for sent in known.sent:
            if sent.state == "pending":
                sent.time = self.clock.now
                return

    def add(self) -> None:
        priority, attempts = self.draw(st.integers(-1, 1)), self.draw(st.integers(1, 2))
        delay_s, key = self.draw(st.sampled_from([0, 0, 3])), self.draw(st.sampled_from([None, None, "k"]))
        new = NewJob(
            "/v1/caption", "{}", priority=priority, max_attempts=attempts, delay_s=delay_s, idempotency_key=key
        )
        job, is_new = self.store.add(new)
        assert is_new == (key is None or self.keys.get(key) not in self.known)
        if is_new:
            self.known[job.id] = Known(priority, attempts, self.clock.now + delay_s)
            self.move(self.known[job.id], "queued")
        if key:
            assert is_new or job.id == self.keys[key]
            self.keys[key] = job.id

    def claim(self) -> None:
        worker, limit = self.draw(WORKERS), self.draw(st.integers(1, 3))
        for known in self.known.values():
            if known.state == "running" and known.lease_until <= self.clock.now:
                known.not_before = self.clock.now
                self.move(known, "queued" if known.attempts < known.max_attempts else "failed")
        ready = [i for i, k in self.known.items() if k.state == "queued" and k.not_before <= self.clock.now]
        expected = sorted(ready, key=lambda i: (-self.known[i].priority, i))[:limit]
        claimed = self.store.claim(worker, LEASE_S, limit)
        assert [job.id for job in claimed] == expected
        for job in claimed:
            known = self.known[job.id]
            known.attempts, known.claims = known.attempts + 1, known.claims + 1
            known.lease_until = self.clock.now + LEASE_S
            self.move(known, "running")
        self.claimed += claimed

    def holds(self, job: Job) -> bool:
        known = self.known.get(job.id)
        return known is not None and known.state == "running" and known.claims == job.claims

    def work(self) -> None:
        """Whoever once had a job does something with it, whether the lease is lost or not."""
        if not self.claimed:
            return
        how = self.draw(st.sampled_from(["complete", "fail", "give up", "release", "renew"]))
        job = self.draw(st.sampled_from(self.claimed))
        held, known = self.holds(job), self.known.get(job.id)
        if how == "renew":
            assert self.store.renew([job], LEASE_S) == ({job.id} if held else set())
            if held and known:
                known.lease_until = self.clock.now + LEASE_S
            return
        calls = {
            "complete": lambda: self.store.complete(job, "{}"),
            "fail": lambda: self.store.fail(job, "no"),
            "give up": lambda: self.store.fail(job, "no", permanent=True),
            "release": lambda: self.store.release(job),
        }
        assert (calls[how]() is not None) == held
        if not held or known is None:
            return
        known.not_before = self.clock.now
        if how == "complete":
            self.move(known, "done")
        elif how == "release":
            known.max_attempts += 1
            self.move(known, "queued")
        elif how == "give up" or known.attempts >= known.max_attempts:
            self.move(known, "failed")
        else:
            known.not_before += min(16, 4 * 2 ** (known.attempts - 1))
            self.move(known, "queued")

    def cancel(self) -> None:
        if not self.known:
            return
        job_id = self.draw(st.sampled_from(sorted(self.known)))
        if self.known[job_id].state in OPEN:
            self.move(self.known[job_id], "cancelled")
        assert self.store.cancel(job_id) == self.store.get(job_id)

    def retry(self) -> None:
        if not self.known:
            return
        job_id = self.draw(st.sampled_from(sorted(self.known)))
        known = self.known[job_id]
        if known.state in ("failed", "cancelled"):
            known.attempts, known.not_before = 0, self.clock.now
            self.move(known, "queued")
            assert self.store.retry(job_id)
        else:
            with pytest.raises(InvalidRequest):
                self.store.retry(job_id)

    def send(self) -> None:
        worker, limit = self.draw(WORKERS), self.draw(st.integers(1, 3))
        times = [s.time for k in self.known.values() for s in k.sent if s.time is not None]
        claimed = self.store.deliveries.claim(worker, LEASE_S, limit)
        taken = [self.sent(delivery) for delivery in claimed]
        assert sorted(s.time or 0 for s in taken) == sorted(t for t in times if t <= self.clock.now)[:limit]
        for sent in taken:
            sent.attempts, sent.time, sent.leased = sent.attempts + 1, self.clock.now + LEASE_S, True
        self.sending += claimed

    def sent(self, delivery: Delivery) -> Sent:
        return self.known[delivery.job_id].sent[delivery.sequence - 1]

    def settle(self) -> None:
        if not self.sending:
            return
        how = self.draw(st.sampled_from(["delivered", "failed", "dead", "replay"]))
        delivery = self.draw(st.sampled_from(self.sending))
        queue = self.store.deliveries
        gone = delivery.job_id not in self.known
        sent = Sent("", "gone") if gone else self.sent(delivery)
        if how == "replay":
            assert (queue.replay(delivery.id) is None) == gone
            if gone or sent.leased:
                return
            pending = [s for s in self.known[delivery.job_id].sent if s.state == "pending"]
            if sent.state == "pending":
                sent.time = None if sent.time is None else self.clock.now
            else:
                sent.time = None if pending else self.clock.now
            sent.state, sent.attempts = "pending", 0
            return
        stored = queue.get(delivery.id)
        leased = sent.state == "pending" and sent.leased and sent.attempts == delivery.attempts
        leased = leased and stored is not None and stored.leased_by == delivery.leased_by
        if how == "delivered":
            assert (queue.delivered(delivery, 200) is None) == (sent.state != "pending")
            if sent.state == "pending":
                self.end(delivery, "delivered")
            return
        assert (queue.failed(delivery, "no", permanent=how == "dead") is None) == (not leased)
        if leased:
            if how == "dead" or sent.attempts >= 2:
                self.end(delivery, "dead")
            else:
                sent.time, sent.leased = self.clock.now + 4 * 2 ** (sent.attempts - 1), False

    def end(self, delivery: Delivery, state: str) -> None:
        sent, known = self.sent(delivery), self.known[delivery.job_id]
        sent.state, sent.time, sent.leased = state, None, False
        if all(s.time is None for s in known.sent):
            self.promote(known)

    def pass_time(self) -> None:
        self.clock.move(self.draw(st.sampled_from([0.001, 3, 3, 10, 30])))

    def expire(self) -> None:
        over = [
            i for i, k in self.known.items()
            if k.finished_at is not None and k.finished_at + 20 <= self.clock.now
            and not any(s.state == "pending" for s in k.sent)
        ]  # fmt: skip
        assert self.store.expire() == len(over)
        for job_id in over:
            del self.known[job_id]

    def agrees(self) -> None:
        found = self.store.page(limit=1000, newest_first=False).jobs
        assert {job.id: (job.state, job.priority, job.attempts, job.claims, job.finished_at) for job in found} == {
            i: (k.state, k.priority, k.attempts, k.claims, k.finished_at) for i, k in self.known.items()
        }
        assert all((job.leased_by is not None) == (job.state == "running") for job in found)
        there = self.store.deliveries.page(limit=1000).deliveries
        assert {(d.job_id, d.sequence, d.event, d.state, d.attempts, d.next_at) for d in there} == {
            (i, n, s.event, s.state, s.attempts, s.time) for i, k in self.known.items() for n, s in enumerate(k.sent, 1)
        }
        for known in self.known.values():  # of those that are pending, one is on its way
            pending = [s for s in known.sent if s.state == "pending"]
            assert sum(s.time is not None for s in pending) == bool(pending)
        counts = self.store.counts().by_state
        assert sum(counts.values()) == len(self.known)


STEPS = (
    "add", "add", "claim", "claim", "claim", "work", "work", "work", "cancel", "retry", "send", "send", "send",
    "settle", "settle", "settle", "pass_time", "pass_time", "expire",
)  # fmt: skip
"""By how often each is wanted."""


def run(location: str, examples: int) -> None:
    database = open_database(location, 10, None)

    @settings(max_examples=examples)
    @given(steps=st.lists(st.sampled_from(STEPS), min_size=40, max_size=60), data=st.data())
    def agree(steps: list[str], data: st.DataObject) -> None:
        with database.write() as tx:
            for table in (jobs, inputs, deliveries):
                tx.connection.execute(delete(table))
        queue = Queue(database, data.draw)
        for step in steps:
            getattr(queue, step)()
            queue.agrees()

    try:
        agree()
    finally:
        database.close()


def test_of_sqlite(tmp_path: Path) -> None:
    run(str(tmp_path / "jobs.db"), 25)


def test_of_postgres(postgres: str) -> None:
    run(new_database(postgres), 15)
