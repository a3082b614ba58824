"""Closing a connection so that a client that is still sending gets its reply.

A close while bytes are unread resets the connection. A client that is told so in the middle of its body gives up
and never looks at the reply that says what was wrong: Moondream's shows "connection reset" for a wrong key.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class Lingering(asyncio.Transport):
    """A transport that on close() ends its own side alone while `sending` says that more is to come.

    What comes is for the protocol to throw away; after so many seconds it is closed for good.
    """

    def __init__(self, transport: asyncio.Transport, sending: Callable[[], bool], seconds: float) -> None:
        super().__init__()
        self._transport, self._sending, self._seconds = transport, sending, seconds
        self._end: asyncio.TimerHandle | None = None

    @property
    def lingers(self) -> bool:
        return self._end is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._sending():
            self._transport.close()
            return
        self._end = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def closed(self) -> None:
        """To be called when the connection is lost."""
        if self._end is not None:
            self._end.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._end is not None or self._transport.is_closing()

    def write(self, data: Any) -> None:
        if self._end is None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._end is None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
