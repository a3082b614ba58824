"""One store that many threads use."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from job_clock import Clock, Open

from galago.jobs import Callback, NewJob
from galago.jobs.store import JobStore

THREADS = 8


def at_once(call: Callable[[int], object]) -> list[object]:
    """What it gives in so many threads, which begin together."""
    barrier = threading.Barrier(THREADS)

    def begin(number: int) -> object:
        barrier.wait()
        return call(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(begin, range(THREADS))]


def test_of_many_with_one_key_one_is_added(opened: Open) -> None:
    stores = [opened(), opened()]
    for key in ("a", "b", "c"):
        added = at_once(lambda i, key=key: stores[i % 2].add(NewJob("/v1/caption", "{}", idempotency_key=key)))
        assert sum(is_new for _, is_new in added) == 1 and len({job.id for job, _ in added}) == 1  # type: ignore[misc, attr-defined]
    assert len(stores[0].page().jobs) == 3


def test_none_is_claimed_twice_and_each_ends_once(opened: Open) -> None:
    store = opened()
    ids = {store.add(NewJob("/v1/caption", "{}"))[0].id for _ in range(40)}

    def work(number: int) -> list[str]:
        ended = []
        while claimed := store.claim(f"w{number}", 60, 2):
            ended += [job.id for job in claimed if store.complete(job, "{}")]
        return ended

    ended = [job_id for some in at_once(work) for job_id in some]  # type: ignore[attr-defined]
    assert len(ended) == len(ids) and {*ended} == ids


def test_one_of_many_ends_a_job(opened: Open) -> None:
    store = opened(callbacks=lambda job: [Callback("http://a/", job.state, "")])
    store.add(NewJob("/v1/caption", "{}"))
    (job,) = store.claim("w", 60)
    ways = (
        lambda: store.complete(job, "{}"), lambda: store.fail(job, "no", permanent=True), lambda: store.release(job),
    )  # fmt: skip
    assert sum(done is not None for done in at_once(lambda i: ways[i % 3]())) == 1
    assert [d.event for d in store.deliveries.page(newest_first=False).deliveries][:2] == ["queued", "running"]
    assert len(store.deliveries.page().deliveries) == 3


def wait_in_thread(wait: Callable[[float], bool]) -> "tuple[threading.Thread, list[bool]]":
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(wait(60)))
    thread.start()
    return thread, said


def test_who_waits_is_woken_by_a_job_and_by_a_callback(opened: Open) -> None:
    store = opened(callbacks=lambda job: [Callback("http://a/", job.state, "")])
    waits = [wait_in_thread(store.wait), wait_in_thread(store.deliveries.wait)]
    store.add(NewJob("/v1/caption", "{}"))
    for thread, said in waits:
        thread.join()
        assert said == [True]


def test_who_waits_is_woken_when_a_time_comes(opened: Open) -> None:
    store = opened(clock=None)
    store.add(NewJob("/v1/caption", "{}", delay_s=0.3))
    assert store.claim("w", 10) == [] and store.wait(60)
    assert len(store.claim("w", 0.3)) == 1
    assert store.wait(60) and store.claim("w", 10)[0].attempts == 2


def test_what_is_ready_is_not_waited_for(store: JobStore, clock: Clock) -> None:
    store.add(NewJob("/v1/caption", "{}", delay_s=5))
    assert not store.wait(0)
    clock.move(5)
    assert store.wait(0)


def test_closing_ends_all_waits(opened: Open) -> None:
    store = opened()
    waits = [wait_in_thread(store.wait) for _ in range(2)]
    store.close()
    for thread, said in waits:
        thread.join()
        assert said == [False]
