"""Between the event loop and a blocking run: bodies in, events out, and the client's going away."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from galago.errors import DeadlineExceeded
from galago.request import Done, Event
from galago.request import Request as ModelRequest
from galago.server.errors import Refused
from galago.server.guard.logs import facts_of
from galago.server.guard.stopping import Underway
from galago.server.models import Facts, Models

if TYPE_CHECKING:
    from galago.model import Run

T = TypeVar("T")


@dataclass
class Served:
    """What has been answered since the start."""

    requests: int = 0
    seconds: float = 0.0
    cache_hits: int = 0
    timeouts: int = 0

    async def counted(self, events: AsyncIterator[Event], facts: dict[str, Any]) -> AsyncIterator[Event]:
        """The same events, with the run added up when it is done, and its tokens in the facts for the log."""
        try:
            async for event in events:
                if isinstance(event, Done):
                    self.requests += 1
                    self.seconds += event.timings.total_s
                    self.cache_hits += event.usage.cached_tokens > 0
                    facts["prompt_tokens"] = facts.get("prompt_tokens", 0) + event.usage.prompt_tokens
                    facts["tokens"] = facts.get("tokens", 0) + event.usage.completion_tokens
                yield event
        except DeadlineExceeded:
            self.timeouts += 1
            raise

    def report(self) -> dict[str, Any]:
        average = self.seconds / max(self.requests, 1)
        return {"requests": self.requests, "avg_time": f"{average:.2f}s", "cache_hits": self.cache_hits}


@dataclass(frozen=True)
class Host:
    """What the routes of every dialect share: the models, and the bounds on what clients send."""

    models: Models
    underway: Underway
    body_limit: int
    timeout: float | None = None
    """seconds for a request that names no limit of its own"""
    served: Served = field(default_factory=Served)
    # A decoded photo takes up to 200 MB, so no more of them than can be worked on at once.
    decoding: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(os.cpu_count() or 1))

    async def read(self, http: Request, reader: Callable[[bytes], T]) -> T:
        """What a dialect's reader makes of the body. Raises Refused while the models are being loaded."""
        self.models.check_ready()
        body = await read_body(http, self.body_limit)
        return await anyio.to_thread.run_sync(reader, body, limiter=self.decoding)

    async def run(self, http: Request, request: ModelRequest, name: str | None) -> tuple[Facts, AsyncIterator[Event]]:
        """What answers a request to the model that the client calls by this name, and the events of its answer."""
        if request.timeout is None:
            request = replace(request, timeout=self.timeout)
        use = self.models.use(self.models.meant(name))
        async with AsyncExitStack() as stack:
            facts, model = await waited(use.__enter__)
            stack.push_async_callback(waited, partial(use.__exit__, None, None, None))
            told = facts_of(http.scope)
            told |= {"model": facts.id, "images": int(request.image is not None), "content": request.skill}
            run = await waited(partial(model.submit, request))
            stack.callback(run.cancel)
            return facts, _until_done(self.served.counted(events_of(http, run), told), stack.pop_all())


async def _until_done(events: AsyncIterator[Event], stack: AsyncExitStack) -> AsyncIterator[Event]:
    """The same events; the model is in use until their end."""
    async with stack:
        async for event in events:
            yield event


async def waited(call: Callable[[], T]) -> T:
    """The result of a call that waits for the engine."""
    # A limiter of its own is no limit. The engine's queue is the bound, which answers with 429; the usual
    # 40 threads would let requests wait where nobody counts them.
    return await anyio.to_thread.run_sync(call, limiter=anyio.CapacityLimiter(1))


async def read_body(http: Request, limit: int) -> bytes:
    """The body, or Refused as soon as it is known to be over `limit` bytes."""
    too_large = Refused("request_too_large", f"the body is larger than {limit} bytes")
    declared = http.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    try:
        async for piece in http.stream():
            body += piece
            if len(body) > limit:
                raise too_large
    except ClientDisconnect:
        # Nobody is there to read this; it only ends the request quietly.
        raise Refused("invalid_json", "the body ended early") from None
    return bytes(body)


async def events_of(http: Request, run: "Run") -> AsyncIterator[Event]:
    """The events of a run up to its Done; the run is cancelled when the client goes away or nobody reads on."""
    watcher = asyncio.create_task(_cancel_when_gone(http, run))
    try:
        event: Event | None = None
        while not isinstance(event, Done):
            event = await waited(lambda: next(run))
            yield event
    finally:
        watcher.cancel()
        run.cancel()


async def _cancel_when_gone(http: Request, run: "Run") -> None:
    # A thread that waits for the next event cannot be interrupted; the run can, and then the thread returns.
    while (await http.receive())["type"] != "http.disconnect":
        pass
    run.cancel()


def line(value: dict[str, Any]) -> str:
    """A server-sent event."""
    # ASCII only: some clients also split lines at U+2028 and its like.
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"


async def streamed(lines: AsyncIterator[str]) -> StreamingResponse:
    """A reply of server-sent events."""
    # The status line is sent after this: until the first event the request can still fail properly.
    first = await anext(lines)

    async def all_lines() -> AsyncIterator[str]:
        yield first
        async for line in lines:
            yield line

    return StreamingResponse(all_lines(), headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
