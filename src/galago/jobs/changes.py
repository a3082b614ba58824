"""Who waits for a change of the queue, whichever process makes it."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from sqlalchemy import Engine

log = logging.getLogger(__name__)
POLL_S = 0.2
"""How often SQLite is asked whether another process wrote."""
LOOK_S = 0.5
"""How long a connection to PostgreSQL listens before it is asked whether it is still wanted."""
RETRY_S = 1.0
CLOSE_S = 2.0


class Changes:
    """Counts changes that may have given somebody something to do, and lets threads wait for the next.

    `watch` yields for every change that others made, and every now and then None; a thread follows it from the first
    wait on, and begins anew when it fails.
    """

    def __init__(self, watch: Callable[[], Iterator[object]]) -> None:
        self._watch = watch
        self._condition = threading.Condition()
        self._count = 0
        self._thread: threading.Thread | None = None
        self.closed = False

    def count(self) -> int:
        """How many there were so far."""
        with self._condition:
            return self._count

    def tell(self) -> None:
        """There was a change."""
        with self._condition:
            self._count += 1
            self._condition.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Wait until there were more than `seen` changes, for `timeout_s` seconds, or until this is closed."""
        with self._condition:
            if self._thread is None and not self.closed:
                self._thread = threading.Thread(target=self._follow, name="galago-jobs-changes", daemon=True)
                self._thread.start()
            self._condition.wait_for(lambda: self._count > seen or self.closed, timeout_s)

    def close(self) -> None:
        """End all waits and the thread."""
        with self._condition:
            self.closed = True
            self._condition.notify_all()
            thread = self._thread
        if thread is not None:
            # It may be waiting for a server that is gone.
            thread.join(CLOSE_S)

    def _follow(self) -> None:
        while not self.closed:
            try:
                for change in self._watch():
                    if self.closed:
                        return
                    if change is not None:
                        self.tell()
            except Exception as error:
                # Whoever waits looks for itself every few seconds meanwhile, and tells what is wrong.
                log.debug("the job database cannot be watched: %s", error)
                with self._condition:
                    self._condition.wait_for(lambda: self.closed, RETRY_S)


def watch_sqlite(engine: Engine) -> Iterator[object]:
    """Ask for the number that SQLite changes whenever another connection commits."""
    with closing(engine.raw_connection()) as connection:
        cursor = connection.cursor()
        last = None
        while True:
            (version,) = cursor.execute("PRAGMA data_version").fetchone()
            yield version if version != last else None
            last = version
            time.sleep(POLL_S)


def watch_postgres(engine: Engine, channel: str) -> Iterator[object]:
    """Listen on a connection of its own. The first yield says that it listens: what was before may have been missed."""
    pooled = engine.raw_connection()
    connection = pooled.driver_connection
    assert connection is not None
    pooled.detach()
    with closing(connection):
        connection.rollback()
        connection.autocommit = True
        connection.execute(f"LISTEN {channel}")
        yield True
        while True:
            heard = [*connection.notifies(timeout=LOOK_S, stop_after=1)]
            yield heard or None
