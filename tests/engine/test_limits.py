"""What may be set of an engine and of a load, and who counts as waiting."""

import threading
from typing import Any

import pytest
from standin import Plan, Standin, ask, needs, picture
from turning import Turned

import galago
from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.errors import EngineBusy, InvalidRequest
from galago.fleet.pool import ModelPool
from galago.request import Done, Query, Request

PATIENCE = 60
NUMBERS = ("waiting", "running", "kv_bytes", "prefix_bytes", "embedding_bytes", "disk_bytes")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [-1, True, 1.0, float("nan"), float("inf"), "8"])
def test_a_limit_is_a_whole_number(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} must be a whole number") as raised:
        Limits(**{name: value})
    assert raised.value.param == name


@pytest.mark.parametrize(
    ("name", "value"), [("running", 0), ("kv_bytes", 0), ("disk", "folder"), ("tidy", "often"), ("tidy", None)]
)
def test_other_limits(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=f"^{name} must be") as raised:
        Limits(**{name: value})
    assert raised.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("threads", value) for value in (0, -1, True, 1.5, float("nan"), "2")],
        *[("model", value) for value in ("", 5, b"scenes")],
        *[(name, value) for name in ("precision", "profile", "device", "revision") for value in ("", 5)],
        *[("variants", value) for value in ("", 5)],
        ("progress", 5),
        ("limits", {"waiting": 1}),
    ],
)
def test_a_load_is_checked_before_it_begins(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        galago.load(**{name: value})
    assert raised.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("budget", value) for value in (-1, 1e9, float("nan"), "8", True)],
        *[("keep_alive", value) for value in (-1, float("nan"), "5", True)],
    ],
)
def test_a_pool_is_checked(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as raised:
        ModelPool(**{name: value})
    assert raised.value.param == name


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), True, "5"])
def test_a_time_limit_is_seconds(seconds: Any) -> None:
    with pytest.raises(InvalidRequest, match="timeout must be seconds"):
        Request(Query("a"), timeout=seconds)


@pytest.mark.parametrize("seconds", [threading.TIMEOUT_MAX, 1e300, float("inf"), 10**400])
def test_a_time_limit_past_what_clocks_take_is_none(seconds: float) -> None:
    model = Standin()
    go = threading.Event()
    model.step_in = lambda kind, rows: assert_(kind != "make_crops" or go.wait(PATIENCE))
    engine = Engine(model)
    run = engine.submit(ask(Plan(), picture(1), timeout=seconds))
    assert engine.submit(ask(Plan(), timeout=1e-9)).poll() is None  # wakes the thread, which rests until the limit
    go.set()
    assert isinstance([*run][-1], Done)
    engine.close()


def assert_(holds: object) -> None:
    assert holds


@pytest.mark.parametrize(("waiting", "running"), [(0, 1), (0, 16), (1, 16), (3, 2)])
def test_who_finds_a_place_does_not_wait(waiting: int, running: int) -> None:
    """So many that come at once are taken into an idle engine, and one more is not."""
    turned = Turned(Standin(), Limits(waiting=waiting, running=running))
    asked = [turned.put(ask(Plan(steps=9))) for _ in range(waiting + running)]
    for _ in range(2):
        with pytest.raises(EngineBusy):
            turned.put(ask(Plan()))
        turned.turn()
    turned.run()
    assert [one.how for one in asked] == ["done"] * (waiting + running)


def test_who_waits_for_memory_waits() -> None:
    """Though there is a place."""
    turned = Turned(Standin(), Limits(waiting=1, running=16, kv_bytes=3 * needs(Plan(steps=99), None)))
    asked = []
    with pytest.raises(EngineBusy):
        for _ in range(17):
            asked.append(turned.put(ask(Plan(steps=99))))
            turned.turn()
            assert len(turned.queue) <= 1
    turned.run()
    assert len(asked) == 4 and {one.how for one in asked} == {"done"}


def test_a_place_is_free_when_its_request_is_told_done() -> None:
    """Clients that ask one after the other are never refused, though nobody may wait."""
    engine = Engine(Standin(), Limits(waiting=0, running=2))
    failed: list[BaseException] = []

    def client() -> None:
        try:
            for i in range(200):
                assert isinstance([*engine.submit(ask(Plan(seed=i)))][-1], Done)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    engine.close()
    assert not failed


def test_the_refusal_says_what_is_full() -> None:
    for waiting, said in ((0, "none may wait"), (1, "1 requests are waiting already")):
        turned = Turned(Standin(), Limits(waiting=waiting, running=1))
        for _ in range(waiting + 1):
            turned.put(ask(Plan()))
        with pytest.raises(EngineBusy, match=said):
            turned.put(ask(Plan()))
        turned.run()


def test_a_single_place_has_room_for_the_longest_request() -> None:
    with galago.load(limits=Limits(running=1)) as model:
        assert "answer" in model.query(None, "what?", settings={"max_tokens": 100_000})
