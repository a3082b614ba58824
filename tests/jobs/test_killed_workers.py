"""Several processes at one queue, some of which are killed."""

import random
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait

import pytest
from job_clock import Open
from job_processes import NEW, SETTINGS, Worker, add_one, starting_workers, tell, work

from galago.jobs import Delivery
from galago.jobs.store import JobStore

LEASE_S = 0.5
PATIENCE_S = 60

Start = Callable[..., Worker]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    with starting_workers() as start:
        yield start


def deliveries_of(store: JobStore) -> dict[str, list[Delivery]]:
    """All callbacks by job, in their order."""
    found: dict[str, list[Delivery]] = {}
    after = None
    while True:
        page = store.deliveries.page(limit=1000, after=after)
        for delivery in page.deliveries:
            found.setdefault(delivery.job_id, []).append(delivery)
        if (after := page.after) is None:
            return {job_id: sorted(some, key=lambda d: d.sequence) for job_id, some in found.items()}


def test_every_job_ends_once_and_every_callback_arrives_in_order_whoever_is_killed(
    opened: Open, location: str, start: Start
) -> None:
    jobs, kills = 40, 10
    store = opened(clock=None, settings=SETTINGS, callbacks=tell)
    ids = [store.add(NEW)[0].id for _ in range(jobs)]
    workers = [start(work, location, LEASE_S) for _ in range(2)]
    arrived: dict[str, list[int]] = {job_id: [] for job_id in ids}
    ends: list[str] = []
    chance = random.Random(7)
    # They say about eight things of a job.
    often = 8 * jobs // kills
    killed, until_kill = 0, chance.randrange(often)
    while workers:
        for pipe in wait([worker.pipe for worker in workers], PATIENCE_S):
            (worker,) = (w for w in workers if w.pipe is pipe)
            try:
                match worker.pipe.recv():
                    case ("sent", job_id, sequence):
                        arrived[job_id].append(sequence)
                    case ("done", job_id):
                        ends.append(job_id)
            except (EOFError, ConnectionResetError):
                workers.remove(worker)
                continue
            until_kill -= 1
            if until_kill < 0 and killed < kills:
                # Whoever spoke has just claimed, ended or sent something; the other may be anywhere.
                chance.choice(workers).kill()
                workers.append(start(work, location, LEASE_S))
                killed, until_kill = killed + 1, chance.randrange(often)
    assert killed == kills
    found = [job for job_id in ids if (job := store.get(job_id)) is not None]
    assert len(found) == jobs and {job.state for job in found} == {"done"}
    assert len(ends) == len({*ends})  # one that was killed may not have come to say so
    deliveries = deliveries_of(store)
    for job in found:
        events = [delivery.event for delivery in deliveries[job.id]]
        assert events[0] == "queued" and events[-1] == "done" and events.count("done") == 1
        # Each time that it was taken up is one attempt, whether it ended in a failure, a kill or well.
        assert events.count("running") == job.attempts == job.claims >= 2
        assert {delivery.state for delivery in deliveries[job.id]} == {"delivered"}
        assert {*arrived[job.id]} == {*range(1, len(events) + 1)}
        assert arrived[job.id] == sorted(arrived[job.id])


def test_several_may_open_an_empty_database_at_once(location: str, opened: Open, start: Start) -> None:
    workers = [start(add_one, location) for _ in range(4)]
    added = {worker.pipe.recv() for worker in workers}
    assert {job.id for job in opened().page().jobs} == added and len(added) == 4


def test_a_job_of_another_process_wakes_who_waits(location: str, opened: Open, start: Start) -> None:
    store = opened(clock=None)
    assert not store.wait(0)
    worker = start(add_one, location)
    assert store.wait(PATIENCE_S)
    (job,) = store.claim("w", 10)
    assert job.id == worker.pipe.recv()
