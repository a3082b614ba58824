"""How far a batch is, for a terminal, a log or a program: rows, errors, tokens, images a minute and the time left."""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from galago.batch.run import Counts

if TYPE_CHECKING:
    from rich.console import Console

LINE_S = 15.0
"""Between two lines, where there is no terminal."""
WINDOW_S = 60.0
"""The rate is that of so long ago until now."""


@dataclass
class Meter:
    """What is told of a batch under way."""

    counts: Counts
    total: int | None = None
    """rows that there are in all; None until they are counted, and where they come from a pipe"""
    clock: Callable[[], float] = time.monotonic
    _times: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.begun = self.clock()
        self._times.append((self.begun, 0))

    def told(self) -> dict[str, Any]:
        """For programs."""
        rate = self.per_minute()
        counts = self.counts
        left = None
        if self.total is not None and rate:
            left = round(max(0, self.total - counts.before - counts.done) / rate * 60)
        return {
            "done": counts.before + counts.done, "total": self.total, "errors": counts.failed,
            "tokens": counts.tokens, "images_per_minute": round(rate, 1), "seconds_left": left,
        }  # fmt: skip

    def per_minute(self) -> float:
        """Rows of this run a minute, over the last WINDOW_S."""
        now = self.clock()
        self._times.append((now, self.counts.done))
        while len(self._times) > 2 and self._times[1][0] <= now - WINDOW_S:
            self._times.popleft()
        (then, before), (now, done) = self._times[0], self._times[-1]
        return 60 * (done - before) / (now - then) if now > then else 0.0

    def words(self) -> str:
        told = self.told()
        of = f" of {told['total']}" if told["total"] is not None else ""
        parts = [f"{told['done']}{of} images", f"{told['images_per_minute']:g} a minute"]
        if told["seconds_left"] is not None:
            parts.append(f"{span(told['seconds_left'])} left")
        if told["errors"]:
            parts.append(f"{told['errors']} errors")
        return ", ".join([*parts, f"{told['tokens']} tokens"])


def span(seconds: float) -> str:
    """40 s, 12 min, 3 h 05 min or 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@contextmanager
def show_progress(meter: Meter, as_json: bool) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, else a line on standard error now and then, of JSON if wanted; yields what is to be
    called after each row."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal and not as_json:
        with _bar(meter, console) as tell:
            yield tell
        return
    last = meter.clock()

    def line() -> None:
        nonlocal last
        if meter.clock() - last >= LINE_S:
            last = meter.clock()
            print(json.dumps(meter.told()) if as_json else meter.words(), file=sys.stderr, flush=True)

    yield line


@contextmanager
def _bar(meter: Meter, console: "Console") -> Iterator[Callable[[], None]]:
    from rich import progress as rich

    columns = rich.BarColumn(), rich.TextColumn("{task.description}")
    with rich.Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=None)

        def tell() -> None:
            done = meter.counts.before + meter.counts.done
            bar.update(task, completed=done, total=meter.total, description=meter.words())

        yield tell


@contextmanager
def counting(rows: Iterable[Any], meter: Meter) -> Iterator[None]:
    """Count the rows of a batch in a thread meanwhile, which tells its total; ends with the batch."""
    ended = threading.Event()

    def count() -> None:
        total = 0
        try:
            for _ in rows:
                total += 1
                if ended.is_set():
                    return
        except Exception:
            return  # what cannot be read is told where it is asked about
        meter.total = total

    thread = threading.Thread(target=count, name="galago-counting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
