"""Frames of a video, in memory."""

from dataclasses import dataclass

from PIL import Image

from galago.errors import InvalidRequest
from galago.values import is_number

_LONGEST = 1e9
"""Seconds: some thirty years."""


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video in their order, RGB, upright; spread over the whole of it."""

    frames: tuple[Image.Image, ...]
    times: tuple[float, ...]
    """seconds from the start at which each frame is first shown"""
    duration: float
    """seconds of the whole video"""
    warnings: tuple[str, ...] = ()
    """what of it could not be read, a sentence each"""

    def __post_init__(self) -> None:
        """Raises InvalidRequest for what are no frames and times."""
        frames = isinstance(self.frames, list | tuple) and all(isinstance(f, Image.Image) for f in self.frames)
        if not frames:
            raise InvalidRequest("frames of a clip must be PIL images", "frames")
        times = isinstance(self.times, list | tuple) and all(map(_is_time, self.times))
        if not times or len(self.times) != len(self.frames):
            raise InvalidRequest("times of a clip must be seconds from its start, one for each frame", "times")
        if not _is_time(self.duration):
            raise InvalidRequest("the duration of a clip must be a number of seconds", "duration")


def _is_time(value: object) -> bool:
    return is_number(value) and abs(value) <= _LONGEST  # type: ignore[arg-type]
