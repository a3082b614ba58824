"""Turn by turn: what goes into each pass, who waits for what, what is shared and what is let go."""

import gc
import weakref
from itertools import pairwise

import pytest
from PIL import ImageOps
from standin import CHUNK, POSITION_BYTES, PREFIX, PREFIX_BYTES, Plan, Standin, alone, ask, encode, needs, picture
from turning import Asked, Turned, rows, whole

from galago.engine.limits import Limits
from galago.errors import DeadlineExceeded, EngineBusy, EngineClosed, InvalidRequest
from galago.request import Done

# --- prompts and steps -------------------------------------------------------------------------


def test_a_long_prompt_goes_in_pieces_beside_the_steps_of_others() -> None:
    model = Standin(rows_per_pass=4)
    turned = Turned(model)
    running = [turned.put(ask(Plan(steps=12, seed=i))) for i in range(3)]
    turned.turn()
    assert rows(model) == [[1, 1, 1]]
    long = turned.put(ask(Plan(prompt=18, steps=2)))
    before = [len(one.events) for one in running]
    for turn in range(1, 6):
        turned.turn()
        # A piece each turn, and a step of every other.
        assert [len(one.events) for one in running] == [n + turn for n in before]
    assert rows(model)[1:] == [[1, 1, 1, 4]] * 4 + [[1, 1, 1, 2]]
    assert len(long.events) == 1
    turned.run()
    assert whole(*running, long)
    turned.emptied()


def test_only_the_last_piece_of_a_prompt_gives_logits() -> None:
    model = Standin(rows_per_pass=4)
    wanted: list[bool] = []
    forward = model.forward
    model.forward = lambda caches, feeds: wanted.append("logits" in feeds[0].heads) or forward(caches, feeds)  # type: ignore
    turned = Turned(model)
    one = turned.put(ask(Plan(prompt=10)))
    turned.run()
    assert whole(one) and wanted == [False, False, True]


def test_prompts_are_fed_one_after_the_other_by_rank() -> None:
    model = Standin(rows_per_pass=4)
    turned = Turned(model)
    first, batch, late = (
        turned.put(ask(Plan(prompt=8), priority=how)) for how in ("interactive", "batch", "interactive")
    )
    turned.scheduler.batch_pause.count(0.0, 1e9)  # however slow this machine: nothing of a batch beside the others
    ended = []
    while not all(one.how for one in turned.asked):
        turned.turn()
        ended += [one for one in turned.asked if one.how and one not in ended]
    assert ended == [first, late, batch]
    assert rows(model) == [[4]] * 6


def test_steps_of_all_sequences_share_a_pass() -> None:
    model = Standin()
    turned = Turned(model)
    asked = [turned.put(ask(Plan(steps=5, seed=i))) for i in range(8)]
    turned.run()
    assert whole(*asked) and rows(model) == [[1] * 8] * 5


# --- who is in ---------------------------------------------------------------------------------


def test_no_more_run_than_may() -> None:
    turned = Turned(Standin(), Limits(running=2))
    asked = [turned.put(ask(Plan(steps=3, seed=i))) for i in range(5)]
    turned.turn()
    assert turned.scheduler.snapshot().running == 2 and len(turned.queue) == 3
    turned.run()
    assert whole(*asked)


def test_interactive_requests_are_let_in_before_those_of_a_batch() -> None:
    turned = Turned(Standin(), Limits(running=1))
    order = ["batch", "interactive", "batch", "interactive"]
    asked = [turned.put(ask(Plan(steps=2, seed=i), priority=how)) for i, how in enumerate(order)]
    ended: list[Asked] = []
    while len(ended) < 4:
        turned.turn()
        ended += [one for one in asked if one.how and one not in ended]
    assert ended == [asked[1], asked[3], asked[0], asked[2]]


def test_a_large_request_is_not_passed_over_by_small_ones() -> None:
    small, large = Plan(steps=6), Plan(prompt=CHUNK, steps=6)
    turned = Turned(Standin(), Limits(kv_bytes=needs(large, None) + needs(small, None) - 1))
    asked = [turned.put(ask(plan)) for plan in (small, large, small)]
    turned.turn()
    assert [len(one.events) for one in asked] == [1, 0, 0]  # room for both small ones, but not out of turn
    turned.run()
    assert whole(*asked)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_request_that_ends_with_its_image_makes_room(seed: int) -> None:
    turned = Turned(Standin(), Limits(running=1))
    turned.put(ask(Plan(), picture(1)))
    turned.run()
    asked = [turned.put(ask(Plan(steps=0, starts="ii"), picture(seed))), turned.put(ask(Plan()))]
    turned.run()
    assert whole(*asked)


def test_what_can_never_fit_is_refused() -> None:
    plan = Plan(prompt=9, steps=3)
    for bytes_, how in ((needs(plan, None), "done"), (needs(plan, None) - 1, "failed")):
        turned = Turned(Standin(), Limits(kv_bytes=bytes_))
        one, other = turned.put(ask(plan)), turned.put(ask(Plan()))
        turned.run()
        assert one.how == how and whole(other)
    assert isinstance(one.end, InvalidRequest) and one.end.param == "max_tokens"


def test_a_full_queue_refuses() -> None:
    turned = Turned(Standin(), Limits(waiting=1, running=1))
    asked = [turned.put(ask(Plan())) for _ in range(2)]
    with pytest.raises(EngineBusy):
        turned.put(ask(Plan()))
    turned.queue.cancel(asked[0].job)
    asked.append(turned.put(ask(Plan())))
    turned.run()
    assert [one.how for one in asked] == ["cancelled", "done", "done"]


# --- images ------------------------------------------------------------------------------------


def test_pieces_of_an_image_alternate_with_steps() -> None:
    model = Standin(crops_per_pass=2)
    turned = Turned(model)
    running = turned.put(ask(Plan(steps=40)))
    turned.turn()
    one = turned.put(ask(Plan(steps=2), picture(1, 5)))
    while one.how != "done":
        turned.step()
    kinds = [kind for kind, _ in model.asked if kind in ("crop", "fill", "forward")]
    assert kinds.count("crop") == 5 and kinds.count("fill") == 2
    # A running answer waits for one piece at the most.
    assert all("forward" in pair for pair in pairwise(kinds))
    assert max(len(seen) for kind, seen in model.asked if kind == "encode_crops") == 2
    turned.run()
    assert whole(running, one)


def test_images_and_prompts_alternate() -> None:
    model = Standin(rows_per_pass=1, crops_per_pass=1)
    turned = Turned(model)
    turned.put(ask(Plan(prompt=30)))
    turned.put(ask(Plan(), picture(1, 4)))
    turned.run()
    kinds = [kind for kind, _ in model.asked if kind in ("crop", "fill", "forward")]
    last = max(i for i, kind in enumerate(kinds) if kind != "forward")
    first = min(i for i, kind in enumerate(kinds) if kind != "forward")
    assert all(a != b or "crop" not in (a, b) for a, b in pairwise(kinds[first : last + 1]))
    assert kinds[first : last + 1].count("forward") < 12


def test_crops_of_several_images_share_a_pass() -> None:
    model = Standin(crops_per_pass=4)
    turned = Turned(model)
    asked = [turned.put(ask(Plan(), picture(i, 2))) for i in range(3)]
    turned.step()  # which images they are
    turned.step()  # their crops
    turned.run()
    assert [len(seen) for kind, seen in model.asked if kind == "encode_crops"] == [4, 2]
    assert whole(*asked)


def test_eight_questions_share_one_image() -> None:
    model = Standin()
    turned = Turned(model)
    image = picture(1, 3)
    asked = [turned.put(ask(Plan(steps=4, seed=i), image.copy())) for i in range(4)]
    most = 0
    for i in range(200):
        turned.step()
        most = max(most, model.prefix_bytes)
        if i == 12:  # some while it is on its way, some when it is known
            asked += [turned.put(ask(Plan(steps=4, seed=i), image.copy())) for i in range(4, 8)]
    assert whole(*asked) and len(asked) == 8
    assert [model.times(kind) for kind in ("make_crops", "embed", "prefix")] == [1, 1, 1] and model.times("crop") == 3
    assert most == PREFIX_BYTES
    found = turned.metrics.stats()["images"]
    assert found["miss"] == 1 and found.get("shared", 0) + found.get("hot", 0) == 7
    cached = [one.end.usage.cached_tokens for one in asked if isinstance(one.end, Done)]
    assert cached == [0] + [PREFIX] * 7  # who asked first pays
    turned.emptied()


def test_an_image_in_use_is_made_once_without_room_in_the_cache() -> None:
    model = Standin()
    turned = Turned(model, Limits(prefix_bytes=0, embedding_bytes=0))
    image = picture(1)
    first = turned.put(ask(Plan(steps=30), image))
    while not first.events:
        turned.step()
    others = [turned.put(ask(Plan(seed=i), image)) for i in range(3)]
    turned.run()
    assert whole(first, *others) and model.times("prefix") == 1
    held = turned.scheduler.snapshot().bytes
    assert held["prefixes"] == 0
    turned.put(ask(Plan(), image))
    turned.run()
    assert model.times("prefix") == 2
    turned.emptied()


def test_prefixes_that_the_cache_does_not_hold_are_counted() -> None:
    turned = Turned(Standin(), Limits(prefix_bytes=PREFIX_BYTES))
    asked = [turned.put(ask(Plan(steps=30, seed=i), picture(i % 2))) for i in range(4)]
    while not all(one.events for one in asked):
        turned.step()
    now = turned.scheduler.snapshot().bytes
    assert now["prefixes"] == turned.model.prefix_bytes == 2 * PREFIX_BYTES
    # One of the two is in the cache's budget, the other in that of the running requests.
    own = 4 * (1 + 30 + CHUNK) * POSITION_BYTES
    assert turned.scheduler.reserved_bytes == own + PREFIX_BYTES
    turned.run()
    turned.emptied()


def test_room_that_is_shared_is_let_to_others() -> None:
    plan = Plan(steps=3)
    own = needs(plan, None)
    turned = Turned(Standin(), Limits(kv_bytes=4 * own + 2 * PREFIX_BYTES, prefix_bytes=0))
    asked = [turned.put(ask(plan, picture(1))) for _ in range(4)]
    most = 0
    while not all(one.how for one in asked):
        turned.step()
        most = max(most, turned.scheduler.snapshot().running)
    assert most == 4


def test_variants_share_embeddings_and_details_share_nothing() -> None:
    model = Standin()
    turned = Turned(model)
    image = picture(1, 3)
    asked = [
        turned.put(ask(Plan(seed=3), image, variant=variant, detail=detail))
        for detail in ("high", "low")
        for variant in (None, "a", "b")
    ]
    turned.run()
    assert whole(*asked) and len({str(one.events) for one in asked}) == 6
    assert (model.times("embed"), model.times("prefix")) == (2, 6)


def test_sequences_of_one_request_in_turn() -> None:
    model = Standin()
    turned = Turned(model)
    image = picture(1, 2)
    asked = [
        turned.put(ask(Plan(steps=3, starts=starts, seed=2), image)) for starts in ("i", "iei", "i-ie", "-", "ieme")
    ]
    turned.run()
    assert whole(*asked)
    assert model.times("prefix") == 2  # the image and its mirror
    assert alone(ask(Plan(seed=2), image)) != alone(ask(Plan(seed=2), ImageOps.mirror(image)))
    turned.emptied()


def test_an_image_that_a_request_goes_on_with_stays() -> None:
    """Others' images would push it out between its sequences."""
    model = Standin()
    turned = Turned(model, Limits(prefix_bytes=PREFIX_BYTES, embedding_bytes=0))
    image = picture(1)
    one = turned.put(ask(Plan(starts="ieieie"), image))
    others = [turned.put(ask(Plan(), picture(i))) for i in range(2, 6)]
    turned.run()
    assert whole(one, *others) and model.times("prefix") == 5


def test_nothing_is_asked_of_the_vision_tower_for_an_encoded_image() -> None:
    model = Standin()
    turned = Turned(model)
    one = turned.put(ask(Plan(prompt=5, steps=3), encode(picture(1, 2))))
    turned.run()
    assert whole(one) and {kind for kind, _ in model.asked} == {"new", "forward"}


# --- cancelled and late ------------------------------------------------------------------------


def until(turned: Turned, kind: str) -> None:
    """Turn until the model is asked for this."""
    while kind not in [asked for asked, _ in turned.model.asked]:
        turned.step()


@pytest.mark.parametrize("kind", ["make_crops", "encode_crops", "crop", "prefix", "fill", "forward"])
def test_one_of_those_who_share_an_image_is_cancelled(kind: str) -> None:
    turned = Turned(Standin(crops_per_pass=1))
    asked = [turned.put(ask(Plan(steps=3, seed=i), picture(1, 3))) for i in range(3)]
    until(turned, kind)
    turned.queue.cancel(asked[0].job)
    turned.run()
    assert asked[0].how == "cancelled" and whole(*asked[1:])
    assert turned.model.times("prefix") == 1 and turned.model.times("crop") == 3
    turned.emptied()


@pytest.mark.parametrize("kind", ["make_crops", "encode_crops", "crop", "prefix", "fill"])
def test_nobody_wants_the_image_any_more(kind: str) -> None:
    model = Standin(crops_per_pass=1)
    turned = Turned(model)
    asked = [turned.put(ask(Plan(seed=i), picture(1, 3))) for i in range(3)]
    until(turned, kind)
    for one in asked:
        turned.queue.cancel(one.job)
    before = len(model.asked)
    turned.run()
    assert len(model.asked) == before
    assert [one.how for one in asked] == ["cancelled"] * 3
    turned.emptied()
    again = turned.put(ask(Plan(), picture(1, 3)))
    turned.run()
    assert whole(again)


def test_an_image_is_given_up_and_wanted_again_beside_another() -> None:
    """The pass over both goes on; what comes of it must not pass for the new request's."""
    model = Standin(crops_per_pass=2)
    turned = Turned(model, Limits(embedding_bytes=0))
    first, other = (turned.put(ask(Plan(seed=i), picture(i))) for i in range(2))
    for _ in range(3):
        turned.step()
    assert [len(seen) for kind, seen in model.asked if kind == "encode_crops"] == [2]
    turned.queue.cancel(first.job)
    again = turned.put(ask(Plan(seed=7), picture(0)))
    turned.turn()
    turned.errands.run()  # which image it is; its crops are not there yet when the pass ends
    turned.turn()
    turned.turn()
    turned.run()
    assert whole(other, again)


def test_nothing_of_an_image_is_kept_when_all_is_over() -> None:
    turned = Turned(Standin(), Limits(prefix_bytes=0, embedding_bytes=0))
    image = picture(1, 2)
    gone = weakref.ref(image)
    turned.put(ask(Plan(), image))
    turned.run()
    turned.asked.clear()
    del image
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", ["", "make_crops", "crop", "fill", "forward"])
def test_a_deadline_passes(kind: str) -> None:
    turned = Turned(Standin(rows_per_pass=1), Limits(running=2))
    late = turned.put(ask(Plan(prompt=4, steps=9), picture(1, 3), timeout=1e9))
    other = turned.put(ask(Plan(steps=9), picture(1, 3)))
    waiting = turned.put(ask(Plan(), timeout=1e9))
    if kind:
        until(turned, kind)
    for one in (late, waiting):
        one.job.deadline = one.job.arrival
    turned.turn()
    assert isinstance(late.end, DeadlineExceeded) and isinstance(waiting.end, DeadlineExceeded)
    turned.run()
    assert whole(other)
    turned.emptied()


def test_close_ends_everything() -> None:
    model = Standin()
    turned = Turned(model, Limits(running=3))
    asked = [turned.put(ask(Plan(prompt=9, steps=9), picture(i) if i % 2 else None)) for i in range(6)]
    for _ in range(4):
        turned.turn()
    turned.close()
    assert all(isinstance(one.end, EngineClosed) for one in asked)
    assert turned.metrics.stats()["skills"]["query"]["failed"] == 6
    assert not turned.errands
    turned.emptied()
    with pytest.raises(EngineClosed):
        turned.put(ask(Plan()))
