"""Whatever is asked, in whatever order things happen: answers as if alone, one end each, never more than the limits."""

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from standin import (
    CHUNK,
    POSITION_BYTES,
    PREFIX_BYTES,
    Plan,
    Standin,
    alone,
    ask,
    encode,
    filed,
    needs,
    picture,
    plan_of,
)
from turning import Asked, Turned

from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.errors import DeadlineExceeded, EngineBusy, GalagoError, GenerationFailed, InvalidRequest
from galago.request import Done, Event, Priority, Request

EXAMPLES = 60
PATIENCE = 60
LARGE = (30 + 8 + CHUNK) * POSITION_BYTES + PREFIX_BYTES
"""Bytes that the largest of these requests needs."""
PICTURES = [picture(seed, tiles) for seed, tiles in enumerate((1, 1, 2, 3))]
# Some come as files, of which one is another's pixels.
PICTURES += [filed(PICTURES[1]), filed(PICTURES[3]), filed(picture(9, 2))]
PICTURES.append(PICTURES[2].copy())
SEVERAL = [PICTURES[:3], PICTURES[2:0:-1]]
ENCODED = encode(PICTURES[1])

limits = st.builds(
    Limits,
    waiting=st.sampled_from([1, 3, 8]),
    running=st.integers(1, 4),
    kv_bytes=st.sampled_from([LARGE - 500, LARGE, 2 * LARGE, 3 * LARGE + 100, 100 * LARGE]),
    prefix_bytes=st.sampled_from([0, PREFIX_BYTES, 2 * PREFIX_BYTES + 1, 100 * PREFIX_BYTES]),
    embedding_bytes=st.sampled_from([0, 16, 24, 10_000]),
)
models = st.builds(Standin, rows_per_pass=st.sampled_from([1, 3, 8, 40]), crops_per_pass=st.sampled_from([1, 2, 5]))
plans = st.builds(
    Plan,
    prompt=st.integers(1, 30),
    steps=st.integers(0, 8),
    seed=st.integers(0, 3),
    starts=st.sampled_from(["i", "i", "i", "ii", "ie", "i-i", "-"]),
    breaks=st.none() | st.none() | st.integers(0, 3),
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    image = draw(st.sampled_from([None, ENCODED, *PICTURES, *SEVERAL]))
    how: dict[str, Any] = {"priority": draw(st.sampled_from(["interactive", "batch"]))}
    if image is not ENCODED:
        how["variant"] = draw(st.sampled_from([None, None, "v"]))
        how["detail"] = draw(st.sampled_from(["high", "high", "low"]))
    return ask(draw(plans), image, **how)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Failures are expected here, and their tracebacks many."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


class Requests(RuleBasedStateMachine):
    """Requests come, are cancelled and late, threads are quick and slow, calls of the model fail."""

    @initialize(model=models, limits=limits)
    def begin(self, model: Standin, limits: Limits) -> None:
        self.turned = Turned(model, limits)
        self.faults: dict[str, Exception] = {}
        self.failed = 0
        """calls that failed so far, and may have taken a request with them"""
        self.short = False
        """whether memory ran out for an image"""
        self.since: dict[Asked, int] = {}
        self.cancelled: set[Asked] = set()
        self.late: set[Asked] = set()
        model.step_in = self.step_in

    def step_in(self, kind: str, rows: Any) -> None:
        if error := self.faults.pop(kind, None):
            # Memory that runs out is tried again: a pass always, an image once.
            again = kind == "forward" or (kind in ("encode_crops", "crop", "prefix", "fill") and not self.short)
            self.short |= isinstance(error, MemoryError) and kind != "forward"
            self.failed += not (again and isinstance(error, MemoryError))
            try:
                raise error
            finally:
                del error  # or it would hold itself, and with it what the engine let go

    @property
    def going(self) -> list[Asked]:
        return [one for one in self.turned.asked if not one.how]

    @rule(request=requests())
    def put(self, request: Request) -> None:
        queue, limits = self.turned.queue, self.turned.limits
        beside: list[Priority] = ["interactive"] if request.priority == "interactive" else ["interactive", "batch"]
        free = 0 if queue.waits_for_memory in beside else max(0, limits.running - self.turned.running(*beside))
        full = sum(job.priority in beside for job in queue.jobs()) >= limits.waiting + free
        try:
            self.since[self.turned.put(request)] = self.failed
            assert not full
        except EngineBusy:
            assert full

    @rule(n=st.integers(1, 12))
    def turn(self, n: int) -> None:
        for _ in range(n):
            self.turned.turn()

    @precondition(lambda self: self.turned.errands)
    @rule(which=st.integers(0, 7))
    def errand(self, which: int) -> None:
        self.turned.errands.run(which)

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.going))
        self.turned.queue.cancel(one.job)
        self.cancelled.add(one)

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.going))
        one.job.deadline = one.job.arrival
        self.late.add(one)

    @rule()
    def trim(self) -> None:
        self.turned.scheduler.trim()

    @rule(
        kind=st.sampled_from(["make_crops", "encode_crops", "crop", "embed", "prefix", "fill", "new", "forward"]),
        error=st.sampled_from([RuntimeError, MemoryError, ValueError]),
    )
    def fault(self, kind: str, error: type[Exception]) -> None:
        self.faults[kind] = error("a fault")

    @invariant()
    def bounded(self) -> None:
        self.turned.check()

    def teardown(self) -> None:
        if not hasattr(self, "turned"):
            return
        self.turned.run()
        for one in self.turned.asked:
            self.ended(one)
        self.turned.emptied()
        self.turned.close()
        outcomes = Counter(one.how for one in self.turned.asked)
        stats = self.turned.metrics.stats()["skills"].get("query", {"submitted": 0, **dict.fromkeys(outcomes, 0)})
        assert stats["submitted"] == outcomes.total()
        assert {how: stats[how] for how in outcomes} == outcomes

    def ended(self, one: Asked) -> None:
        """As it should: whole, or short for a reason."""
        plan, wanted = plan_of(one.request), alone(one.request)
        assert one.events == wanted[: len(one.events)]
        match one.end:
            case Done("cancelled"):
                assert one in self.cancelled
            case Done():
                assert one.events == wanted and not breaks(plan)
            case DeadlineExceeded():
                assert one in self.late
            case InvalidRequest():
                assert needs(plan, one.request.image) > self.turned.limits.kv_bytes
            case GenerationFailed():
                assert breaks(plan) or self.failed > self.since[one]
            case _:
                raise AssertionError(one.end)


def breaks(plan: Plan) -> bool:
    return plan.breaks is not None and plan.breaks < plan.steps


Requests.TestCase.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestRequests = Requests.TestCase


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(
    clients=st.lists(
        st.lists(st.tuples(requests(), st.none() | st.integers(0, 4)), max_size=5), min_size=1, max_size=3
    ),
    model=models,
    limits=limits,
)
def test_clients_at_once(clients: list[list[tuple[Request, int | None]]], model: Standin, limits: Limits) -> None:
    """Over threads: each client sends all its requests, then reads them, and goes away from some after some events."""
    engine = Engine(model, replace(limits, waiting=100))
    found: dict[int, list[Event | GalagoError]] = {}

    def client(mine: list[tuple[Request, int | None]]) -> None:
        runs = [engine.submit(request) for request, _ in mine]
        for run, (request, stay) in zip(runs, mine, strict=True):
            got = found[id(request)] = []
            try:
                got.extend(islice(run, stay))
                if stay is not None:
                    run.cancel()
                got.extend(run)
            except GalagoError as error:
                got.append(error)

    threads = [threading.Thread(target=client, args=(mine,)) for mine in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for request, stay in chain(*clients):
        *events, end = found[id(request)]
        wanted = alone(request)
        assert events == wanted[: len(events)]
        if isinstance(end, GalagoError):
            assert breaks(plan_of(request)) or needs(plan_of(request), request.image) > limits.kv_bytes
        else:
            assert isinstance(end, Done)
            assert events == wanted or (stay is not None and end.finish_reason == "cancelled")
    stats = engine.stats()
    assert stats["queue"] == {"waiting": 0, "running": 0, "encoding": 0} and stats["bytes"]["kv"] == 0
    assert all(row["submitted"] == row["done"] + row["failed"] + row["cancelled"] for row in stats["skills"].values())
    engine.close()
