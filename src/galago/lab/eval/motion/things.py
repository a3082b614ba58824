"""The types of drawn clips: moving objects, where they are in every frame, and what they do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galago.media.clip import Clip
from galago.values import Spot

FrameSpan = tuple[int, int]
"""First and last frame."""

DIRECTIONS: dict[str, tuple[int, int]] = {
    "right": (1, 0), "down right": (1, 1), "down": (0, 1), "down left": (-1, 1),
    "left": (-1, 0), "up left": (-1, -1), "up": (0, -1), "up right": (1, -1),
}  # fmt: skip
"""Signs of x and y, y down. A thing turns off its direction by less than TURN degrees."""
TURN = 6.0
SPEEDS: dict[str, tuple[float, float]] = {"slow": (0.03, 0.045), "fast": (0.09, 0.13)}
"""Shorter sides of the image per frame; the gap is what makes an answer plain."""
FRAMES = (4, 16)
SIDES = (64, 256)
"""Pixels."""
FRAME_SECONDS = 1.0
"""Between frames: SmolVLM2 samples one a second."""


@dataclass(frozen=True)
class MovingObject:
    """An object of a clip. No two of a clip share both colour and shape, and none ever hides another."""

    name: str
    """one of scenes' SHAPES"""
    color: str
    size: str
    """small, medium or large"""
    track: tuple[Spot, ...]
    """its centre in each frame, relative to the image, 0..1, origin top left; while it is outside also beyond"""
    seen: FrameSpan
    """the frames in which any of it is in the picture: all between them"""
    direction: str = ""
    """one of DIRECTIONS; '' stands still"""
    speed: str = ""
    moves: FrameSpan | None = None
    """from its last frame at rest to its first frame at rest again; None stands still"""

    @property
    def phrase(self) -> str:
        """What it is called without an article: 'red circle'."""
        return f"{self.color} {self.name}"


@dataclass(frozen=True, eq=False)
class DrawnClip:
    """A drawn clip and what is true of it."""

    clip: Clip
    things: tuple[MovingObject, ...]
    background: str
    """one of scenes' BACKGROUNDS"""
    story: str
    """what it was drawn to tell, see plans.STORIES"""
    ids: np.ndarray
    """uint8 [frames, H, W]: 0 background, i + 1 where things[i] is"""

    @property
    def frames(self) -> int:
        return len(self.clip.frames)

    def comes(self, thing: MovingObject) -> bool:
        """Whether a thing is not there at first."""
        return thing.seen[0] > 0

    def leaves(self, thing: MovingObject) -> bool:
        """Whether a thing is gone at last."""
        return thing.seen[1] < self.frames - 1
