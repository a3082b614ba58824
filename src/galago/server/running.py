"""Between the event loop and a blocking run: bodies in, events out, and the client's going away."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from galago.request import Done, Event
from galago.server.errors import Refused

if TYPE_CHECKING:
    from galago.model import Run

T = TypeVar("T")


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
