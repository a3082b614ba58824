"""Bounds on the memory of decoded pictures and clips in the whole process."""

import os

from galago.media.room import Room
from galago.system.machine import usable_cores

MOST = 512 << 20
"""Bytes of each room, unless something else is set: one picture of 64 million pixels, or about eight photos."""
SHARE = 8
"""Where there is a budget of memory, a room has no more than this part of it."""

DECODING = Room(MOST, usable_cores())
"""For pictures, from their decoding until what a model looks at has been cut from them."""
CLIPS = Room(MOST)
"""For the frames of clips, which stay until their request ends. Apart from the other: who holds of this one waits for
an engine, which waits for that one."""


def set_decoding_limit(most: int) -> None:
    """Set the bytes of each of the two rooms."""
    DECODING.most = CLIPS.most = most


if hasattr(os, "register_at_fork"):  # not on Windows
    for _room in (DECODING, CLIPS):
        os.register_at_fork(after_in_child=_room.empty)
