"""Streamed replies: server-sent events and other framings, kept alive until their first event."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import anyio
from fastapi.responses import StreamingResponse


class Framing:
    """What a stream is made of beside its events."""

    content_type: ClassVar[str] = "text/event-stream"

    def keep_alive(self) -> str:
        """What clients pass over: a comment among server-sent events."""
        return ": keep-alive\n\n"

    def failed(self, error: Exception) -> Iterable[str]:
        """The last lines of a stream that fails after its headers are sent."""
        raise NotImplementedError


@dataclass(frozen=True)
class Silence:
    """Seconds that a stream may be silent before its first event."""

    first: float = 10.0
    """until its headers are sent; a failure before gets its own status"""
    later: float = 15.0
    """between one keep-alive and the next; proxies cut after 30 to 120"""


STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""nginx would collect what it passes on, keep-alives too."""


def sse_event(value: dict[str, Any], **fields: str) -> str:
    """A server-sent event with this JSON, and other fields (event, id)."""
    # ASCII only: some clients also split lines at U+2028 and its like.
    # NaN and infinity, which are no JSON, are an error here as they are in replies of one piece.
    named = "".join(f"{name}: {field}\n" for name, field in fields.items())
    return f"{named}data: {json.dumps(value, separators=(',', ':'), allow_nan=False)}\n\n"


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

    usual = {"Content-Type": framing.content_type, **STREAM_HEADERS}
    return StreamingResponse(all_lines(), headers=usual | (headers or {}))


async def _keep_alive(lines: AsyncIterator[str], framing: Framing, silence: Silence) -> AsyncIterator[str]:
    """The lines, with keep-alives before the first: a request may wait long for its turn, but tokens follow fast."""
    begun, scope = False, anyio.CancelScope()

    async def next_line() -> str | None:
        # A scope, and not the task, is cancelled: calls in threads, which load models, then give what they have.
        with scope:
            return await anext(lines)
        return None

    # A task of its own, since a timeout must not cancel what runs.
    first = asyncio.ensure_future(next_line())
    try:
        while not (await asyncio.wait({first}, timeout=silence.later if begun else silence.first))[0]:
            begun = True
            yield framing.keep_alive()
        line = first.result()
        assert line is not None  # the scope is cancelled at the end alone
        begun = True
        yield line
        async for line in lines:
            yield line
    except Exception as error:
        if not begun:
            raise
        for line in framing.failed(error):
            yield line
    finally:
        # A client that went away meanwhile; the request is under way until its model is released.
        if not first.done():
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({first})
