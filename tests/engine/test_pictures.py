"""Images that come as their files: decoded in their turn, within bounds, once, and let go of."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_moondream as tiny
from PIL import Image
from standin import Plan, Standin, alone, ask, filed, picture
from turning import Turned

from galago.engine.decoding import DECODING
from galago.engine.engine import Engine, EngineRun
from galago.engine.limits import Limits
from galago.errors import DeadlineExceeded, EngineBusy, InvalidImage
from galago.media.picture import Picture
from galago.request import Caption, Chat, DetectGaze, Done, Event, Message, Request, Sampling

PATIENCE = 30


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """All of the room is free before and after."""
    assert (DECODING.taken, DECODING.waiting) == (0, 0)
    yield
    until(lambda: (DECODING.taken, DECODING.waiting) == (0, 0))


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    never = threading.Event()
    for _ in range(PATIENCE * 100):
        if holds():
            return
        never.wait(0.01)
    raise AssertionError("it did not come to that")


def told(run: EngineRun) -> list[Event]:
    return [event for event in run if not isinstance(event, Done)]


def broken(image: Image.Image) -> Picture:
    whole = filed(image)
    return replace(whole, data=whole.data[: len(whole.data) // 2], param="image_url")


def test_the_answer_is_that_of_the_image() -> None:
    engine = Engine(Standin())
    images = [picture(i, i) for i in (1, 2, 3)]
    for plan in (Plan(steps=3), Plan(steps=3, starts="im"), Plan(steps=2, starts="iee")):
        expected = [alone(ask(plan, image)) for image in images]
        assert [told(engine.submit(ask(plan, filed(image)))) for image in images] == expected
    engine.close()


def test_what_waits_is_not_decoded() -> None:
    model, held = Standin(), threading.Event()
    model.step_in = lambda kind, rows: None if kind != "forward" else held.wait(PATIENCE) and None
    engine = Engine(model, Limits(running=1))
    first = engine.submit(ask(Plan(), filed(picture(0))))
    pictures = [filed(picture(i)) for i in (1, 2, 3)]
    runs = [engine.submit(ask(Plan(), one)) for one in pictures]
    until(lambda: model.times("forward") == 1)
    assert not any(one.known for one in pictures)
    held.set()
    assert [told(run) for run in (first, *runs)] == [alone(ask(Plan(), picture(i))) for i in range(4)]
    engine.close()


def test_one_that_is_refused_is_not_decoded() -> None:
    model, held = Standin(), threading.Event()
    model.step_in = lambda kind, rows: None if kind != "forward" else held.wait(PATIENCE) and None
    engine = Engine(model, Limits(running=1, waiting=1))
    running = engine.submit(ask(Plan()))
    until(lambda: model.times("forward") == 1)
    waiting = engine.submit(ask(Plan()))
    with pytest.raises(EngineBusy):
        engine.submit(ask(Plan(), broken(picture(1))))
    with pytest.raises(EngineBusy):
        engine.check_queue()
    held.set()
    assert told(running) and told(waiting)
    engine.check_queue()
    engine.close()


def test_a_file_that_breaks_off_fails_its_own_request() -> None:
    engine = Engine(Standin())
    good = [engine.submit(ask(Plan(steps=3), filed(picture(i)))) for i in (1, 2)]
    with pytest.raises(InvalidImage, match="truncated") as said:
        told(engine.submit(ask(Plan(), broken(picture(1)))))
    assert said.value.param == "image_url"
    two = ask(Plan(), [filed(picture(5)), broken(picture(6))])
    with pytest.raises(InvalidImage):
        told(engine.submit(two))
    assert [told(run) for run in good] == [alone(ask(Plan(steps=3), picture(i))) for i in (1, 2)]
    assert not engine._scheduler._encoder._crops, "what was cut from the good one of the two is let go of"
    engine.close()


def test_many_requests_about_one_picture_decode_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, real = list[Picture](), Picture.decode
    monkeypatch.setattr(Picture, "decode", lambda self: (decoded.append(self), real(self))[1])
    model = Standin()
    engine = Engine(model)
    one = filed(picture(1, 3))
    runs = [engine.submit(ask(Plan(steps=3, seed=i), one)) for i in range(8)]
    assert [told(run) for run in runs] == [alone(ask(Plan(steps=3, seed=i), picture(1, 3))) for i in range(8)]
    assert (len(decoded), model.times("make_crops")) == (1, 1)
    # The same pixels in another file are told by decoding it; nothing is cut from it.
    assert told(engine.submit(ask(Plan(), filed(picture(1, 3))))) == alone(ask(Plan(), picture(1, 3)))
    assert (len(decoded), model.times("make_crops")) == (2, 1)
    engine.close()


def test_what_has_left_the_cache_meanwhile_is_decoded_again() -> None:
    turned = Turned(Standin())
    known = turned.put(ask(Plan(), filed(picture(1))))
    turned.run()
    again = turned.put(ask(Plan(seed=2), filed(picture(1))))
    turned.step()
    turned.images.trim()
    turned.run()
    assert [one.events for one in (known, again)] == [alone(one.request) for one in (known, again)]
    turned.emptied()


def test_who_waits_for_room_can_leave() -> None:
    engine = Engine(Standin())
    with DECODING.hold(DECODING.most):
        gone = engine.submit(ask(Plan(), filed(picture(1))))
        stays = engine.submit(ask(Plan(), filed(picture(2))))
        until(lambda: DECODING.waiting >= 1)
        gone.cancel()
        assert [event.finish_reason for event in gone if isinstance(event, Done)] == ["cancelled"]
        with pytest.raises(DeadlineExceeded):
            told(engine.submit(ask(Plan(), filed(picture(3)), timeout=0.01)))
        assert told(engine.submit(ask(Plan(steps=2)))) == alone(ask(Plan(steps=2))), "text needs no room"
    assert told(stays) == alone(ask(Plan(), picture(2)))
    engine.close()


def test_an_engine_closes_while_requests_wait_for_room() -> None:
    engine = Engine(Standin())
    with DECODING.hold(DECODING.most):
        runs = [engine.submit(ask(Plan(), filed(picture(i)))) for i in range(6)]
        until(lambda: DECODING.waiting >= 1)
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(PATIENCE)
        assert not closing.is_alive()
    for run in runs:
        with pytest.raises(Exception, match="shut down"):
            told(run)


def test_no_more_is_decoded_at_once_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [filed(picture(i, 4)) for i in range(12)]
    monkeypatch.setattr(DECODING, "most", pictures[0].needs)
    monkeypatch.setattr(DECODING, "peak", 0)
    engines = [Engine(Standin()), Engine(Standin())]
    runs = [engines[i % 2].submit(ask(Plan(), one)) for i, one in enumerate(pictures)]
    assert all(map(told, runs))
    assert DECODING.peak == pictures[0].needs, "the room is the process's, not an engine's"
    for engine in engines:
        engine.close()


def test_moondream_sees_a_file_as_the_image_in_it(tmp_path: Path) -> None:
    image = picture(3, 30).resize((500, 120))
    given: list[tuple[Image.Image, ...] | tuple[Picture, ...]] = [(image,), (filed(image),)]
    with tiny.open_model(tiny.write(tmp_path)) as model:
        gaze = DetectGaze(face=(0.2, 0.2, 0.5, 0.6), accurate=True)
        for skill in (Caption("short"), gaze):
            requests = [Request(skill, one, Sampling(max_tokens=5, seed=1)) for (one,) in given]
            first, second = (told(model.submit(request)) for request in requests)
            assert first == second
            model.trim()
        chats = [Request(Chat((Message("user", (*one, "What?")),)), sampling=Sampling(max_tokens=5)) for one in given]
        assert told(model.submit(chats[0])) == told(model.submit(chats[1]))
