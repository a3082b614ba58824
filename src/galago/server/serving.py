"""Serving a request: parse its body, submit it to a model, and give its events until the client goes away."""

import asyncio
import logging
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

from galago.aio import events_of
from galago.backends.backend import Facts, Run
from galago.engine.decoding import CLIPS
from galago.errors import DeadlineExceeded, EngineBusy, InvalidImage, TooManyImages
from galago.fleet.default_model import photo_models
from galago.fleet.pool import ModelPool
from galago.media.clip import Clip
from galago.media.image import MAX_PIXELS
from galago.media.picture import Picture
from galago.request import Done, Event
from galago.server.bodies import decompress, read_body
from galago.server.contact_sheet import contact_sheet
from galago.server.errors import Refused
from galago.server.fields import MediaRef, ParsedBody, clip_bytes, expand_choices, fetch_media, open_media, place_image
from galago.server.guard.logs import log_fields
from galago.server.guard.stopping import InFlight
from galago.server.models import Models
from galago.server.settings import ServerSettings
from galago.server.streaming import Silence
from galago.system.machine import usable_cores

T = TypeVar("T")
log = logging.getLogger(__name__)

Events = AsyncIterator[tuple[int, Event]]
"""Events as they come, each with the number of its run"""
MAX_FETCHES = 16
"""Images and videos that are fetched at the same time; more wait"""


@dataclass
class RequestStats:
    """Counts of the requests answered since the start, and the seconds that they took together."""

    requests: int = 0
    seconds: float = 0.0
    cache_hits: int = 0
    timeouts: int = 0

    async def record(self, events: Events, fields: dict[str, Any]) -> Events:
        """Pass a request's events on, adding its tokens to the `fields` of its log line, and count it at their end."""
        done: list[Done] = []
        try:
            async for i, event in events:
                if isinstance(event, Done):
                    done.append(event)
                    fields["prompt_tokens"] = event.usage.prompt_tokens
                    fields["tokens"] = fields.get("tokens", 0) + event.usage.completion_tokens
                yield i, event
        except DeadlineExceeded:
            self.timeouts += 1
            raise
        self.requests += 1
        self.seconds += max(d.timings.total_s for d in done)
        self.cache_hits += all(d.usage.cached_tokens > 0 for d in done)

    def report(self) -> dict[str, Any]:
        return {"requests": self.requests, "avg_time": f"{self.average_s:.2f}s", "cache_hits": self.cache_hits}

    @property
    def average_s(self) -> float:
        return self.seconds / max(self.requests, 1)


@dataclass(frozen=True)
class ServerContext:
    """What the routes of every dialect share: models, settings, statistics, and limits on concurrent work."""

    models: Models
    in_flight: InFlight
    settings: ServerSettings
    choice_reason: str | None = None
    """why this model was chosen, where the settings name none"""
    silence: Silence = field(default_factory=Silence)
    stats: RequestStats = field(default_factory=RequestStats)
    # Bodies take several times their size while they are read, and videos what a few frames take.
    read_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(usable_cores()))
    # Apart from those, which a slow site must not keep busy.
    fetch_limiter: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(MAX_FETCHES))

    async def parse_body(self, http: Request, reader: Callable[[bytes], T]) -> T:
        """Receive and decompress the body, and parse it with `reader` in a worker thread."""
        limit, coding = self.settings.body_limit, http.headers.get("content-encoding", "")
        raw = await read_body(http, limit)
        return await anyio.to_thread.run_sync(lambda: reader(decompress(raw, coding, limit)), limiter=self.read_limiter)

    async def answer(self, http: Request, reader: Callable[[bytes], ParsedBody]) -> "ModelResponse":
        """Parse the body with a dialect's reader, open its images and videos, and submit it to the model that it names.

        All images and frames of a request have MAX_PIXELS together. Raises Refused while the models are being loaded.
        """
        self.models.check_ready()
        fields = log_fields(http.scope)
        parsed, opened, started = await self.parse_body(http, lambda body: self._start_if_ready(reader(body), fields))
        if started is None:
            key = self.models.resolve_model(parsed.model, parsed.medium)
            if self.models.facts(key) is None:
                # Which frames of a video it looks at is known once it is loaded.
                await run_blocking(partial(self.models.load, [key]))
            facts = self.models.facts(key)
            assert facts is not None
            facts.check_skill(parsed.request.skill)
            self.models.check_queue(key)
            with ExitStack() as stack:
                if clips := sum(ref.is_video for ref in parsed.images):
                    parsed = await self._reserve_clips(http, parsed, clips * clip_bytes(facts.video_sampling), stack)
                for ref in parsed.images[len(opened) :]:
                    fetched = await self._fetch(ref)
                    opening = partial(self._open, ref, facts, opened, fetched)
                    opened.append(await anyio.to_thread.run_sync(opening, limiter=self.read_limiter))
                started = await run_blocking(partial(self._start, parsed, opened, fields))
                started.resources.push(stack.pop_all())
        events = self.stats.record(events_until_disconnect(http, started.runs), fields)
        # The images and videos as they were sent can be freed.
        parsed = replace(parsed, images=(), place=place_image)
        return ModelResponse(parsed, started.facts, _release_after(events, started.resources, self.models.pool))

    async def _reserve_clips(self, http: Request, parsed: ParsedBody, needed: int, stack: ExitStack) -> ParsedBody:
        """Wait until `needed` bytes of video frames (at most one request's share) are free; `stack` gives them back.

        Returns the request with what is left of its timeout. Raises EngineBusy where too many wait already,
        DeadlineExceeded when its time is over, and Refused, which nobody reads, when the client has gone.
        """
        if CLIPS.waiting >= self.settings.max_queue and CLIPS.waiting:
            raise EngineBusy(f"{CLIPS.waiting} requests with videos are waiting already; try again later")
        size = min(needed, 4 * MAX_PIXELS)
        timeout = self.settings.timeout if parsed.request.timeout is None else parsed.request.timeout
        start, has_given_up = time.perf_counter(), False
        reserving = asyncio.ensure_future(run_blocking(lambda: CLIPS.acquire(size, lambda: not has_given_up)))
        disconnecting = asyncio.ensure_future(_wait_for_disconnect(http))
        try:
            await asyncio.wait({reserving, disconnecting}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            disconnecting.cancel()
            if not reserving.done():
                has_given_up = True
                CLIPS.wake()
            with anyio.CancelScope(shield=True):
                if await reserving:
                    stack.callback(CLIPS.release, size)
        if not has_given_up:
            spent = time.perf_counter() - start
            remaining = None if timeout is None else max(timeout - spent, 1e-3)
            return replace(parsed, request=replace(parsed.request, timeout=remaining))
        if timeout is not None and time.perf_counter() - start >= timeout:
            self.stats.timeouts += 1
            raise DeadlineExceeded(f"the request was not done within its {timeout:g} s")
        raise Refused("invalid_json", "the client has gone")

    def _start_if_ready(
        self, parsed: ParsedBody, fields: dict[str, Any]
    ) -> "tuple[ParsedBody, list[Picture | Clip], StartedRequest | None]":
        """Open the inline images and, if there is no video and nothing has to be fetched or loaded, submit the request.

        Returns the body, the images opened so far, and the started request or None. Never waits for a site, a model or
        memory, since that would keep other bodies from being parsed.
        """
        key = self.models.resolve_model(parsed.model, parsed.medium)  # first, so that what is refused is not opened
        opened: list[Picture | Clip] = []
        if (facts := self.models.facts(key)) is not None:
            facts.check_skill(parsed.request.skill)
            for ref in takewhile(lambda ref: not ref.is_remote and not ref.is_video, parsed.images):
                opened.append(self._open(ref, facts, opened))
        waits = len(opened) < len(parsed.images) or not self.models.is_loaded(key)
        return parsed, opened, None if waits else self._start(parsed, opened, fields)

    def _open(
        self, ref: MediaRef, facts: Facts, others: Sequence[Picture | Clip], fetched: bytes | None = None
    ) -> Picture | Clip:
        """Open an image or video beside the others of its request; an image is made no larger than the settings say."""
        media = open_media(ref, facts.video_sampling, fetched, _pixels_left(others))
        side = self.settings.max_image_side
        return media.limit_side(side) if side and isinstance(media, Picture) else media

    async def _fetch(self, ref: MediaRef) -> bytes | None:
        if not ref.is_remote:
            return None
        if not self.settings.remote_images:
            what = "video" if ref.is_video else "image"
            why = f"remote {what}s are turned off on this server; send the {what} itself as a data: URL"
            raise InvalidImage(why, ref.path)
        # A request that is cancelled, as the server stops, does not wait for a site.
        return await anyio.to_thread.run_sync(
            fetch_media, ref, self.settings.allow_image_hosts, limiter=self.fetch_limiter, abandon_on_cancel=True
        )

    def _start(self, parsed: ParsedBody, opened: Sequence[Picture | Clip], fields: dict[str, Any]) -> "StartedRequest":
        """Load the model if needed and submit one request per choice. If one fails, all are cancelled."""
        with ExitStack() as stack:
            facts, model = stack.enter_context(self.models.use(self.models.resolve_model(parsed.model, parsed.medium)))
            runs: list[Run] = []
            try:
                for request in expand_choices(parsed, opened):
                    fields |= {"model": facts.name, "images": len(request.shown), "content": request.skill}
                    timeout = self.settings.timeout if request.timeout is None else request.timeout
                    runs.append(model.submit(replace(request, timeout=timeout)))
                    stack.callback(runs[-1].cancel)
            except TooManyImages as error:
                pictures = [one for one in opened if isinstance(one, Picture)]
                if self.settings.several_images == "sheet" and len(pictures) == len(opened):
                    sheet = contact_sheet(pictures)
                    log.info("%s", sheet.warnings[0])
                    return self._start(parsed, [sheet], fields)
                several = next(photo_models("video")).id
                hint = f"--several-images sheet shows them to it as one, and {several} takes several"
                raise TooManyImages(f"{error}; {hint}", parsed.images[1].path) from error
            return StartedRequest(facts, runs, stack.pop_all())


@dataclass(frozen=True)
class ModelResponse:
    """A model's response: the request, the facts of the model, and the events as they come."""

    parsed: ParsedBody
    facts: Facts
    events: Events


def _pixels_left(opened: Sequence[Picture | Clip]) -> int:
    """Pixels that a request's further images may have."""
    images = (image for one in opened for image in (one.frames if isinstance(one, Clip) else [one]))
    return MAX_PIXELS - sum(image.width * image.height for image in images)


@dataclass(frozen=True)
class StartedRequest:
    """A request that is submitted to a model: one run for each choice."""

    facts: Facts
    runs: list[Run]
    resources: ExitStack
    """cancels the runs and ends the use of the model"""


async def _release_after(events: Events, resources: ExitStack, pool: ModelPool) -> Events:
    """Pass events on and release the model at their end, in a thread unless the pool keeps it: closing takes time."""
    try:
        async for event in events:
            yield event
    finally:
        # A client that goes away cancels its request; without a shield the model would stay in use until some
        # collection of garbage.
        with anyio.CancelScope(shield=True):
            if pool.keeps:
                resources.close()
            else:
                await run_blocking(resources.close)


async def run_blocking(call: Callable[[], T]) -> T:
    """Run a call that may wait (for the engine, a load, files) in a thread, without limiting how many do."""
    # A limiter of its own is no limit. The engine's queue is the bound, which answers with 429; the usual
    # 40 threads would let requests wait where nobody counts them.
    return await anyio.to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))


async def events_until_disconnect(http: Request, runs: Sequence[Run]) -> Events:
    """The events of runs as aio.events_of gives them; the runs are cancelled when the client disconnects."""
    watcher = asyncio.create_task(_cancel_on_disconnect(http, runs))
    try:
        async with aclosing(events_of(runs)) as events:
            async for numbered in events:
                yield numbered
    finally:
        watcher.cancel()


async def _wait_for_disconnect(http: Request) -> None:
    """Return when the client has disconnected."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _cancel_on_disconnect(http: Request, runs: Sequence[Run]) -> None:
    await _wait_for_disconnect(http)
    for run in runs:
        run.cancel()


def model_header(facts: Facts) -> dict[str, str]:
    """The X-Galago-Model header; percent-encoded, since names of folders may hold what no header can."""
    return {"X-Galago-Model": quote(facts.name, safe="/@:+,=")}
