"""The default bound on the memory of keys and values."""

from typing import TYPE_CHECKING

from galago.errors import OutOfMemory, size_of
from galago.system.device import available_memory

if TYPE_CHECKING:
    from galago.engine.limits import Limits
    from galago.engine.step import StepModel

FREE_DIVISOR = 4
"""Keys and values have the free memory divided by this beside what the longest request may need."""
MAX_BYTES = 4 << 30
"""Of keys and values, unless the longest request may need more."""


def kv_share(longest: int, running: int, left: int) -> int:
    """Bytes for keys and values: a share of what is `left` beside the `longest` request, at most what all need."""
    return max(longest, min(longest + left // FREE_DIVISOR, longest * running, MAX_BYTES))


def kv_bytes_of(model: "StepModel", limits: "Limits") -> int:
    """The bytes that the limits of a loaded model allow. Raises OutOfMemory where the longest request has no room."""
    if limits.kv_bytes is not None:
        return limits.kv_bytes
    longest, free = model.context * model.kv_bytes, available_memory(model.device)
    if longest > free:
        raise OutOfMemory(
            f"{model.name} needs {size_of(longest)} for the keys and values of one request, and {size_of(free)} of "
            "memory are left; free some, choose a smaller model or precision, or set Limits(kv_bytes=...)"
        )
    return kv_share(longest, limits.running, free - longest)
