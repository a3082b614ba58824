"""How a queue stands, as /health and Prometheus are told, also while its database is away."""

import logging
from typing import Any

import anyio
import pytest
from guarded import PATIENCE
from job_clock import Clock, Open
from prometheus_client.parser import text_string_to_metric_families
from receiver import receiving

from galago.errors import InvalidRequest, JobsDatabaseError
from galago.jobs import Backoff, Callback, Job, NewJob, QueueSettings, metrics
from galago.jobs.metrics import QueueWatch, Standing, queue_exposition, queue_json
from galago.jobs.records import JobInput
from galago.jobs.store import JobStore
from galago.jobs.worker import run_worker

NEW = NewJob("/v1/caption", "{}")


def series(standing: Standing | None) -> dict[tuple[str, str | None], float]:
    families = text_string_to_metric_families(queue_exposition(standing).decode())
    return {
        (sample.name, next(iter(sample.labels.values()), None)): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_states_and_the_oldest_are_told(opened: Open, clock: Clock) -> None:
    store = opened(callbacks=lambda job: [Callback("http://a/", job.state, "")])
    none = series(anyio.run(QueueWatch(store).read))
    assert (none["galago_jobs", "queued"], none["galago_jobs_oldest_seconds", None]) == (0, 0)
    for _ in range(3):
        store.add(NEW)
    assert len(store.claim("w", 10)) == 1
    clock.move(7)
    standing = anyio.run(QueueWatch(store).read)
    found = series(standing)
    assert (found["galago_jobs", "queued"], found["galago_jobs", "running"], found["galago_jobs", "done"]) == (2, 1, 0)
    assert (found["galago_callbacks", "pending"], found["galago_callbacks", "dead"]) == (4, 0)
    assert found["galago_jobs_oldest_seconds", None] == found["galago_callbacks_oldest_seconds", None] == 7
    assert queue_json(standing)["jobs"] == {
        "queued": 2, "running": 1, "done": 0, "failed": 0, "cancelled": 0, "oldest_s": 7,
    }  # fmt: skip


def test_a_database_that_is_away_is_logged_once_and_left_out(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch, counts = QueueWatch(store), JobStore.counts
    monkeypatch.setattr(metrics, "SHARE", 0)

    def fail(*_: Any) -> Any:
        raise JobsDatabaseError("the job database is away")

    with caplog.at_level(logging.ERROR, "galago.jobs.metrics"):
        for _ in range(2):
            monkeypatch.setattr(JobStore, "counts", fail)
            for _ in range(3):
                assert anyio.run(watch.read) is None
            monkeypatch.setattr(JobStore, "counts", counts)
            assert anyio.run(watch.read) is not None
    assert len(caplog.messages) == 2 and "is away" in caplog.text
    names = {name for name, _ in series(None)}
    assert not names & {"galago_jobs", "galago_callbacks", "galago_jobs_oldest_seconds"}
    assert "error" in queue_json(None)


def test_what_takes_long_to_count_is_not_counted_at_each_scrape(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = QueueWatch(store)
    monkeypatch.setattr(metrics, "SHARE", 10**9)
    for _ in range(2):
        standing = anyio.run(watch.read)
        assert standing is not None and standing.jobs.by_state["queued"] == 0
        store.add(NEW)
    monkeypatch.setattr(metrics, "SHARE", 0)
    standing = anyio.run(QueueWatch(store).read)
    assert standing is not None and standing.jobs.by_state["queued"] == 2


def test_attempts_are_counted_by_how_they_ended(opened: Open) -> None:
    settings = QueueSettings(retry=Backoff(0.001, 0.001), redelivery=Backoff(0.001, 0.001), max_deliveries=2)
    before = series(None)

    def grown(name: str, *outcomes: str) -> list[float]:
        now = series(None)
        return [now.get((name, one), 0) - before.get((name, one), 0) for one in outcomes]

    async def perform(job: Job, given: JobInput) -> str:
        if given.body == '"bad"':
            raise InvalidRequest("no")
        if given.body == '"twice"' and job.attempts == 1:
            raise RuntimeError
        if given.body == '"slow"':
            await anyio.sleep_forever()
        return "{}"

    with receiving() as receiver:
        store = opened(clock=None, settings=settings, callbacks=callbacks_to(receiver.url))
        for body in ("good", "bad", "twice", "slow"):
            store.add(NewJob("/v1/caption", f'"{body}"'))

        async def work() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: run_worker(store, perform, allowed_hosts=("127.0.0.1",)))
                with anyio.fail_after(PATIENCE):
                    while (
                        grown("galago_job_attempts_total", "done", "failed", "retried") != [2, 1, 1]
                        or grown("galago_callback_attempts_total", "delivered", "failed", "dead") != [1, 1, 1]
                        or store.counts().by_state["running"] != 1
                    ):
                        await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()

        anyio.run(work)
    assert grown("galago_job_attempts_total", "done", "failed", "retried", "released", "lost") == [2, 1, 1, 1, 0]


def callbacks_to(url: str) -> Any:
    """One that arrives, and one that never can, for the two that are done."""

    def told(job: Job) -> list[Callback]:
        if job.state == "failed":
            return [Callback(url, "job.failed", "{}")]
        return [Callback("http://127.0.0.1:1/", "job.done", "{}")] if job.state == "done" and job.attempts == 2 else []

    return told
