"""One loop over many inputs: order, errors in their places, bounds, and that leaving it leaves nothing running."""

import threading
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import tiny_moondream as tiny
from PIL import Image
from standin import Plan, Standin, alone, ask, picture
from told import Told

import galago
from galago.batch.each import IN_FLIGHT, each, raise_errors
from galago.engine import decoding
from galago.engine.engine import Engine, EngineRun
from galago.engine.limits import Limits
from galago.errors import EngineClosed, GalagoError, GenerationFailed, InvalidImage, InvalidRequest
from galago.media.clip import Clip
from galago.request import Caption, Chat, Detect, DetectGaze, Done, Event, Message, Point, Query, Request

PATIENCE = 30
FEW = {"max_tokens": 4, "max_objects": 2}


def events(item: Any, request: Request, run: EngineRun) -> list[Event]:
    return list(run)[:-1]  # without Done, which has times


def asked(item: int) -> Request:
    return ask(Plan(steps=1 + item % 5, seed=item), picture(item % 3), priority="batch")


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine(Standin())
    yield made
    made.close()


def test_answers_come_in_the_order_of_the_inputs_each_its_own(engine: Engine) -> None:
    told: list[int] = []
    found = list(each(range(50), asked, engine.submit, events, progress=told.append))
    assert found == [alone(asked(item)) for item in range(50)]
    assert told == list(range(1, 51))
    assert list(each([], asked, engine.submit, events)) == []


def test_an_error_stands_in_its_place(engine: Engine) -> None:
    def sometimes(item: int) -> Request:
        if item % 4 == 1:
            raise InvalidImage(f"no {item}")
        return ask(Plan(seed=item, steps=3, breaks=1 if item % 4 == 2 else None))

    found = list(each(range(40), sometimes, engine.submit, events))
    for item, result in enumerate(found):
        if item % 4 == 1:
            assert isinstance(result, InvalidImage) and str(result) == f"no {item}"
        elif item % 4 == 2:
            assert isinstance(result, GenerationFailed)
        else:
            assert result == alone(sometimes(item))
        # An error that is kept keeps no pictures.
        assert not isinstance(result, GalagoError) or result.__traceback__ is result.__cause__ is None


def test_raised_gives_what_comes_before_the_first_error_and_ends_the_rest() -> None:
    model = Told(lambda request: request.skill.question)

    def request(item: int) -> Request:
        if item == 3:
            raise InvalidImage("no 3")
        return Request(Query(str(item)))

    answers = raise_errors(each(count(), request, model.submit, lambda item, request, run: item))  # type: ignore[arg-type]
    assert [next(answers) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InvalidImage, match="no 3"):
        next(answers)
    assert model.cancelled == len(model.requests) - 3


def test_of_endless_inputs_so_many_are_taken_as_are_in_flight() -> None:
    model = Told(lambda request: request.skill.question)
    taken = 0

    def inputs() -> Iterator[int]:
        nonlocal taken
        for item in count():
            taken += 1
            yield item

    def request(item: int) -> Request:
        return Request(Query(str(item)))

    def answer(item: int, request: Request, run: Any) -> str:
        return "".join(e.text for e in run if not isinstance(e, Done))

    results = each(inputs(), request, model.submit, answer, in_flight=5)  # type: ignore[arg-type]
    for place, result in enumerate(islice(results, 100)):
        assert result == str(place) and taken <= place + 5
    assert model.most == 5


@pytest.mark.parametrize("shown", [Image.new("RGB", (10, 10)), Clip((Image.new("RGB", (10, 5)),) * 2, (0, 1), 2)])
def test_what_is_held_in_memory_bounds_them_too(monkeypatch: pytest.MonkeyPatch, shown: Any) -> None:
    monkeypatch.setattr("galago.batch.each.MAX_DECODED_BYTES", 3 * 300)
    model = Told(lambda request: "x")
    results = each(range(20), lambda item: Request(Caption(), shown), model.submit, lambda i, r, run: [*run])  # type: ignore
    assert len(list(results)) == 20 and model.most == 3
    assert decoding.MAX_DECODED_BYTES == 512 << 20


def test_an_answer_that_is_there_does_not_wait_for_more_inputs(engine: Engine) -> None:
    """A source as slow as a camera: each input comes only once the answer before the last is out."""
    out = 0
    runs: list[EngineRun] = []

    def submit(request: Request) -> EngineRun:
        run = engine.submit(request)
        runs.append(run)
        return run

    def slow() -> Iterator[int]:
        for item in range(10):
            for run in runs:  # what was asked so far comes to its end meanwhile
                ended = threading.Event()
                run.watch(lambda run=run, ended=ended: ended.set() if run.ended else None)  # type: ignore[misc]
                assert ended.wait(PATIENCE)
            assert item - out <= 1, "answers that are there were kept back"
            yield item

    for result in each(slow(), asked, submit, events):
        assert not isinstance(result, GalagoError)
        out += 1
    assert out == 10


@pytest.mark.parametrize("how", ["closed", "interrupted", "the input breaks"])
def test_leaving_early_cancels_what_is_in_flight(how: str) -> None:
    model, gate, runs = Standin(), threading.Event(), list[EngineRun]()
    model.step_in = lambda kind, rows: gate.wait(PATIENCE) and None
    engine = Engine(model)

    def submit(request: Request) -> EngineRun:
        runs.append(engine.submit(request))
        return runs[-1]

    def inputs() -> Iterator[int]:
        yield from range(6)
        if how == "the input breaks":
            raise OSError("gone")
        yield from count(6)

    def finish(item: int, request: Request, run: EngineRun) -> int:
        if item == 1:
            raise KeyboardInterrupt
        return item

    results = each(inputs(), asked, submit, finish)
    if how == "the input breaks":
        with pytest.raises(OSError, match="gone"):
            next(results)
        left = runs
    else:
        assert next(results) == 0
        if how == "closed":
            results.close()
        else:
            with pytest.raises(KeyboardInterrupt):
                next(results)
        left = runs[2:]
    gate.set()
    ends = [list(run)[-1] for run in left]
    assert left and all(isinstance(e, Done) and e.finish_reason == "cancelled" for e in ends)
    engine.close()
    assert engine.stats()["queue"] == {"waiting": 0, "running": 0, "encoding": 0}


def test_a_queue_that_takes_few_is_waited_for() -> None:
    engine = Engine(Standin(), Limits(waiting=0, running=2))
    assert list(each(range(12), asked, engine.submit, events)) == [alone(asked(item)) for item in range(12)]
    engine.close()


def test_a_model_that_was_closed_ends_it(engine: Engine) -> None:
    results = each(count(), asked, engine.submit, events)
    assert next(results) == alone(asked(0))
    engine.close()
    with pytest.raises(EngineClosed):
        for _ in islice(results, 2 * IN_FLIGHT):
            pass


# --- in Python -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[galago.Model]:
    with galago.load(tiny.write(tmp_path_factory.mktemp("tiny"))) as loaded:
        yield loaded


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twenty pictures, of which one is cut in its middle and one is missing."""
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.linear_gradient("L").rotate(17 * i).resize((60 + i, 40)).convert("RGB").save(path)
    paths[7].write_bytes(paths[7].read_bytes()[:200])
    paths[11].unlink()
    return paths


@pytest.mark.parametrize(
    ("skill", "alone"),
    [
        (Caption("short"), lambda m, file: m.caption(file, "short", settings=FEW)),
        (Query("what?"), lambda m, file: m.query(file, "what?", settings=FEW)),
        (Query("what?", True), lambda m, file: m.query(file, "what?", True, settings=FEW)),
        (Detect("cat", 2), lambda m, file: m.detect(file, "cat", FEW)),
        (Point("cat", 2), lambda m, file: m.point(file, "cat", FEW)),
        (DetectGaze((0.4, 0.5)), lambda m, file: m.detect_gaze(file, (0.4, 0.5))),
    ],
)
def test_map_gives_what_each_method_gives(model: galago.Model, files: list[Path], skill: Any, alone: Any) -> None:
    told: list[int] = []
    for file, answer in zip(files, model.map(skill, files, settings=FEW, progress=told.append), strict=True):
        if file in (files[7], files[11]):
            assert isinstance(answer, InvalidImage) and file.name in str(answer)
        else:
            assert answer == alone(model, file)
    assert told == list(range(1, 21))


def test_map_takes_all_forms_of_images_without_end(model: galago.Model, files: list[Path]) -> None:
    with Image.open(files[0]) as opened:
        image = opened.convert("RGB")
    forms = [files[0], str(files[0]), files[0].read_bytes(), image, model.encode_image(image)]
    answers = model.map(Caption(), (forms[i % len(forms)] for i in count()), settings=FEW)
    assert all(answer == model.caption(image, settings=FEW) for answer in islice(answers, 2 * len(forms)))
    answers.close()  # type: ignore[attr-defined]
    talk = Chat((Message("user", "what?"),))
    assert next(model.map(talk, [None], settings=FEW)) == model.chat(
        [{"role": "user", "content": "what?"}], settings=FEW
    )


def test_map_refuses_at_once_what_is_wrong_for_all(model: galago.Model) -> None:
    for wrong, what in (
        ((Caption(), "photo.jpg"), "images must be a list"),
        ((Caption(), 7), "images must be a list"),
        ((Caption("huge"), []), "length"),  # type: ignore[arg-type]
        (("caption", []), "skill"),
    ):
        with pytest.raises(InvalidRequest, match=what):
            model.map(*wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="unknown setting"):
        model.map(Caption(), [], settings={"speed": 1})
    with pytest.raises(InvalidRequest, match="progress"):
        model.map(Caption(), [], progress=3)  # type: ignore[arg-type]


def test_pairs_of_2024_are_answered_together_and_the_first_error_is_raised(
    model: galago.Model, files: list[Path]
) -> None:
    pairs = [files[i] for i in (0, 1, 2, 0)], ["what?", "who?", "where?", "why?"]
    assert model.batch_answer(*pairs) == [model.answer_question(*pair) for pair in zip(*pairs, strict=True)]
    with pytest.raises(InvalidImage, match=r"7\.png"):
        model.batch_answer(files, ["what?"] * len(files))
