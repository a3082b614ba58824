"""An engine's thread that comes to its end before its time, whatever ended it: nobody is left waiting."""

import ctypes
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from standin import Plan, Standin, ask, picture

from galago.engine.engine import Engine, EngineRun
from galago.engine.limits import Limits
from galago.engine.step import End, Feed, Start, Steps
from galago.errors import EngineFailed, GalagoError
from galago.request import Done, Encode, Event, Request, TextDelta

PATIENCE = 30


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Gate:
    """Keeps the engine's thread in a call of the model until `opened` is set, and then does `then`."""

    def __init__(self, model: Standin, kind: str = "forward", then: Callable[[], None] = lambda: None) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.kind, self.then = kind, then
        model.step_in = self.step_in

    def step_in(self, kind: str, rows: Any) -> None:
        if kind == self.kind:
            self.reached.set()
            assert self.opened.wait(PATIENCE)
            self.then()


def ending(run: EngineRun) -> Event | GalagoError:
    """Its last event, or its error; within the time that a test has."""
    found: list[Event | GalagoError] = []

    def read() -> None:
        try:
            found.extend(run)
        except GalagoError as error:
            found.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert not reader.is_alive(), "it hangs"
    return found[-1]


def raised(error: type[BaseException]) -> None:
    raise error("out of the blue")


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
@pytest.mark.parametrize("kind", ["forward", "new", "encode_crops", "crop", "embed", "prefix", "make_crops"])
def test_all_are_told_what_ended_it(ends: type[BaseException], kind: str) -> None:
    """Those that run, those that wait, and those that come."""
    model = Standin()
    gate = Gate(model, kind, lambda: raised(ends))
    engine = Engine(model, Limits(running=2, kv_bytes=1 << 20))
    runs = [engine.submit(ask(Plan(steps=5, seed=i), picture(i))) for i in range(6)]
    assert gate.reached.wait(PATIENCE)
    gate.opened.set()
    for run in runs:
        error = ending(run)
        assert isinstance(error, EngineFailed) and ends.__name__ in str(error)
    with pytest.raises(EngineFailed, match=ends.__name__):
        engine.submit(ask(Plan()))
    with pytest.raises(EngineFailed):
        list(engine.submit(Request(Encode(), picture(1))))
    assert isinstance(engine.ended, EngineFailed)
    found = engine.stats()
    assert found["queue"] == {"waiting": 0, "running": 0, "encoding": 0} and not any(found["bytes"].values())
    assert (found["skills"]["query"]["submitted"], found["skills"]["query"]["failed"]) == (6, 6)
    engine.close()
    engine.trim()


def test_an_interrupt_from_another_thread() -> None:
    """As debuggers and watchdogs raise it."""
    model = Standin()
    gate, before = Gate(model), threading.enumerate()
    engine = Engine(model, Limits(running=1))
    (worker,) = [thread for thread in threading.enumerate() if thread not in before]
    runs = [engine.submit(ask(Plan(steps=5))) for _ in range(3)]
    assert gate.reached.wait(PATIENCE)
    assert worker.ident
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(worker.ident), ctypes.py_object(KeyboardInterrupt))
    gate.opened.set()
    assert all(isinstance(ending(run), EngineFailed) for run in runs)
    worker.join(PATIENCE)
    assert not worker.is_alive()


class Spiteful(Standin):
    """Its skills do something of their own when they begin, step and are closed."""

    def __init__(self, where: str, does: Callable[[], None]) -> None:
        super().__init__()
        self.where, self.does = where, does

    def skill(self, request: Request) -> Steps:
        return self._spite() if request.priority == "batch" else super().skill(request)

    def _spite(self) -> Steps:
        try:
            if self.where == "begin":
                self.does()
            yield Start(None, 5)
            out = yield Feed(torch.tensor([1]))
            if self.where == "step":
                self.does()
            yield TextDelta(str(out))
            return End("stop", 1)
        finally:
            if self.where == "close":
                self.does()


@pytest.mark.parametrize("where", ["begin", "step", "close"])
def test_a_skill_that_exits(where: str) -> None:
    """Also while it is cleaned up, when its request is neither waiting nor running any more."""
    model = Spiteful(where, lambda: raised(SystemExit))
    gate = Gate(model)
    engine = Engine(model, Limits(running=2, kv_bytes=1 << 20))
    order = ("interactive", "batch") if where == "begin" else ("batch", "interactive")
    runs = [engine.submit(ask(Plan(steps=5), priority=order[0]))]
    assert gate.reached.wait(PATIENCE)
    runs += [engine.submit(ask(Plan(seed=i), priority=order[1])) for i in range(3)]
    if where == "close":
        runs[0].cancel()
    gate.opened.set()
    ends = [ending(run) for run in runs]
    assert all(isinstance(end, EngineFailed) for end in ends[1:])
    with pytest.raises(EngineFailed):
        engine.submit(ask(Plan()))


def test_memory_that_runs_out_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even for the log of what failed."""
    model = Standin()
    gate = Gate(model)
    engine = Engine(model, Limits(running=1))
    runs = [engine.submit(ask(Plan(steps=5))) for _ in range(3)]
    assert gate.reached.wait(PATIENCE)

    def short(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("galago.engine.scheduler.Scheduler.turn", short)
    monkeypatch.setattr("galago.engine.scheduler.log.exception", short)
    gate.opened.set()
    assert all(isinstance(ending(run), EngineFailed | Done) for run in runs)
    with pytest.raises(EngineFailed, match="MemoryError"):
        engine.submit(ask(Plan()))


def test_a_callback_that_raises_harms_nobody() -> None:
    """Neither others nor its own request, whose events are there for whoever looks."""
    engine = Engine(Standin())
    run = engine.submit(ask(Plan(steps=5)))
    rings = 0

    def told() -> None:
        nonlocal rings
        if threading.current_thread().name == "galago-engine":
            rings += 1
            raise ValueError("a broken bell")

    gate = Gate(engine.model)  # type: ignore[arg-type]
    watched = engine.submit(ask(Plan(steps=5, seed=1)))
    watched.watch(told)
    gate.opened.set()
    others = [engine.submit(ask(Plan(steps=3, seed=i))) for i in range(4)]
    assert all(isinstance(ending(one), Done) for one in (run, watched, *others))
    assert rings > 1 and engine.ended is None
    engine.close()


def test_a_callback_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.NOTSET)
    model = Standin()
    gate = Gate(model)
    engine = Engine(model)
    run = engine.submit(ask(Plan(steps=20)))
    assert gate.reached.wait(PATIENCE)
    run._job.on_event = lambda: raised(ValueError)
    gate.opened.set()
    assert isinstance(ending(run), Done)
    assert [record.message for record in caplog.records] == ["a callback of Run.watch raised; its request goes on"]
    engine.close()


def test_a_callback_that_exits_ends_the_engine_with_a_word() -> None:
    model = Standin()
    gate = Gate(model)
    engine = Engine(model, Limits(running=2, kv_bytes=1 << 20))
    runs = [engine.submit(ask(Plan(steps=5, seed=i))) for i in range(4)]
    assert gate.reached.wait(PATIENCE)
    runs[0]._job.on_event = lambda: raised(SystemExit)
    gate.opened.set()
    ends = [ending(run) for run in runs]
    assert all(isinstance(end, EngineFailed | Done) for end in ends)
    assert isinstance(ends[-1], EngineFailed) and "SystemExit" in str(ends[-1])


def test_what_ended_holds_nothing() -> None:
    """All is free as soon as it is let go, and no collection of garbage has to find it."""
    model = Standin()
    gate = Gate(model, then=lambda: raised(SystemExit))
    gate.opened.set()
    engine = Engine(model)
    run = engine.submit(ask(Plan(), picture(1)))
    gc.disable()
    try:
        with suppress(EngineFailed):
            list(run)
        engine.close()
        del engine, run
        assert model.prefix_bytes == 0
    finally:
        gc.enable()
