"""What requests of the priority `batch` leave to interactive ones: places, memory and time.

Places: as many interactive requests run as may, whoever else does; those of a batch fill what is left of that number.
They wait in the queue, and are refused, apart from each other too.

Memory: those of a batch together set aside all but a quarter of that for keys and values; one alone may have as much as
anybody.

Time: while an interactive request runs, those of a batch pause, their keys and values kept, but for a piece of work now
and then (on an image, or a pass of their own): after nine times as long as the last one took. So an interactive request
waits for the piece that it finds under way, and beyond that takes a ninth longer at the most; and a batch goes on, at a
tenth of its speed, however many interactive requests there are. The pause lasts a moment longer than these, so that who
asks one thing after the other finds no piece under way. Where one of them waits for memory, both take turns, since
whatever ends makes room.
"""

from collections.abc import Iterable

from galago.engine.encoded_image import EncodedImage
from galago.engine.limits import Limits
from galago.engine.sequence import Sequence
from galago.engine.step import CHUNK, End, Prefix, Start, Step, StepModel
from galago.errors import InvalidRequest
from galago.request import Priority

MEMORY_DIVISOR = 4
"""Of the memory for keys and values, that divided by this is left to interactive requests."""
PAUSE = 9
"""How many times as long as their last piece of work those of a batch pause."""
GRACE_S = 0.05
"""For so long after the last interactive request the next is expected, from a client that asks one after the other."""


def of_priority(running: Iterable[Sequence], priority: Priority) -> list[Sequence]:
    return [s for s in running if s.job.priority == priority]


def has_place(priority: Priority, running: list[Sequence], limits: Limits) -> bool:
    """Whether one more of this priority may run."""
    others = running if priority == "batch" else of_priority(running, "interactive")
    return len(others) < limits.running


def has_memory(priority: Priority, size: int, running: list[Sequence], kv_bytes: int) -> bool:
    """Whether one more of this priority, which needs so many bytes, fits into `kv_bytes`."""
    if running and size + reserved_bytes(running) > kv_bytes:
        return False
    batch = of_priority(running, "batch") if priority == "batch" else []
    return not batch or size + reserved_bytes(batch) <= kv_bytes - kv_bytes // MEMORY_DIVISOR


def bytes_needed(first: Step | End, model: StepModel, kv_bytes: int) -> tuple[int, int]:
    """Bytes that a sequence's own keys and values, and the prefix that it may have to encode, take at the most.

    Raises InvalidRequest if that is more than `kv_bytes`.
    """
    if not isinstance(first, Start):
        raise TypeError("a skill begins with a Start")
    ahead = first.prefix.positions if isinstance(first.prefix, Prefix) else 0
    # They come by chunks, but no cache holds more than its model's context.
    own = min(first.positions + CHUNK, max(model.context - ahead, 0))
    if isinstance(first.prefix, Prefix | EncodedImage) and not model.shares_prefixes:
        own += first.prefix.positions
    own *= model.kv_bytes
    prefix = ahead * model.kv_bytes
    if own + prefix > kv_bytes:
        raise InvalidRequest(
            f"the request may need {own + prefix:,} bytes of keys and values, of {kv_bytes:,} "
            "that there may be; ask for fewer tokens",
            "max_tokens",
        )
    return own, prefix


def reserved_bytes(running: Iterable[Sequence]) -> int:
    """Bytes set aside for keys and values of running requests; requests on one image share its prefix."""
    prefixes = {s.prefix_key or id(s): s.prefix_bytes for s in running}
    return sum(s.own_bytes for s in running) + sum(prefixes.values())


class BatchPause:
    """When requests of a batch compute beside and after interactive ones. Times are by time.perf_counter."""

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.grace_s = grace_s
        self._next_piece_at = self._grace_end = 0.0

    def until(self, now: float, beside: bool) -> float:
        """When those of a batch may compute, if interactive requests run `beside` them now, or do not."""
        if beside:
            self._grace_end = now + self.grace_s
            return self._next_piece_at
        return min(self._next_piece_at, self._grace_end)

    def count(self, begin: float, end: float) -> None:
        """Note when the last piece of a batch was computed."""
        self._next_piece_at = end + PAUSE * (end - begin)
