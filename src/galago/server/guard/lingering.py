"""Lingering close: a client that is still sending its request gets the reply before its connection is closed.

A close while bytes are unread resets the connection. A client that meets the reset in the middle of its body never
looks at the reply that says what was wrong: Moondream's shows "connection reset" for a wrong key.
"""

import asyncio
from collections.abc import Callable
from typing import Any


class LingeringTransport(asyncio.Transport):
    """A transport whose close() only ends the writing side while `is_sending()` says that the client sends more.

    The protocol throws away what still comes; after `seconds` the connection is aborted.
    """

    def __init__(self, transport: asyncio.Transport, is_sending: Callable[[], bool], seconds: float) -> None:
        super().__init__()
        self._transport, self._is_sending, self._seconds = transport, is_sending, seconds
        self._abort_timer: asyncio.TimerHandle | None = None

    @property
    def is_lingering(self) -> bool:
        return self._abort_timer is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._is_sending():
            self._transport.close()
            return
        self._abort_timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def connection_lost(self) -> None:
        """Cancel the pending abort; the protocol calls this when the connection is lost."""
        if self._abort_timer is not None:
            self._abort_timer.cancel()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._abort_timer is not None or self._transport.is_closing()

    def write(self, data: Any) -> None:
        if self._abort_timer is None:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if self._abort_timer is None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
