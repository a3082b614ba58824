"""What is left of a video once it was read: some of its frames."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video in their order, RGB, upright; spread over the whole of it."""

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    """seconds from the start at which each frame is first shown"""
    duration: float
    """seconds of the whole video"""
