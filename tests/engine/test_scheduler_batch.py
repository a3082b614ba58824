"""What requests of a batch, which nobody watches, wait for."""

from standin import Plan, Standin, ask, picture
from turning import Turned, rows, whole

from galago.engine.limits import Limits


def test_steps_of_a_batch_wait_for_its_images_and_go_together() -> None:
    def passes(priority: str) -> list[int]:
        model = Standin()
        turned = Turned(model, Limits(running=4))
        asked = [turned.put(ask(Plan(steps=6, seed=i), picture(i), priority=priority)) for i in range(4)]
        turned.run()
        assert whole(*asked)
        turned.emptied()
        return [len(fed) for fed in rows(model)]

    together, apart = passes("batch"), passes("interactive")
    assert together == [4] * 6
    assert len(apart) > 6 and sum(apart) == sum(together)


def test_who_is_watched_does_not_wait_for_the_images_of_a_batch() -> None:
    model = Standin()
    turned = Turned(model)
    watched = turned.put(ask(Plan(steps=12)))
    batch = [turned.put(ask(Plan(steps=2, seed=i), picture(i), priority="batch")) for i in range(4)]
    for turn in range(1, 8):
        turned.turn()
        assert len(watched.events) == turn
    turned.run()
    assert whole(watched, *batch)
