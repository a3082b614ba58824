"""Between the event loop and a blocking run: bodies in, events out, and the client's going away."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar
from urllib.parse import quote

import anyio.to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse

from galago.aio import events_of
from galago.backends.backend import Facts, Run
from galago.engine.decoding import CLIPS
from galago.errors import DeadlineExceeded, EngineBusy, InvalidImage, TooManyImages
from galago.media.clip import Clip
from galago.media.image import MAX_PIXELS
from galago.media.picture import Picture
from galago.request import Done, Event
from galago.server.bodies import read_body, unpacked
from galago.server.errors import Refused
from galago.server.fields import Asked, Shown, choices, clip_bytes, fetch_shown, one_image, read_shown
from galago.server.guard.logs import log_fields
from galago.server.guard.stopping import InFlight
from galago.server.models import Models
from galago.server.settings import Settings
from galago.system.machine import usable_cores

T = TypeVar("T")

Numbered = tuple[int, Event]
"""An event and the number of its run."""
FETCHES = 16
"""Images that are fetched at once; the others wait."""


@dataclass
class Served:
    """What has been answered since the start."""

    requests: int = 0
    seconds: float = 0.0
    cache_hits: int = 0
    timeouts: int = 0

    async def counted(self, events: AsyncIterator[Numbered], facts: dict[str, Any]) -> AsyncIterator[Numbered]:
        """The same events, with the request added up when all its runs are done, and its tokens told to the log."""
        done: list[Done] = []
        try:
            async for i, event in events:
                if isinstance(event, Done):
                    done.append(event)
                    facts["prompt_tokens"] = event.usage.prompt_tokens
                    facts["tokens"] = facts.get("tokens", 0) + event.usage.completion_tokens
                yield i, event
        except DeadlineExceeded:
            self.timeouts += 1
            raise
        self.requests += 1
        self.seconds += max(d.timings.total_s for d in done)
        self.cache_hits += all(d.usage.cached_tokens > 0 for d in done)

    def report(self) -> dict[str, Any]:
        return {"requests": self.requests, "avg_time": f"{self.average:.2f}s", "cache_hits": self.cache_hits}

    @property
    def average(self) -> float:
        """seconds"""
        return self.seconds / max(self.requests, 1)


@dataclass(frozen=True)
class Host:
    """What the routes of every dialect share: the models, and the bounds on what clients send."""

    models: Models
    in_flight: InFlight
    settings: Settings
    why: str | None = None
    """of the model that was chosen where the settings name none"""
    served: Served = field(default_factory=Served)
    # Bodies take several times their size while they are read, and videos what a few frames take.
    reading: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(usable_cores()))
    # Apart from those, which a slow site must not keep busy.
    fetching: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(FETCHES))

    async def parsed(self, http: Request, reader: Callable[[bytes], T]) -> T:
        """What a reader makes of the body."""
        limit, encoding = self.settings.body_limit, http.headers.get("content-encoding", "")
        body = await read_body(http, limit)
        return await anyio.to_thread.run_sync(lambda: reader(unpacked(body, encoding, limit)), limiter=self.reading)

    async def answer(self, http: Request, reader: Callable[[bytes], Asked]) -> "Answer":
        """What a dialect's reader makes of the body, put to the model that it means.

        Images and videos are opened; together they have no more pixels than one may have.

        Raises Refused while the models are being loaded.
        """
        self.models.check_ready()
        told = log_fields(http.scope)
        asked, opened, begun = await self.parsed(http, lambda body: self._at_once(reader(body), told))
        if begun is None:
            key = self.models.meant(asked.model, asked.medium)
            if self.models.facts(key) is None:
                # It is being loaded for the first time: only then it is known which frames of a video it looks at.
                await waited(partial(self.models.load, [key]))
            facts = self.models.facts(key)
            assert facts is not None
            facts.check_skill(asked.request.skill)
            self.models.check_queue(key)
            with ExitStack() as stack:
                if clips := sum(shown.video for shown in asked.images):
                    asked = await self._with_room(http, asked, clips * clip_bytes(facts.video_sampling), stack)
                for shown in asked.images[len(opened) :]:
                    fetched = await self._fetched(shown)
                    reading = partial(read_shown, shown, facts.video_sampling, fetched, _left(opened))
                    opened.append(await anyio.to_thread.run_sync(reading, limiter=self.reading))
                begun = await waited(partial(self._begun, asked, opened, told))
                begun.use.push(stack.pop_all())
        events = self.served.counted(events_until_gone(http, begun.runs), told)
        # What was sent is let go of.
        asked = replace(asked, images=(), placed=one_image)
        return Answer(asked, begun.facts, _until_done(events, begun.use, self.models.pool.keeps))

    async def _with_room(self, http: Request, asked: Asked, needed: int, stack: ExitStack) -> Asked:
        """Wait for room for so many bytes of clips' frames, or what one request may have; `stack` gives it back.

        The request comes back with what is left of its time. Raises EngineBusy where too many wait already,
        DeadlineExceeded when its time is over, and Refused, which nobody reads, when the client has gone.
        """
        if CLIPS.waiting >= self.settings.max_queue and CLIPS.waiting:
            raise EngineBusy(f"{CLIPS.waiting} requests with videos are waiting already; try again later")
        size = min(needed, 4 * MAX_PIXELS)
        timeout = self.settings.timeout if asked.request.timeout is None else asked.request.timeout
        begin, left = time.perf_counter(), False
        entering = asyncio.ensure_future(waited(lambda: CLIPS.acquire(size, lambda: not left)))
        going = asyncio.ensure_future(_gone(http))
        try:
            await asyncio.wait({entering, going}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            going.cancel()
            if not entering.done():
                left = True
                CLIPS.wake()
            with anyio.CancelScope(shield=True):
                if await entering:
                    stack.callback(CLIPS.release, size)
        if not left:
            spent = time.perf_counter() - begin
            kept = None if timeout is None else max(timeout - spent, 1e-3)
            return replace(asked, request=replace(asked.request, timeout=kept))
        if timeout is not None and time.perf_counter() - begin >= timeout:
            self.served.timeouts += 1
            raise DeadlineExceeded(f"the request was not done within its {timeout:g} s")
        raise Refused("invalid_json", "the client has gone")

    def _at_once(self, asked: Asked, told: dict[str, Any]) -> "tuple[Asked, list[Picture | Clip], _Begun | None]":
        """What was asked, what it shows as far as the first that has to be fetched or is a video, and what was begun.

        Nothing is begun yet where that would have to wait, for a site, for a model or for room: whoever is here keeps
        others from reading.
        """
        key = self.models.meant(asked.model, asked.medium)  # first, so that what is refused is not opened
        opened: list[Picture | Clip] = []
        if (facts := self.models.facts(key)) is not None:
            facts.check_skill(asked.request.skill)
            for shown in takewhile(lambda shown: not shown.remote and not shown.video, asked.images):
                opened.append(read_shown(shown, facts.video_sampling, None, _left(opened)))
        waits = len(opened) < len(asked.images) or not self.models.at_hand(key)
        return asked, opened, None if waits else self._begun(asked, opened, told)

    async def _fetched(self, shown: Shown) -> bytes | None:
        if not shown.remote:
            return None
        if not self.settings.remote_images:
            what = "video" if shown.video else "image"
            why = f"remote {what}s are turned off on this server; send the {what} itself as a data: URL"
            raise InvalidImage(why, shown.path)
        # A request that is cancelled, as the server stops, does not wait for a site.
        return await anyio.to_thread.run_sync(
            fetch_shown, shown, self.settings.allow_image_hosts, limiter=self.fetching, abandon_on_cancel=True
        )

    def _begun(self, asked: Asked, opened: Sequence[Picture | Clip], told: dict[str, Any]) -> "_Begun":
        """Have the model, which may have to be loaded first, and submit a request for each choice to it.

        They are one to the client, and fail together.
        """
        with ExitStack() as stack:
            facts, model = stack.enter_context(self.models.use(self.models.meant(asked.model, asked.medium)))
            runs: list[Run] = []
            try:
                for request in choices(asked, opened):
                    told |= {"model": facts.name, "images": len(request.shown), "content": request.skill}
                    timeout = self.settings.timeout if request.timeout is None else request.timeout
                    runs.append(model.submit(replace(request, timeout=timeout)))
                    stack.callback(runs[-1].cancel)
            except TooManyImages as error:
                error.param = asked.images[1].path
                raise
            return _Begun(facts, runs, stack.pop_all())


@dataclass(frozen=True)
class Answer:
    """What was asked, what answers it, and the events as they come."""

    asked: Asked
    facts: Facts
    events: AsyncIterator[Numbered]


def _left(opened: Sequence[Picture | Clip]) -> int:
    """The pixels that a request may have besides."""
    images = (image for one in opened for image in (one.frames if isinstance(one, Clip) else [one]))
    return MAX_PIXELS - sum(image.width * image.height for image in images)


@dataclass(frozen=True)
class _Begun:
    facts: Facts
    runs: list[Run]
    use: ExitStack
    """ends the use of the model"""


async def _until_done(events: AsyncIterator[Numbered], use: ExitStack, keeps: bool) -> AsyncIterator[Numbered]:
    """The same events; the model is in use until their end, and leaves then unless the pool keeps it."""
    try:
        async for event in events:
            yield event
    finally:
        # A client that goes away cancels what runs for it; without a shield the model would stay in use until some
        # collection of garbage.
        with anyio.CancelScope(shield=True):
            if keeps:
                use.close()
            else:
                await waited(use.close)


async def waited(call: Callable[[], T]) -> T:
    """The result of a call that waits for the engine."""
    # A limiter of its own is no limit. The engine's queue is the bound, which answers with 429; the usual
    # 40 threads would let requests wait where nobody counts them.
    return await anyio.to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))


async def events_until_gone(http: Request, runs: Sequence[Run]) -> AsyncIterator[Numbered]:
    """The events of runs as aio.events_of gives them; all are cancelled also when the client goes away."""
    watcher = asyncio.create_task(_cancel_when_gone(http, runs))
    try:
        async with aclosing(events_of(runs)) as events:
            async for numbered in events:
                yield numbered
    finally:
        watcher.cancel()


async def _gone(http: Request) -> None:
    """Wait until the client has gone."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _cancel_when_gone(http: Request, runs: Sequence[Run]) -> None:
    await _gone(http)
    for run in runs:
        run.cancel()


def line(value: dict[str, Any]) -> str:
    """A server-sent event."""
    # ASCII only: some clients also split lines at U+2028 and its like.
    # NaN and infinity, which are no JSON, are an error here as they are in replies of one piece.
    return f"data: {json.dumps(value, separators=(',', ':'), allow_nan=False)}\n\n"


def ran(facts: Facts) -> dict[str, str]:
    """The header that tells which model answered. Names of folders may hold what no header can."""
    return {"X-Galago-Model": quote(facts.name, safe="/@:+,=")}


async def streamed(lines: AsyncIterator[str], headers: dict[str, str] | None = None) -> StreamingResponse:
    """A reply of server-sent events, with these headers beside its own."""
    # The status line is sent after this: until the first event the request can still fail properly.
    first = await anext(lines)

    async def all_lines() -> AsyncIterator[str]:
        yield first
        async for line in lines:
            yield line

    usual = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    return StreamingResponse(all_lines(), headers=usual | (headers or {}))
