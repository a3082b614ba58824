"""Galago for asyncio: the bundled model asked from one event loop."""

import asyncio
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import galago
from galago import aio
from galago.store import hub

PICTURE = Path(__file__).parents[1] / "examples" / "scene.png"
QUESTIONS = [
    f"{what} the {shape}?"
    for shape in ("circle", "star", "square", "triangle")
    for what in ("What color is", "How many colors has", "Is there a thing left of", "Where is")
]
LIST = '{"type": "array", "items": {"const": "a b"}, "minItems": 400}'
"""What takes seconds to write, and comes word by word."""
PATIENCE = 60.0


@pytest.fixture
def model() -> Iterator[galago.Model]:
    with galago.load("scenes") as made:
        yield made


def long_request() -> galago.Request:
    return galago.Request(galago.Query("How many?"), sampling=galago.Sampling(max_tokens=1000, json_schema=LIST))


def cancelled(model: galago.Model, skill: str = "query") -> int:
    """How many were cancelled, once all have ended: a request of a whole pass comes after them."""
    while (of := model.stats()["skills"][skill])["submitted"] > of["done"] + of["cancelled"] + of["failed"]:
        model.caption(PICTURE, "short")
    return int(of["cancelled"])


class HeldFile(io.BytesIO):
    """A file that is read once `free` is set; `begun` is set when somebody begins to."""

    def __init__(self) -> None:
        super().__init__(PICTURE.read_bytes())
        self.begun, self.free = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.begun.set()
        assert self.free.wait(PATIENCE), "nobody lets it be read: the event loop waits for it"
        return super().read(size)


async def is_set(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0)


def test_sixteen_questions_run_together_and_are_answered_as_without_asyncio(model: galago.Model) -> None:
    async def asked() -> list[Any]:
        together = aio.AsyncModel(model)
        image = await together.encode_image(PICTURE)
        return await asyncio.gather(*(together.query(image, question) for question in QUESTIONS))

    image = model.encode_image(PICTURE)
    assert asyncio.run(asked()) == [model.query(image, question) for question in QUESTIONS]


def test_no_request_keeps_a_thread(model: galago.Model) -> None:
    async def begun() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        runs = [aio.events(model, long_request()) for _ in range(8)]
        first = await asyncio.gather(*map(anext, runs))
        assert all(isinstance(event, galago.TextDelta) for event in first)
        for run in runs:
            await run.aclose()

    asyncio.run(begun())
    # Each had begun, and none was done.
    assert cancelled(model) == 8, model.stats()["skills"]["query"]


def test_every_method_gives_what_the_models_own_gives(model: galago.Model) -> None:
    talk = [{"role": "user", "content": [PICTURE, "What color is the circle?"]}]
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("caption", (PICTURE, "short"), {}),
        ("query", (PICTURE, "What color is the circle?"), {"reasoning": True}),
        ("query", (PICTURE, "What color is the circle?"), {"settings": {"max_tokens": 1}}),
        ("chat", (talk,), {}),
        ("detect", (PICTURE, "circle"), {"settings": {"max_objects": 1}}),
        ("point", (PICTURE, "circle"), {}),
        ("detect_gaze", (PICTURE, (0.5, 0.5)), {}),
    ]

    async def awaited(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return await getattr(aio.AsyncModel(model), name)(*args, **options)

    for name, args, options in calls:
        assert asyncio.run(awaited(name, args, options)) == getattr(model, name)(*args, **options), name


def test_events_come_one_by_one_and_end_with_done(model: galago.Model) -> None:
    request = galago.Request(galago.Caption("short"), model.encode_image(PICTURE))

    async def read() -> list[galago.Event]:
        return [event async for event in aio.AsyncModel(model).events(request)]

    *pieces, done = asyncio.run(read())
    text = "".join(piece.text for piece in pieces if isinstance(piece, galago.TextDelta))
    assert isinstance(done, galago.Done) and text == model.caption(PICTURE, "short")["caption"]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_cancelled_task_cancels_its_request(model: galago.Model, elsewhere: bool) -> None:
    """Also where the task waits for something else between two events."""

    async def cancel() -> None:
        first = asyncio.Event()

        async def read() -> None:
            async for _ in aio.events(model, long_request()):
                first.set()
                if elsewhere:
                    await asyncio.Event().wait()

        task = asyncio.create_task(read())
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert cancelled(model) == 1


def test_a_time_limit_of_asyncio_ends_a_question(model: galago.Model) -> None:
    async def limited() -> None:
        long = {"max_tokens": 1000, "json_schema": LIST}
        async with asyncio.timeout(0.1):
            await aio.AsyncModel(model).query(None, "How many?", settings=long)

    with pytest.raises(TimeoutError):
        asyncio.run(limited())
    model.caption(PICTURE, "short")
    assert model.stats()["skills"].get("query", {"done": 0})["done"] == 0


def test_what_is_cancelled_while_its_file_is_read_does_not_run(model: galago.Model) -> None:
    held = HeldFile()

    async def cancel() -> None:
        task = asyncio.create_task(aio.AsyncModel(model).query(held, "What color is the circle?"))
        await is_set(held.begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.free.set()

    asyncio.run(cancel())  # which waits for the thread that reads
    assert cancelled(model) == 1 and model.stats()["skills"]["query"]["done"] == 0


def test_the_event_loop_goes_on_while_a_file_is_read(model: galago.Model) -> None:
    held = HeldFile()

    async def ask() -> Any:
        task = asyncio.create_task(aio.AsyncModel(model).encode_image(held))
        await is_set(held.begun)
        held.free.set()
        return await aio.AsyncModel(model).query(await task, "What color is the circle?")

    assert asyncio.run(ask())["answer"].strip() == "blue"


def test_the_event_loop_goes_on_while_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, free, locate = threading.Event(), threading.Event(), hub.locate

    def held(*args: Any, **options: Any) -> Any:
        begun.set()
        assert free.wait(PATIENCE), "the event loop waits for the load"
        return locate(*args, **options)

    async def load() -> bool:
        task = asyncio.create_task(galago.aio.load("scenes", threads=1))
        await is_set(begun)
        free.set()
        async with await task as loaded:
            assert loaded.model.threads == 1
        return loaded.model.ended is not None

    monkeypatch.setattr(hub, "locate", held)
    assert asyncio.run(load())


def test_errors_are_those_of_the_model(model: galago.Model, tmp_path: Path) -> None:
    wrong: list[tuple[type[galago.GalagoError], Any]] = [
        (galago.InvalidRequest, lambda m: m.query(PICTURE, "")),
        (galago.InvalidRequest, lambda m: m.detect(PICTURE, "circle", {"nonsense": 1})),
        (galago.InvalidImage, lambda m: m.caption(tmp_path / "none.png")),
        (galago.InvalidRequest, lambda m: m.chat([])),
        (galago.ModelNotFound, lambda m: aio.load("no-such-model")),
    ]

    async def awaited(call: Any) -> None:
        await call(aio.AsyncModel(model))

    for error, call in wrong:
        with pytest.raises(error):
            asyncio.run(awaited(call))


def test_a_model_that_is_closed_ends_what_is_read(model: galago.Model) -> None:
    async def close() -> None:
        async with aio.AsyncModel(model) as together, aclosing(together.events(long_request())) as events:
            await anext(events)
            await together.close()
            async for _ in events:
                pass

    with pytest.raises(galago.EngineClosed):
        asyncio.run(close())


def test_more_than_may_wait_are_refused() -> None:
    async def crowd(model: galago.Model) -> list[Any]:
        async with aclosing(aio.events(model, long_request())) as running:
            await anext(running)
            question = aio.AsyncModel(model).query(None, "How many?")
            return await asyncio.gather(question, return_exceptions=True)

    with galago.load("scenes", limits=galago.Limits(waiting=0, running=1)) as model:
        [refused] = asyncio.run(crowd(model))
    assert isinstance(refused, galago.EngineBusy)
