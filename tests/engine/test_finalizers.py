"""What the garbage collector runs, in whatever thread and wherever it is, waits for nothing; and locks never nest."""

import gc
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest
from standin import Plan, Standin, ask, picture

from galago.answers import collect_answer
from galago.engine import metrics
from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.errors import EngineBusy
from galago.request import Done, Query

PATIENCE = 60


class Knot:
    """Holds something, and itself, so that only the collector finds it."""

    def __init__(self, thing: Any) -> None:
        self.thing, self.knot = thing, self


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Garbage is looked for when the test says."""
    gc.disable()
    yield
    gc.enable()


def test_letting_go_waits_for_no_lock(by_hand: None) -> None:
    """Runs, streams and engines are found by the collector while another thread holds every lock that there is."""
    go, reached = threading.Event(), threading.Event()

    def step_in(kind: str, rows: Any) -> None:
        if kind == "forward" and model.times("forward") > 1:
            reached.set()
            assert go.wait(PATIENCE)

    model = Standin()
    model.step_in = step_in
    engine = Engine(model, Limits(running=1))
    pieces = collect_answer(Query("x"), engine.submit(ask(Plan(steps=9))), stream=True)["answer"]
    next(pieces)
    Knot(pieces)
    Knot(engine.submit(ask(Plan(steps=9))))
    Knot(Engine(Standin()))
    del pieces
    assert reached.wait(PATIENCE)
    collector = threading.Thread(target=gc.collect, daemon=True)
    locks = [vars(engine._queue).get("_lock") or vars(engine._queue)["_changed"], metrics._lock]
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        collector.start()
        collector.join(PATIENCE)
        hangs = collector.is_alive()
    go.set()
    assert not hangs
    assert isinstance([*engine.submit(ask(Plan()))][-1], Done)
    engine.close()
    found = engine.stats()["skills"]["query"]
    assert (found["submitted"], found["cancelled"], found["done"]) == (3, 2, 1)


class Lone:
    """A lock that notes when a thread takes it and has another of its kind."""

    nested: ClassVar[list[str]] = []
    held: ClassVar = threading.local()

    def __init__(self, name: str) -> None:
        self.name, self._lock = name, threading.RLock()

    def __enter__(self) -> None:
        names = self.held.__dict__.setdefault("names", [])
        if others := set(names) - {self.name}:
            self.nested.append(f"{self.name} inside {', '.join(others)}")
        self._lock.acquire()
        names.append(self.name)

    def __exit__(self, *_: Any) -> None:
        self.held.names.remove(self.name)
        self._lock.release()


@pytest.fixture
def collecting() -> Iterator[None]:
    """Garbage is looked for at every chance that there is."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


def test_no_lock_is_taken_inside_another(monkeypatch: pytest.MonkeyPatch, collecting: None) -> None:
    """Of many threads that ask, cancel, let go in circles, and look, while engines come and go."""
    Lone.nested.clear()
    monkeypatch.setattr(metrics, "_lock", Lone("metrics"))
    engine = Engine(Standin(), Limits(waiting=20, running=3))
    engine._queue._lock = Lone("queue")  # type: ignore[assignment]

    def client(number: int) -> None:
        for i in range(12):
            try:
                run = engine.submit(ask(Plan(steps=3, seed=i), picture(i % 3)))
            except EngineBusy:
                continue
            match (number + i) % 4:
                case 0:
                    assert isinstance([*run][-1], Done)
                case 1:
                    run.cancel()
                case 2:
                    circle: list[Any] = [run]
                    circle.append(circle)
                case _:
                    engine.stats()
                    metrics.exposition()
                    circle = [run, Engine(Standin())]
                    circle.append(circle)
            del run

    threads = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    engine.close()
    assert not Lone.nested
