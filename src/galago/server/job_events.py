"""GET /v1/jobs/events: server-sent events of jobs' states as they change, whichever process changes them.

However many listen, the database is asked by one whether anything changed; each then reads on from its own cursor, so a
slow client costs no memory, and one that comes again misses nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from galago.errors import EngineBusy, JobsDatabaseError
from galago.jobs.records import Job
from galago.jobs.telling import EVENTS, job_json
from galago.server.jobs import PATH as JOBS
from galago.server.jobs import queue_of
from galago.server.serving import ServerContext
from galago.server.streaming import STREAM_HEADERS, Framing, sse_event

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

T = TypeVar("T")
log = logging.getLogger(__name__)
PATH = f"{JOBS}/events"
MAX_STREAMS = 64
LOOK_S = 0.5
"""Between looks whether anything changed"""
PAGE = 100
READERS = 2
"""Streams that read from the database at the same time: its connections are for those that work"""
END_S = 0.5
"""For the last bytes of a stream, which its client may not be reading"""


class JobEvents:
    """The streams of events that are open, and the task that looks for changes while there are any."""

    def __init__(self, context: ServerContext, store: "JobStore") -> None:
        self._context, self._store = context, store
        self._streams: set[anyio.CancelScope] = set()
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._limiter = anyio.CapacityLimiter(READERS)
        context.in_flight.on_stop.append(self._end_all)

    async def open(self, after: str | None) -> StreamingResponse:
        """A stream of what changes behind a cursor, or from now on. Raises InvalidRequest and EngineBusy."""
        if len(self._streams) >= MAX_STREAMS:
            raise EngineBusy(f"{MAX_STREAMS} clients follow the jobs already; try again later")
        scope = anyio.CancelScope()
        self._streams.add(scope)
        try:
            _, now = await self._read(partial(self._store.changes, after, 1))
        except BaseException:
            self._leave(scope)
            raise
        if self._looking is None:
            # Not in the context of this request, whose id its lines in the log would have.
            self._looking = asyncio.get_running_loop().create_task(self._look(), context=Context())
        return _EventStream(self._lines(now if after is None else after), scope, self._leave)

    def _leave(self, scope: anyio.CancelScope) -> None:
        self._streams.discard(scope)
        if not self._streams and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _end_all(self) -> None:
        for scope in self._streams:
            scope.cancel()

    async def _lines(self, cursor: str) -> AsyncIterator[str]:
        # An id alone is no event: it says from where on to go, should the connection be lost before the first.
        yield f"id: {cursor}\n\n"
        while True:
            changed, jobs = self._changed, tuple[Job, ...]()
            # A database that is away for a while ends no stream: browsers do not come again after an error.
            with suppress(JobsDatabaseError):
                jobs, cursor = await self._read(partial(self._store.changes, cursor, PAGE))
            for job in jobs:
                yield sse_event(job_json(job), event=EVENTS[job.state], id=job.cursor)
            if len(jobs) < PAGE:
                with anyio.move_on_after(self._context.silence.later) as silence:
                    await changed.wait()
                if silence.cancelled_caught:
                    yield Framing().keep_alive()

    async def _look(self) -> None:
        """Wake the streams whenever there is something to read."""
        seen: int | None = None
        is_away = False
        while True:
            try:
                last: int | None = await self._read(self._store.last_change)
                is_away = False
            except JobsDatabaseError as error:
                if not is_away:
                    log.error("the events of jobs wait: %s", error)
                # So that the streams read again afterwards, whatever they could not.
                last, seen, is_away = None, None, True
            if last != seen:
                seen = last
                self._changed.set()
                self._changed = asyncio.Event()
            await anyio.sleep(LOOK_S)

    async def _read(self, call: Callable[[], T]) -> T:
        # Whoever has gone does not wait for a database that is away.
        return await anyio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=True)


class _EventStream(StreamingResponse):
    """A stream that ends when its scope is cancelled, and tells when it has ended, however that was."""

    def __init__(
        self, lines: AsyncIterator[str], scope: anyio.CancelScope, leave: Callable[[anyio.CancelScope], None]
    ) -> None:
        super().__init__(lines, headers=STREAM_HEADERS, media_type=Framing.content_type)
        self._scope, self._leave = scope, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._scope:
                await super().__call__(scope, receive, send)
            if self._scope.cancelled_caught:
                with anyio.move_on_after(END_S):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._leave(self._scope)


def add_routes(app: FastAPI, context: ServerContext, kept: "JobStore | None") -> None:
    events = JobEvents(context, kept) if kept else None

    @app.get(PATH)
    async def follow(http: Request) -> Response:
        queue_of(kept)
        assert events is not None
        if http.method == "HEAD":
            return Response(headers=STREAM_HEADERS, media_type=Framing.content_type)
        # The header is what a browser adds when it comes again, to the address of the first time.
        return await events.open(http.headers.get("last-event-id") or http.query_params.get("after"))
