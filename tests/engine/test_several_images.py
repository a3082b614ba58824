"""Sequences that begin with several images: each is seen once, whoever shows it, and a beginning is made once."""

import logging

import pytest
from standin import PREFIX, Plan, Rows, Standin, ask, picture
from turning import Turned, whole

from galago.engine.limits import Limits
from galago.errors import GenerationFailed
from galago.request import Done

FRAMES = [picture(seed, tiles) for seed, tiles in enumerate((1, 2, 1, 3, 1, 2))]


def digests(turned: Turned, kind: str) -> list[Rows]:
    return [rows for asked, rows in turned.model.asked if asked == kind]


def test_overlapping_clips_share_their_frames() -> None:
    turned = Turned(Standin())
    asked = [turned.put(ask(Plan(steps=3, seed=i), FRAMES[i : i + 4])) for i in range(3)]
    turned.run()
    assert whole(*asked)
    assert turned.model.times("make_crops") == turned.model.times("embed") == len(FRAMES)
    assert turned.model.times("prefix") == 3
    turned.emptied()


def test_frames_are_known_when_they_come_back() -> None:
    turned = Turned(Standin(), Limits(prefix_bytes=0))
    first = turned.put(ask(Plan(), FRAMES[:4]))
    turned.run()
    later = turned.put(ask(Plan(), [*FRAMES[2:5], FRAMES[0].copy()]))
    turned.run()
    assert whole(first, later)
    assert turned.model.times("make_crops") == 5
    found = turned.metrics.stats()["images"]
    assert (found["miss"], found["warm"]) == (5, 3)


def test_another_question_pays_for_its_own_text_alone() -> None:
    turned = Turned(Standin())
    asked = []
    for seed in range(3):
        asked.append(turned.put(ask(Plan(prompt=4, steps=2, seed=seed), FRAMES[:3])))
        turned.run()
    assert whole(*asked) and turned.model.times("prefix") == 1
    assert [one.end.usage.cached_tokens for one in asked if isinstance(one.end, Done)] == [0, PREFIX, PREFIX]


@pytest.mark.parametrize(("images", "before"), [(FRAMES[1::-1], 0), (FRAMES[:3], 0), (FRAMES[:1], 0), (FRAMES[:2], 1)])
def test_what_begins_otherwise_is_another(images: list, before: int) -> None:
    """In another order, with more or fewer images, with another text around them."""
    turned = Turned(Standin())
    one, other = turned.put(ask(Plan(), FRAMES[:2])), turned.put(ask(Plan(before=before), images))
    turned.run()
    assert whole(one, other) and one.events != other.events
    assert turned.model.times("prefix") == 2


def test_an_image_that_stands_twice_is_seen_once() -> None:
    turned = Turned(Standin())
    one = turned.put(ask(Plan(), [FRAMES[0], FRAMES[1], FRAMES[0]]))
    turned.run()
    assert whole(one) and turned.model.times("make_crops") == 2
    turned.emptied()


@pytest.mark.parametrize("kind", ["make_crops", "crop", "embed"])
def test_a_frame_that_fails_takes_nobody_with_it_who_does_not_show_it(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    calm = Turned(Standin())
    calm.put(ask(Plan(), FRAMES[3]))
    calm.run()
    bad = {digest for rows in digests(calm, kind) for row in rows for digest in row}

    def step_in(asked: str, rows: Rows) -> None:
        if asked == kind and any(digest in bad for row in rows for digest in row):
            raise RuntimeError("broken")

    model = Standin(crops_per_pass=2)
    model.step_in = step_in
    turned = Turned(model)
    asked = [turned.put(ask(Plan(seed=i), FRAMES[i : i + 2])) for i in range(5)]
    turned.run()
    assert [one.how for one in asked] == ["done", "done", "failed", "failed", "done"]
    assert all(isinstance(one.end, GenerationFailed) for one in asked[2:4])
    assert whole(asked[0], asked[1], asked[4])
    turned.emptied()


@pytest.mark.parametrize("kind", ["make_crops", "encode_crops", "crop", "embed", "prefix", "fill"])
def test_who_goes_leaves_the_frames_to_the_others(kind: str) -> None:
    turned = Turned(Standin(crops_per_pass=1))
    asked = [turned.put(ask(Plan(seed=i), FRAMES[i : i + 3])) for i in range(3)]
    while kind not in [asked_for for asked_for, _ in turned.model.asked]:
        turned.step()
    turned.queue.cancel(asked[0].job)
    turned.run()
    assert asked[0].how == "cancelled" and whole(*asked[1:])
    turned.emptied()


def test_nothing_is_seen_for_those_who_went() -> None:
    turned = Turned(Standin(crops_per_pass=1))
    one = turned.put(ask(Plan(), FRAMES))
    while not turned.model.times("crop"):
        turned.step()
    turned.queue.cancel(one.job)
    before = turned.model.times("crop")
    turned.run()
    assert one.how == "cancelled" and turned.model.times("crop") == before
    turned.emptied()
