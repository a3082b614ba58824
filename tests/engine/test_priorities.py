"""What requests of a batch leave to those that somebody waits for, and that they go on nevertheless."""

import threading
import time
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from standin import Plan, Rows, Standin, ask, filed, needs, number, picture
from turning import Asked, Turned, rows, whole

from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.engine.priorities import GRACE_S, MEMORY_DIVISOR, PAUSE
from galago.errors import EngineBusy
from galago.request import Done, Request

PATIENCE = 60
PIECES = ("crop", "fill", "forward")
LONG = Plan(steps=500)


class Clock:
    """The scheduler's time: each piece of a model's work takes a second, all else none."""

    def __init__(self) -> None:
        self.now = 0.0

    def tick(self, kind: str, _: Rows) -> None:
        self.now += kind in PIECES


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Turned]:
    """Makes a scheduler by that clock."""

    def make(limits: Limits | None = None, clock: Clock | None = None, **how: Any) -> Turned:
        clock, model = clock or Clock(), Standin(**how)
        monkeypatch.setattr("galago.engine.scheduler.time", SimpleNamespace(perf_counter=lambda: clock.now))
        model.step_in = clock.tick
        return Turned(model, limits)

    return make


def batch(plan: Plan, image: Any = None) -> Request:
    return ask(plan, image, priority="batch")


def digest(image: Image.Image) -> int:
    """Of an image of one tile, as the stand-in is asked for its crop."""
    return number(image.tobytes())


def until_done(turned: Turned, one: Asked) -> None:
    while not one.how:
        turned.step()


# --- places ------------------------------------------------------------------------------------


def test_a_batch_takes_no_place_from_interactive_requests() -> None:
    turned = Turned(Standin(), Limits(running=2))
    crowd = [turned.put(batch(Plan(steps=30, seed=i))) for i in range(3)]
    turned.turn()
    assert turned.running("batch") == 2
    watched = [turned.put(ask(Plan(steps=5, seed=i))) for i in range(3)]
    turned.turn()
    assert (turned.running("interactive"), turned.running("batch")) == (2, 2)
    assert [len(one.events) for one in watched] == [1, 1, 0]
    turned.run()
    assert whole(*crowd, *watched)
    turned.emptied()


def test_a_batch_fills_what_is_left() -> None:
    turned = Turned(Standin(), Limits(running=3))
    watched = [turned.put(ask(Plan(steps=5, seed=i))) for i in range(2)]
    crowd = [turned.put(batch(Plan(steps=3, seed=i))) for i in range(3)]
    turned.turn()
    assert (turned.running("interactive"), turned.running("batch")) == (2, 1)
    turned.run()
    assert whole(*crowd, *watched)


def test_a_batch_takes_no_place_in_the_queue() -> None:
    turned = Turned(Standin(), Limits(waiting=1, running=1))
    crowd = [turned.put(batch(Plan(seed=i))) for i in range(2)]
    with pytest.raises(EngineBusy):
        turned.put(batch(Plan()))
    watched = [turned.put(ask(Plan(seed=i))) for i in range(2)]
    for priority in ("interactive", "batch"):
        with pytest.raises(EngineBusy):
            turned.put(ask(Plan(), priority=priority))
    turned.run()
    assert whole(*crowd, *watched)


# --- memory ------------------------------------------------------------------------------------


def test_a_batch_leaves_a_share_of_the_memory() -> None:
    plan = Plan(steps=5)
    turned = Turned(Standin(), Limits(waiting=20, kv_bytes=2 * MEMORY_DIVISOR * needs(plan, None)))
    crowd = [turned.put(batch(plan)) for _ in range(10)]
    turned.turn()
    assert turned.running("batch") == 2 * MEMORY_DIVISOR - 2
    watched = [turned.put(ask(plan)) for _ in range(3)]
    turned.turn()
    assert [len(one.events) for one in watched] == [1, 1, 0]
    turned.run()
    assert whole(*crowd, *watched)


def test_one_of_a_batch_may_need_all_of_the_memory() -> None:
    plan = Plan(prompt=9, steps=3)
    turned = Turned(Standin(), Limits(kv_bytes=needs(plan, None)))
    crowd = [turned.put(batch(plan)) for _ in range(2)]
    turned.turn()
    assert turned.running("batch") == 1
    turned.run()
    assert whole(*crowd)


def test_who_waits_for_the_memory_of_a_batch_does_not_wait_for_its_pauses(timed: Callable[..., Turned]) -> None:
    small, large = Plan(steps=40), Plan(prompt=60, steps=9)
    turned = timed(Limits(kv_bytes=needs(large, None) + needs(small, None)), rows_per_pass=60)
    crowd = turned.put(batch(large))
    turned.turn()
    watched = [turned.put(ask(small, None)) for _ in range(2)]
    while not watched[1].events:
        turned.turn()
    assert crowd.how == "done" and len(watched[0].events) < 15
    turned.run()
    assert whole(crowd, *watched)


# --- time --------------------------------------------------------------------------------------


def test_a_batch_pauses_for_interactive_requests_and_answers_as_ever(timed: Callable[..., Turned]) -> None:
    turned = timed()
    crowd = [turned.put(batch(Plan(steps=20, seed=i), picture(i))) for i in range(3)]
    while not crowd[0].events:
        turned.step()
    before = [len(one.events) for one in crowd]
    watched = turned.put(ask(Plan(steps=PAUSE)))
    for turn in range(1, PAUSE):
        turned.turn()
        assert len(watched.events) == turn and [len(one.events) for one in crowd] == before
    turned.run()
    assert whole(watched, *crowd)
    turned.emptied()


def test_a_batch_goes_on_beside_interactive_requests_at_a_tenth_of_its_speed(timed: Callable[..., Turned]) -> None:
    turned = timed()
    watched = turned.put(ask(LONG))
    crowd = [turned.put(batch(Plan(steps=8, seed=i), picture(i))) for i in range(3)]
    while not all(one.how for one in crowd):
        turned.step()
    passes = len(rows(turned.model))
    theirs = sum(kind in PIECES for kind, _ in turned.model.asked) - len(watched.events)
    assert not watched.how
    assert len(watched.events) >= PAUSE * (theirs - 1)
    # Theirs go together.
    assert rows(turned.model).count([1, 1, 1]) == 8 and passes == len(watched.events) + 8
    turned.run()
    assert whole(watched, *crowd)


def test_a_batch_pauses_a_moment_longer_for_the_next_request(timed: Callable[..., Turned]) -> None:
    clock = Clock()
    turned = timed(clock=clock)
    turned.scheduler.batch_pause.grace_s = GRACE_S
    crowd = turned.put(batch(Plan(steps=20)))
    turned.turn()
    for seed in range(3):
        watched = turned.put(ask(Plan(steps=2, seed=seed)))
        until_done(turned, watched)
        clock.now += 0.9 * GRACE_S
        assert not turned.turn() and len(crowd.events) == 1
    clock.now += 0.2 * GRACE_S
    assert turned.turn() and len(crowd.events) == 2
    turned.run()
    assert whole(*turned.asked)


@pytest.mark.parametrize("tick_s", [0.05 * GRACE_S * i for i in range(16)])
def test_a_batch_goes_on_when_no_next_request_comes(tick_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else wakes the scheduler then; the pause may end between any two looks at the clock."""
    ticks = count(1)
    ticking = SimpleNamespace(perf_counter=lambda: time.perf_counter() + tick_s * next(ticks))
    monkeypatch.setattr("galago.engine.scheduler.time", ticking)
    engine = Engine(Standin())
    runs = [engine.submit(batch(Plan(steps=50))), engine.submit(ask(Plan(steps=20)))]
    ends: list[Any] = []
    reading = threading.Thread(target=lambda: ends.extend([*run][-1] for run in runs), daemon=True)
    reading.start()
    reading.join(PATIENCE)
    assert [type(end) for end in ends] == [Done, Done]
    engine.close()


def test_a_prompt_of_a_batch_waits_for_one_that_came_later(timed: Callable[..., Turned]) -> None:
    turned = timed(rows_per_pass=4)
    crowd = turned.put(batch(Plan(prompt=40)))
    turned.turn()
    watched = turned.put(ask(Plan(prompt=20)))
    for _ in range(5):
        assert not watched.how
        turned.turn()
    assert watched.how and rows(turned.model) == [[4]] * 6
    turned.run()
    assert whole(watched, crowd)


def test_a_batch_goes_on_while_an_interactive_request_waits_for_its_image() -> None:
    """Nothing else wakes the scheduler then."""
    model, go = Standin(), threading.Event()
    image = picture(1)
    model.step_in = lambda kind, seen: None if kind != "make_crops" or go.wait(PATIENCE) else pytest.fail("no end")
    engine = Engine(model)
    watched = engine.submit(ask(Plan(), image))
    crowd = [engine.submit(batch(Plan(steps=20, seed=i))) for i in range(3)]
    for run in crowd:
        assert isinstance([*run][-1], Done)
    assert not watched.ended
    go.set()
    assert isinstance([*watched][-1], Done)
    engine.close()


# --- images ------------------------------------------------------------------------------------


def test_an_image_of_a_batch_waits_for_one_that_came_later(timed: Callable[..., Turned]) -> None:
    turned = timed(crops_per_pass=1)
    crowd = turned.put(batch(Plan(), picture(1, 8)))
    while not turned.model.times("crop"):
        turned.step()
    image = picture(2)
    watched = turned.put(ask(Plan(), image))
    before = len(turned.model.asked)
    until_done(turned, watched)
    kinds = [(kind, seen) for kind, seen in turned.model.asked[before:] if kind in PIECES]
    assert [kind for kind, _ in kinds] == ["crop", "fill", "fill", "forward"] and kinds[0][1] == ((digest(image),),)
    turned.run()
    assert whole(watched, crowd) and turned.model.times("crop") == 9
    turned.emptied()


def test_the_keys_and_values_of_an_image_of_a_batch_wait_too(timed: Callable[..., Turned]) -> None:
    turned = timed()
    crowd = turned.put(batch(Plan(), picture(1)))
    while not turned.model.times("fill"):
        turned.step()
    watched = turned.put(ask(Plan(), picture(2)))
    until_done(turned, watched)
    assert turned.model.times("fill") == 3 and not crowd.how
    turned.run()
    assert whole(watched, crowd) and turned.model.times("fill") == 4


def test_an_image_that_a_batch_began_is_not_begun_anew(timed: Callable[..., Turned]) -> None:
    turned = timed(crops_per_pass=1)
    image = picture(1, 5)
    crowd = turned.put(batch(Plan(steps=20), image))
    while turned.model.times("crop") < 2:
        turned.step()
    watched = turned.put(ask(Plan(steps=3, seed=1), image.copy()))
    until_done(turned, watched)
    assert not crowd.how and [turned.model.times(kind) for kind in ("crop", "embed", "prefix")] == [5, 1, 1]
    turned.run()
    assert whole(watched, crowd)
    turned.emptied()


def test_images_of_a_batch_share_no_pass_with_others(timed: Callable[..., Turned]) -> None:
    turned = timed(crops_per_pass=4)
    crowd = [turned.put(batch(Plan(), picture(i))) for i in range(3)]
    watched = turned.put(ask(Plan(), picture(9)))
    turned.step()  # which images they are
    turned.step()  # their crops
    turned.run()
    assert [len(seen) for kind, seen in turned.model.asked if kind == "encode_crops"] == [1, 3]
    assert whole(watched, *crowd)


@pytest.mark.parametrize("form", [lambda image: image, filed])
def test_an_image_is_decoded_before_those_of_a_batch(form: Callable[[Image.Image], Any]) -> None:
    turned, images = Turned(Standin()), [picture(i) for i in range(5)]
    for image in images[:4]:
        turned.put(batch(Plan(), form(image)))
    watched = turned.put(ask(Plan(), form(images[4])))
    turned.turn()
    for _ in range(2):  # which image it is, and where it was no file, its crops
        turned.errands.run()
        turned.turn()
    made = [seen for kind, seen in turned.model.asked if kind == "make_crops"]
    assert made[0] == ((number(images[4].tobytes(), "high"),),)
    turned.run()
    assert whole(*turned.asked) and watched.how
    turned.emptied()


def test_who_goes_while_an_image_of_a_batch_is_interrupted_takes_nothing_along(timed: Callable[..., Turned]) -> None:
    turned = timed(crops_per_pass=1)
    crowd = [turned.put(batch(Plan(seed=i), picture(i, 6))) for i in range(2)]
    while not turned.model.times("crop"):
        turned.step()
    watched = [turned.put(ask(Plan(), picture(5, 6))) for _ in range(2)]
    while turned.model.times("crop") < 3:
        turned.step()
    turned.queue.cancel(crowd[0].job)
    turned.queue.cancel(watched[0].job)
    turned.run()
    assert (crowd[0].how, watched[0].how) == ("cancelled", "cancelled") and whole(crowd[1], watched[1])
    turned.emptied()


def test_images_of_a_batch_fill_no_memory() -> None:
    turned = Turned(Standin())
    turned.put(ask(Plan(steps=2), picture(seed=0)))
    turned.run()
    one = turned.scheduler.stats()["cache"]["hot"]["bytes"]
    turned = Turned(Standin(), Limits(prefix_bytes=16 * one))
    kept = turned.put(ask(Plan(steps=2), picture(seed=0)))
    turned.run()
    crowd = [turned.put(batch(Plan(steps=2), picture(seed=i))) for i in range(1, 12)]
    turned.run()
    assert whole(kept, *crowd)
    assert turned.scheduler.stats()["cache"]["hot"]["bytes"] <= 3 * one
    again = turned.put(ask(Plan(steps=2), picture(seed=0)))
    turned.run()
    assert whole(again) and isinstance(again.end, Done) and again.end.usage.cached_tokens > 0
