"""Bounds on the memory of decoded pictures and clips in the whole process."""

import os

from galago.media.decode_budget import DecodeBudget
from galago.system.machine import usable_cores

MAX_DECODED_BYTES = 512 << 20
"""Of each budget, unless something else is set: one picture of 64 million pixels, or about eight photos."""
MEMORY_DIVISOR = 8
"""Where the models have a budget of memory, each of these has at most that divided by this."""

DECODING = DecodeBudget(MAX_DECODED_BYTES, usable_cores())
"""For pictures, from their decoding until what a model looks at has been cut from them."""
CLIPS = DecodeBudget(MAX_DECODED_BYTES)
"""For the frames of clips, which stay until their request ends. Apart from the other: who holds of this one waits for
an engine, which waits for that one."""


def set_decoding_limit(most: int) -> None:
    """Set the bytes of each of the two budgets."""
    DECODING.most = CLIPS.most = most


if hasattr(os, "register_at_fork"):  # not on Windows
    for _budget in (DECODING, CLIPS):
        os.register_at_fork(after_in_child=_budget.reset)
