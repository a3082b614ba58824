"""Galago for asyncio: the methods of a model to be awaited, and the events of a request to be iterated over.

    async with await galago.aio.load("moondream2") as model:
        image = await model.encode_image("photo.jpg")
        answers = await asyncio.gather(*(model.query(image, question) for question in questions))

Files are read and models loaded in asyncio's own pool of threads; while a request is carried out no thread waits for
it. A task that is cancelled cancels its request.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

from galago import model as blocking
from galago.answers import collect_answer
from galago.arguments import SettingsDict, object_limit, read_gaze, read_query
from galago.backends.backend import Run
from galago.model import MediaSource, MessageDict, Model
from galago.request import Caption, Detect, Done, Encode, Encoding, Event, Length, Message, Point, Request, Skill


async def load(model: str | Path | None = None, **options: Any) -> "AsyncModel":
    """Load a model with the options of galago.load, which raise what they raise there.

    A load goes on in its thread when its task is cancelled, and what it loaded is let go of.
    """
    return AsyncModel(await asyncio.to_thread(blocking.load, model, **options))


def events(model: Model, request: Request) -> AsyncGenerator[Event, None]:
    """The events of a request as they come, the last of which is Done; raises what the request raises.

    Ending the iteration early cancels the request.
    """
    return _events_from(lambda: model.submit(request))


class AsyncModel:
    """A Model whose methods are awaited; they take and give what those of `galago.Model` do, and raise the same.

    Belongs to no event loop: what its methods share, `model`, may be used from any thread at the same time. As many
    requests may wait as the model's limits say; EngineBusy refuses those beyond.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    async def encode_image(self, image: MediaSource, settings: SettingsDict | None = None) -> Encoding:
        if isinstance(image, Encoding):
            return image
        return cast(Encoding, (await self._result(Encode(), image, settings))["image"])

    async def caption(
        self, image: MediaSource, length: str = "normal", settings: SettingsDict | None = None
    ) -> dict[str, Any]:
        return await self._result(Caption(cast(Length, length)), image, settings)

    async def query(
        self,
        image: MediaSource | None = None,
        question: str | None = None,
        reasoning: bool = False,
        spatial_refs: Sequence[Sequence[float]] | None = None,
        settings: SettingsDict | None = None,
    ) -> dict[str, Any]:
        return await self._result(read_query(question, reasoning, spatial_refs), image, settings)

    async def chat(
        self, messages: Sequence[MessageDict | Message], settings: SettingsDict | None = None
    ) -> dict[str, Any]:
        skill = await asyncio.to_thread(self.model.conversation, messages)
        return await self._result(skill, None, settings)

    async def detect(self, image: MediaSource, object: str, settings: SettingsDict | None = None) -> dict[str, Any]:
        return await self._result(Detect(object, **object_limit(settings)), image, settings)

    async def point(self, image: MediaSource, object: str, settings: SettingsDict | None = None) -> dict[str, Any]:
        return await self._result(Point(object, **object_limit(settings)), image, settings)

    async def detect_gaze(
        self,
        image: MediaSource,
        eye: Sequence[float] | Mapping[str, float] | None = None,
        face: Sequence[float] | Mapping[str, float] | None = None,
        *,
        prioritize_accuracy: bool = False,
        force_detect: bool = False,
        settings: SettingsDict | None = None,
    ) -> dict[str, Any]:
        return await self._result(read_gaze(eye, face, None, prioritize_accuracy, force_detect), image, settings)

    def events(self, request: Request) -> AsyncGenerator[Event, None]:
        """The events of a request, as galago.aio.events gives them."""
        return events(self.model, request)

    async def close(self) -> None:
        """End everything under way with EngineClosed. A closed model refuses requests."""
        await asyncio.to_thread(self.model.close)

    async def __aenter__(self) -> "AsyncModel":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def _result(self, skill: Skill, image: MediaSource | None, settings: SettingsDict | None) -> dict[str, Any]:
        return collect_answer(skill, await _collect_events(lambda: self.model.start(skill, image, settings)))


async def events_of(runs: Sequence[Run]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of runs as they come, of each up to its Done, with the number of the run.

    All are cancelled when nobody reads on, and when one of them fails.
    """
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(news.set)

    left = dict(enumerate(runs))
    try:
        for run in runs:
            run.watch(wake)
        while left:
            await news.wait()
            news.clear()
            for i, run in list(left.items()):
                while event := run.poll():
                    yield i, event
                    if isinstance(event, Done):
                        del left[i]
    finally:
        for run in runs:
            run.cancel()


async def _events_from(start: Callable[[], Run]) -> AsyncGenerator[Event, None]:
    # In a thread: it may fetch, read and decode files. If this task is cancelled meanwhile, nobody takes the Run, which
    # then cancels itself.
    run = await asyncio.to_thread(start)
    async with aclosing(events_of([run])) as numbered:
        async for _, event in numbered:
            yield event


async def _collect_events(start: Callable[[], Run]) -> list[Event]:
    async with aclosing(_events_from(start)) as found:
        return [event async for event in found]
