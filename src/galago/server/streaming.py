"""Streamed replies: server-sent events and other framings, kept alive until their first event."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from fastapi.responses import StreamingResponse


@dataclass(frozen=True)
class Framing:
    """What a dialect's streams are made of beside their events."""

    format_error: Callable[[Exception], tuple[str, ...]]
    """writes the last lines of a stream that fails after its headers are sent"""
    keep_alive: Callable[[], str] = lambda: ": keep-alive\n\n"
    """writes what clients pass over: a comment among server-sent events"""
    content_type: str = "text/event-stream"


@dataclass(frozen=True)
class Silence:
    """Seconds that a stream may be silent before its first event."""

    first: float = 10.0
    """until its headers are sent; a failure before gets its own status"""
    later: float = 15.0
    """between one keep-alive and the next; proxies cut after 30 to 120"""


def sse_event(value: dict[str, Any]) -> str:
    """A server-sent event with this JSON."""
    # ASCII only: some clients also split lines at U+2028 and its like.
    # NaN and infinity, which are no JSON, are an error here as they are in replies of one piece.
    return f"data: {json.dumps(value, separators=(',', ':'), allow_nan=False)}\n\n"


async def stream_response(
    lines: AsyncIterator[str], framing: Framing, silence: Silence = Silence(), headers: dict[str, str] | None = None
) -> StreamingResponse:
    """A streaming response, which starts with the first of the lines, or with a keep-alive where that takes long.

    What fails before is raised, so that it gets its own status; later it ends the stream as the framing says, since
    one that merely ends looks to clients like a shorter answer.
    """
    kept = _keep_alive(lines, framing, silence)
    first = await anext(kept)

    async def all_lines() -> AsyncIterator[str]:
        yield first
        async for line in kept:
            yield line

    # nginx would collect what it passes on, keep-alives too.
    usual = {"Content-Type": framing.content_type, "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(all_lines(), headers=usual | (headers or {}))


async def _keep_alive(lines: AsyncIterator[str], framing: Framing, silence: Silence) -> AsyncIterator[str]:
    """The lines, with keep-alives before the first: a request may wait long for its turn, but tokens follow fast."""
    begun = False
    # A task of its own, since a timeout must not cancel what runs.
    first = asyncio.ensure_future(anext(lines))
    try:
        while not (await asyncio.wait({first}, timeout=silence.later if begun else silence.first))[0]:
            begun = True
            yield framing.keep_alive()
        line = first.result()
        begun = True
        yield line
        async for line in lines:
            yield line
    except Exception as error:
        if not begun:
            raise
        for line in framing.format_error(error):
            yield line
    finally:
        # A client that went away meanwhile; the request is under way until its model is released.
        if first.cancel():
            with anyio.CancelScope(shield=True):
                await asyncio.wait({first})
