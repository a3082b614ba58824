"""The one way of a request: body, validated, its media opened, a Request, submitted; its events counted and written."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from random import Random
from typing import Any, TypeVar, cast
from urllib.parse import quote

import anyio.to_thread
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from galago.aio import events_of
from galago.backends.backend import Facts, Run
from galago.engine.decoding import CLIPS
from galago.errors import DeadlineExceeded, EngineBusy, InvalidImage, InvalidRequest, TooManyImages
from galago.fleet.default_model import photo_models
from galago.media.clip import Clip
from galago.media.image import MAX_PIXELS
from galago.media.picture import Picture
from galago.request import Detail, Done, Priority, Request
from galago.server.bodies import Json, decompress, read_body
from galago.server.contact_sheet import contact_sheet
from galago.server.dialect import Body, Defaults, Numbered, Reply, Route, read
from galago.server.errors import Refused
from galago.server.guard.logs import log_fields
from galago.server.guard.stopping import InFlight
from galago.server.models import Models, id_of
from galago.server.settings import ServerSettings
from galago.server.shown import MediaRef, clip_bytes, fetch_media, open_media, pixels_left
from galago.server.streaming import Silence, stream_response
from galago.system.machine import usable_cores

T = TypeVar("T")
log = logging.getLogger(__name__)

Events = AsyncIterator[Numbered]
Media = list[Picture | Clip]
MAX_FETCHES = 16
"""Images and videos that are fetched at the same time; more wait"""


@dataclass
class RequestStats:
    """Counts of the requests answered since the start, and the seconds that they took together."""

    requests: int = 0
    seconds: float = 0.0
    cache_hits: int = 0
    timeouts: int = 0

    def count(self, done: Sequence[Done]) -> None:
        """Count a request by the ends of its choices."""
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

    async def parse_body(self, http: HttpRequest, reader: Callable[[bytes], T]) -> T:
        """Receive and decompress the body, and parse it with `reader` in a worker thread."""
        limit, coding = self.settings.body_limit, http.headers.get("content-encoding", "")
        raw = await read_body(http, limit)
        return await anyio.to_thread.run_sync(lambda: reader(decompress(raw, coding, limit)), limiter=self.read_limiter)

    async def answer(self, http: HttpRequest, route: Route) -> Response:
        """The reply to a request of this route. Raises Refused while the models are being loaded."""
        arrived = time.perf_counter()
        self.models.check_ready()
        fields = log_fields(http.scope)
        asked = await self.parse_body(http, partial(self._start_if_ready, route.body, fields))
        body, headers = asked.body, model_header(id_of(asked.key))
        if body.is_idle and route.idle:
            return JSONResponse(await route.idle(self.models, body), headers=headers)
        reply = route.reply(body, id_of(asked.key), arrived, self.settings.assistant_compat)
        events = self._events(http, asked, reply, fields)
        if body.streams and route.streams:
            return await stream_response(reply.lines(events), reply, self.silence, headers)
        return JSONResponse(reply.whole([event async for event in events]), headers=headers)

    async def carry_out(self, route: Route, raw: bytes) -> Json:
        """The reply to a body that nobody waits for, in one piece; interactive requests go before it."""
        asked = await anyio.to_thread.run_sync(
            partial(self._start_if_ready, route.body, {}, raw, "batch"), limiter=self.read_limiter
        )
        reply = route.reply(asked.body, id_of(asked.key), time.perf_counter(), self.settings.assistant_compat)
        return reply.whole([event async for event in self._events(None, asked, reply, {})])

    def _start_if_ready(
        self, kind: type[Body], fields: dict[str, Any], raw: bytes, priority: Priority = "interactive"
    ) -> "Asked":
        """Read a body, open its inline images and, if nothing has to be decoded, fetched or loaded, submit its request.

        Never waits for a site, a model or memory, since that would keep other bodies from being read.
        """
        body = read(kind, raw)
        asked = Asked(body, body.key(self.models), priority)  # the key first, so that what is refused is not opened
        if body.is_idle:
            return asked
        if (facts := self.models.facts(asked.key)) is not None:
            facts.check_skill(body.skill)
            for ref in takewhile(lambda ref: not ref.is_remote and not ref.is_video, body.media):
                asked.opened.append(self._open(ref, facts, asked.opened))
        if len(asked.opened) == len(body.media) and self.models.is_loaded(asked.key):
            asked.started = self._start(asked, self._defaults(body), fields)
        return asked

    async def _start_when_ready(
        self, http: HttpRequest | None, asked: "Asked", fields: dict[str, Any]
    ) -> "StartedRequest":
        """Load the model, fetch and open what is left of the media, and submit the request."""
        body, key, opened = asked.body, asked.key, asked.opened
        if self.models.facts(key) is None:
            # Which frames of a video it looks at is known once it is loaded.
            await run_blocking(partial(self.models.load, [key]))
        facts, defaults = self.models.facts(key), self._defaults(body)
        assert facts is not None
        facts.check_skill(body.skill)
        self.models.check_queue(key)
        with ExitStack() as stack:
            if clips := sum(ref.is_video for ref in body.media):
                needed = clips * clip_bytes(facts.video_sampling)
                defaults = await self._reserve_clips(http, needed, defaults, stack)
            for ref in body.media[len(opened) :]:
                opening = partial(self._open, ref, facts, opened, await self.fetch(ref))
                opened.append(await anyio.to_thread.run_sync(opening, limiter=self.read_limiter))
            started = await run_blocking(partial(self._start, asked, defaults, fields))
            started.resources.push(stack.pop_all())
        return started

    def _defaults(self, body: Body) -> Defaults:
        return Defaults(
            self.settings.timeout if body.timeout_s is None else body.timeout_s, cast(Detail, self.settings.detail)
        )

    async def _reserve_clips(
        self, http: HttpRequest | None, needed: int, defaults: Defaults, stack: ExitStack
    ) -> Defaults:
        """Wait until `needed` bytes of video frames (at most one request's share) are free; `stack` gives them back.

        Returns what is left of the timeout. Raises EngineBusy where too many wait already, DeadlineExceeded when the
        time is over, and Refused, which nobody reads, when the client has gone.
        """
        if CLIPS.waiting >= self.settings.max_queue and CLIPS.waiting:
            raise EngineBusy(f"{CLIPS.waiting} requests with videos are waiting already; try again later")
        size, timeout = min(needed, 4 * MAX_PIXELS), defaults.timeout
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
        spent = time.perf_counter() - start
        if not has_given_up:
            return defaults if timeout is None else replace(defaults, timeout=max(timeout - spent, 1e-3))
        if timeout is not None and spent >= timeout:
            self.stats.timeouts += 1
            raise DeadlineExceeded(f"the request was not done within its {timeout:g} s")
        raise Refused("invalid_json", "the client has gone")

    def _open(self, ref: MediaRef, facts: Facts, others: Media, fetched: bytes | None = None) -> Picture | Clip:
        """Open an image or video: of MAX_PIXELS with the others of its request, and an image of the settings' side."""
        media = open_media(ref, facts.video_sampling, fetched, pixels_left(others))
        side = self.settings.max_image_side
        return media.limit_side(side) if side and isinstance(media, Picture) else media

    async def fetch(self, ref: MediaRef) -> bytes | None:
        """The bytes of a remote image or video, None of one that came with its request. Raises InvalidImage where the
        settings forbid it."""
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

    def _start(self, asked: "Asked", defaults: Defaults, fields: dict[str, Any]) -> "StartedRequest":
        """Load the model if needed, and submit the request, once per choice. If one fails, all are cancelled."""
        body, opened = asked.body, asked.opened
        with ExitStack() as stack:
            facts, model = stack.enter_context(self.models.use(asked.key))
            runs: list[Run] = []
            try:
                request = replace(body.request(opened, defaults), priority=asked.priority)
                fields |= {"model": facts.name, "images": len(request.shown), "content": request.skill}
                for one in _choices(request, body.choices):
                    runs.append(model.submit(one))
                    stack.callback(runs[-1].cancel)
            except TooManyImages as error:
                pictures = [one for one in opened if isinstance(one, Picture)]
                if self.settings.several_images == "sheet" and len(pictures) == len(opened):
                    sheet = contact_sheet(pictures)
                    log.info("%s", sheet.warnings[0])
                    return self._start(replace(asked, opened=[sheet]), defaults, fields)
                several = next(photo_models("video")).id
                hint = f"--several-images sheet shows them to it as one, and {several} takes several"
                raise TooManyImages(f"{error}; {hint}", body.media[1].path) from error
            except InvalidRequest as error:
                if error.param != "json_schema":
                    raise
                told = str(error).replace(error.param, body.schema_path, 1)  # as the client calls it
                raise InvalidRequest(told, body.schema_path) from error
            body.on_start(self.models)
            return StartedRequest(facts, runs, stack.pop_all())

    async def _events(self, http: HttpRequest | None, asked: "Asked", reply: Reply, fields: dict[str, Any]) -> Events:
        """The events of a request as they come, counted at their end; they are cancelled when the client goes away, and
        the model is released after them."""
        started = asked.started or await self._start_when_ready(http, asked, fields)
        reply.facts = started.facts
        # The images and videos as they were sent can be freed.
        asked.body.forget_media()
        asked.opened.clear()
        watcher, done = asyncio.create_task(_cancel_on_disconnect(http, started.runs)), list[Done]()
        try:
            async with aclosing(events_of(started.runs)) as events:
                async for choice, event in events:
                    if isinstance(event, Done):
                        done.append(event)
                        fields["prompt_tokens"] = event.usage.prompt_tokens
                        fields["tokens"] = fields.get("tokens", 0) + event.usage.completion_tokens
                    yield choice, event
            self.stats.count(done)
        except DeadlineExceeded:
            self.stats.timeouts += 1
            raise
        finally:
            watcher.cancel()
            # Without a shield a request that is cancelled would keep its model until some collection of garbage.
            with anyio.CancelScope(shield=True):
                if self.models.pool.keeps:
                    started.resources.close()
                else:
                    await run_blocking(started.resources.close)  # closing a model takes time


@dataclass
class Asked:
    """A request on its way to its model."""

    body: Body
    key: str
    """of the model"""
    priority: Priority = "interactive"
    opened: Media = field(default_factory=Media)
    """those of its images and videos that are open"""
    started: "StartedRequest | None" = None


@dataclass(frozen=True)
class StartedRequest:
    """A request that is submitted to a model: one run for each choice."""

    facts: Facts
    runs: list[Run]
    resources: ExitStack
    """cancels the runs and ends the use of the model"""


def _choices(request: Request, count: int) -> list[Request]:
    """The request once for each choice. From one seed each draws with its own, the first with that very one."""
    sampling = request.sampling
    if sampling.seed is None:
        return [request] * count
    seeds = [Random(f"{sampling.seed}/{i}").getrandbits(63) for i in range(1, count)]
    return [request, *(replace(request, sampling=replace(sampling, seed=seed)) for seed in seeds)]


async def run_blocking(call: Callable[[], T]) -> T:
    """Run a call that may wait (for the engine, a load, files) in a thread, without limiting how many do."""
    # A limiter of its own is no limit. The engine's queue is the bound, which answers with 429; the usual
    # 40 threads would let requests wait where nobody counts them.
    return await anyio.to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))


async def _wait_for_disconnect(http: HttpRequest | None) -> None:
    """Return when the client has disconnected; where there is none, never."""
    if http is None:
        return await anyio.sleep_forever()
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _cancel_on_disconnect(http: HttpRequest | None, runs: Sequence[Run]) -> None:
    await _wait_for_disconnect(http)
    for run in runs:
        run.cancel()


def model_header(name: str) -> dict[str, str]:
    """The X-Galago-Model header; percent-encoded, since names of folders may hold what no header can."""
    return {"X-Galago-Model": quote(name, safe="/@:+,=")}
