"""What breaks takes nobody else with it."""

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from standin import Plan, Rows, Standin, alone, ask, picture
from turning import Turned, whole

from galago.engine import scheduler
from galago.engine.encoder import Encoder
from galago.engine.engine import Engine, EngineRun
from galago.engine.limits import Limits
from galago.engine.sequence import Sequence
from galago.engine.step import End, Feed, Start, Steps
from galago.errors import DeadlineExceeded, EngineBusy, EngineClosed, GalagoError, GenerationFailed
from galago.request import Done, Event

PATIENCE = 30
MARK = 4242
"""The first row of a prompt that brings trouble."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Failures are expected here, and their tracebacks many."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def failing(
    kind: str, error: type[Exception], when: Callable[[Rows], bool] = lambda rows: True, times: int = 10**6
) -> Callable[[str, Rows], None]:
    """Raises the error at calls of this kind, so many times."""
    left = [times]

    def step_in(asked: str, rows: Rows) -> None:
        if asked == kind and when(rows) and left[0]:
            left[0] -= 1
            raise error()

    return step_in


def marked(rows: Rows) -> bool:
    return any(MARK in fed for fed in rows)


def bad(prompt: int = 3) -> Plan:
    """A prompt that begins with the mark."""
    plan = Plan(prompt, seed=(MARK - 7) * pow(31, -1, 1_000_003) % 1_000_003)
    assert plan.tokens[0] == MARK
    return plan


def test_the_cache_goes_when_the_machine_runs_short(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = Turned(Standin())
    first = turned.put(ask(Plan(), picture(1)))
    turned.run()
    assert turned.images.stats().hot.entries == 1
    monkeypatch.setattr(scheduler, "MEMORY_CHECK_S", 0)
    monkeypatch.setattr(scheduler, "available_memory", lambda device: scheduler.LOW_BYTES - 1)
    other = turned.put(ask(Plan(steps=4)))
    turned.run()
    assert whole(first, other) and turned.images.bytes == 0


@pytest.mark.parametrize(("owner", "name"), [(Sequence, "done_event"), (Encoder, "cancel")])
def test_a_request_that_cannot_be_ended_is_told_so(monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
    usual, broken = getattr(owner, name), [True]

    def fails_once(*args: Any) -> Any:
        if broken:
            broken.pop()
            raise ZeroDivisionError
        return usual(*args)

    monkeypatch.setattr(owner, name, fails_once)
    engine = Engine(Standin(), Limits())
    try:
        over = threading.Event()
        run = engine.submit(ask(Plan()))
        run.watch(over.set)
        found = None
        while found is None:
            assert over.wait(PATIENCE), "it is never told"
            over.clear()
            try:
                while event := run.poll():
                    assert not isinstance(event, Done)
            except GenerationFailed as error:
                found = error
        assert "ZeroDivisionError" in str(found)
        assert isinstance(list(engine.submit(ask(Plan())))[-1], Done)
    finally:
        engine.close()


# --- one turn after the other ------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
def test_one_of_a_batch_fails_alone(error: type[Exception]) -> None:
    model = Standin()
    model.step_in = failing("forward", error, marked)
    turned = Turned(model)
    asked = [turned.put(ask(Plan(steps=6, seed=i), picture(i) if i % 2 else None)) for i in range(4)]
    turned.step()
    broken = turned.put(ask(bad()))
    turned.run()
    assert whole(*asked)
    assert isinstance(broken.end, GenerationFailed) and isinstance(broken.end.__cause__, error)
    assert ("memory ran out" in str(broken.end)) == (error is not RuntimeError)
    turned.emptied()


@pytest.mark.parametrize("kind", ["forward", "encode_crops", "crop", "prefix", "fill"])
def test_memory_that_runs_out_once_is_freed_and_the_call_repeated(kind: str) -> None:
    model = Standin()
    turned = Turned(model)
    known = turned.put(ask(Plan(), picture(9)))
    turned.run()
    assert turned.images.stats().hot.entries == 1
    model.step_in = failing(kind, MemoryError, times=1)
    one = turned.put(ask(Plan(steps=4), picture(1, 3)))
    turned.run()
    assert whole(known, one)
    assert turned.images.stats().hot.evictions == 1  # what was only kept for later
    turned.emptied()


@pytest.mark.parametrize("kind", ["make_crops", "encode_crops", "crop", "embed", "prefix", "fill"])
@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_an_image_fails_those_who_asked_for_it(kind: str, error: type[Exception]) -> None:
    calm = Turned(Standin())
    calm.put(ask(Plan(), picture(1, 2)))
    calm.run()
    digests = {digest for asked, rows in calm.model.asked if asked == kind for row in rows for digest in row}

    def is_of(rows: Rows) -> bool:
        return any(digest in digests for row in rows for digest in row)

    model = Standin(crops_per_pass=3)
    model.step_in = failing(kind, error, is_of)
    turned = Turned(model)
    asked = [turned.put(ask(Plan(steps=2, seed=i), picture(i % 3, 2))) for i in range(6)]
    asked.append(turned.put(ask(Plan(steps=9))))
    turned.run()
    failed = [one for one in asked if one.how == "failed"]
    assert failed == [asked[1], asked[4]]
    assert all(isinstance(one.end, GenerationFailed) and isinstance(one.end.__cause__, error) for one in failed)
    assert whole(*(one for one in asked if one not in failed))
    turned.emptied()
    model.step_in = failing("", RuntimeError)
    again = turned.put(ask(Plan(), picture(1, 2)))
    turned.run()
    assert whole(again)  # a failed image is not kept


def test_an_image_that_cannot_be_read_fails_alone() -> None:
    class Truncated:
        def load(self) -> None:
            raise OSError("image file is truncated")

    turned = Turned(Standin())
    one, other = turned.put(ask(Plan(), Truncated())), turned.put(ask(Plan(), picture(1)))
    turned.run()
    assert isinstance(one.end, GenerationFailed) and isinstance(one.end.__cause__, OSError)
    assert whole(other)


@pytest.mark.parametrize("image", [None, picture(1)])
def test_no_cache_for_a_sequence(image: Any) -> None:
    model = Standin()
    turned = Turned(model)
    asked = [turned.put(ask(Plan(steps=5, seed=i), picture(i))) for i in range(3)]
    turned.step()
    model.step_in = failing("new", RuntimeError, times=1)
    asked.insert(0, turned.put(ask(Plan(), image, priority="interactive")))
    turned.run()
    assert [one.how for one in asked].count("failed") == 1
    assert whole(*(one for one in asked if one.how != "failed"))
    turned.emptied()


def misbehaving(how: str) -> Steps:
    if how == "no start":
        yield Feed(torch.tensor([1]))
    if how == "at once":
        raise RuntimeError("at once")
    yield Start(None, 5)
    if how == "nothing to feed":
        yield Feed(torch.tensor([], dtype=torch.int64))
    if how == "will not go":
        try:
            yield Feed(torch.tensor([1]))
            raise RuntimeError("broken")
        finally:
            yield Feed(torch.tensor([2]))
    return End("stop", 0)


@pytest.mark.parametrize("how", ["no start", "at once", "nothing to feed", "will not go"])
def test_a_skill_that_does_what_it_should_not(how: str) -> None:
    model = Standin()
    turned = Turned(model)
    other = turned.put(ask(Plan(steps=5)))
    model.skill = lambda request: misbehaving(how)  # type: ignore[method-assign]
    one = turned.put(ask(Plan()))
    turned.run()
    assert isinstance(one.end, GenerationFailed) and whole(other)
    turned.emptied()


def test_an_error_that_somebody_keeps_holds_no_prefix() -> None:
    turned = Turned(Standin(), Limits(prefix_bytes=0))
    one = turned.put(ask(Plan(steps=3, breaks=1), picture(1)))
    turned.run()
    assert isinstance(one.end, GenerationFailed)
    assert turned.model.prefix_bytes == 0


# --- with a thread -----------------------------------------------------------------------------


class Gate:
    """Holds the model at its first call of a kind, until it is opened."""

    def __init__(self, model: Standin, kind: str) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self._kind = kind
        model.step_in = self.step_in

    def step_in(self, kind: str, rows: Rows) -> None:
        if kind == self._kind:
            self.reached.set()
            assert self.opened.wait(PATIENCE)


def ending(run: EngineRun) -> tuple[list[Event], str]:
    """The events of a run, and how it ended."""
    events: list[Event] = []
    try:
        events.extend(run)
    except GalagoError as error:
        return events, error.code
    assert isinstance(events[-1], Done)
    return events[:-1], events[-1].finish_reason


@pytest.mark.parametrize("attribute", ["rows_per_pass", "crops_per_pass"])
def test_a_mistake_of_the_engine_leaves_it_serving(attribute: str) -> None:
    class Faulty(Standin):
        broken = threading.Event()

        def __getattribute__(self, name: str) -> Any:
            if name == attribute and Faulty.broken.is_set():
                Faulty.broken.clear()
                raise ZeroDivisionError("ours")
            return super().__getattribute__(name)

    model = Faulty()
    engine = Engine(model)
    gate = Gate(model, "crop" if attribute == "crops_per_pass" else "forward")
    runs = [engine.submit(ask(Plan(steps=4, seed=i), picture(i, 3))) for i in range(3)]
    assert gate.reached.wait(PATIENCE)
    Faulty.broken.set()
    gate.opened.set()
    assert "generation_failed" in [ending(run)[1] for run in runs]
    after = ask(Plan(steps=4), picture(1, 3))
    assert ending(engine.submit(after)) == (alone(after), "stop")
    engine.close()


def test_a_deadline_passes_while_all_wait_for_an_image() -> None:
    model = Standin()
    gate = Gate(model, "make_crops")
    engine = Engine(model, Limits(running=1))
    first = engine.submit(ask(Plan(steps=3), picture(1)))
    assert gate.reached.wait(PATIENCE)
    late = engine.submit(ask(Plan(), timeout=0.01))
    with pytest.raises(DeadlineExceeded):
        list(late)
    assert not gate.opened.is_set()
    gate.opened.set()
    assert ending(first)[1] == "stop"
    engine.close()


@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 1e10])
def test_a_deadline_that_never_comes(timeout: float) -> None:
    model = Standin()
    gate = Gate(model, "make_crops")
    engine = Engine(model)
    beside = engine.submit(first := ask(Plan(steps=3), picture(1)))
    assert gate.reached.wait(PATIENCE)
    run = engine.submit(late := ask(Plan(steps=2), picture(1), timeout=timeout))
    engine.submit(ask(Plan())).cancel()  # wakes the thread, which rests until then, while all wait for the image
    gate.opened.set()
    assert ending(run) == (alone(late), "stop") and ending(beside) == (alone(first), "stop")
    engine.close()


def test_a_deadline_passes_while_its_image_is_read() -> None:
    model = Standin()
    gate = Gate(model, "make_crops")
    engine = Engine(model)
    with pytest.raises(DeadlineExceeded):
        list(engine.submit(ask(Plan(), picture(1), timeout=0.01)))
    other = ask(Plan(steps=2))
    assert ending(engine.submit(other)) == (alone(other), "stop")
    gate.opened.set()
    engine.close()


@pytest.mark.parametrize("kind", ["make_crops", "encode_crops", "fill", "forward"])
def test_close_under_load(kind: str) -> None:
    model = Standin()
    gate = Gate(model, kind)
    engine = Engine(model, Limits(running=4))
    runs = [engine.submit(ask(Plan(prompt=9, steps=9, seed=i), picture(i, 2))) for i in range(8)]
    assert gate.reached.wait(PATIENCE)
    closer = threading.Thread(target=engine.close)
    closer.start()
    with pytest.raises(EngineClosed):
        list(runs[-1])  # it waited; the others are told when the call is over
    gate.opened.set()
    assert {ending(run)[1] for run in runs[:-1]} == {"shutting_down"}
    closer.join(PATIENCE)
    assert not closer.is_alive()
    found = engine.stats()["skills"]["query"]
    assert (found["submitted"], found["failed"]) == (8, 8)


def test_what_happened_adds_up() -> None:
    model = Standin()
    gate = Gate(model, "forward")
    engine = Engine(model, Limits(waiting=3, running=2))  # and one more may wait, which has a place
    plans = [Plan(prompt=5, steps=3), Plan(prompt=2, steps=4, breaks=2), Plan(prompt=6, steps=5)]
    runs = [engine.submit(ask(plans[0], picture(1)))]
    assert gate.reached.wait(PATIENCE)
    runs += [engine.submit(ask(plan, picture(1), priority="batch")) for plan in plans[1:]]
    runs += [engine.submit(ask(Plan())), engine.submit(ask(Plan(), timeout=1e-9))]
    with pytest.raises(EngineBusy):
        engine.submit(ask(Plan(), priority="batch"))
    runs[3].cancel()
    gate.opened.set()
    assert [ending(run)[1] for run in runs] == [
        "stop", "generation_failed", "stop", "cancelled", "timeout",
    ]  # fmt: skip
    found = engine.stats()
    query = found["skills"]["query"]
    assert [query[how] for how in ("submitted", "done", "failed", "cancelled")] == [5, 2, 2, 1]
    assert found["refused"] == {"queue_full": 1}
    # Three times an image, of five positions; prompts of the two that were done.
    assert query["tokens"] == {"prompt": 5 + 6 + 2 * 5, "image": 2 * 4, "cached": 5, "completion": 3 + 5}
    assert {tier: n for tier, n in found["images"].items() if n} == {"miss": 1, "hot": 2}
    fed = [fed for kind, rows in model.asked if kind == "forward" for fed in rows]
    assert sum(step["rows"] for step in found["steps"].values()) == sum(map(len, fed))
    passes = sum(found["steps"][kind]["count"] for kind in ("prefill", "decode"))
    assert passes == model.times("forward")
    assert found["queue"] == {"waiting": 0, "running": 0, "encoding": 0} and found["bytes"]["kv"] == 0
    engine.close()
