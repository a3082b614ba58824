"""The times of a video's frames, and choosing those that a model looks at."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from galago.errors import InvalidRequest

SKIP_S = 1.0
"""Of a long video so much is left out at both ends."""
MOST_FRAMES = 512
"""They are in memory together."""


@dataclass(frozen=True)
class FrameSampling:
    """Which frames are looked at: `fps` of each second, but `max_frames` of the whole at the most.

    None is larger than `longest_edge` pixels. Raises InvalidRequest for values out of range.
    """

    fps: float = 1.0
    max_frames: int = 64
    longest_edge: int = 1024

    def __post_init__(self) -> None:
        if not isinstance(self.fps, int | float) or not 0 < self.fps < math.inf:
            raise InvalidRequest("fps must be a number above 0", "fps")
        if not isinstance(self.max_frames, int) or not 1 <= self.max_frames <= MOST_FRAMES:
            raise InvalidRequest(f"max_frames must be a whole number in 1..{MOST_FRAMES}", "max_frames")
        if not isinstance(self.longest_edge, int) or self.longest_edge < 1:
            raise InvalidRequest("longest_edge must be a whole number of pixels >= 1", "longest_edge")


@dataclass(frozen=True)
class VideoLimits:
    """The largest video that is read: of the file, of what is shown, and of one frame."""

    bytes: int = 4 << 30
    seconds: float = 4 * 3600.0
    frames: int = 1_000_000
    pixels: int = 36_000_000


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each frame is first shown, ascending, and when the last one ends; seconds from the first."""

    times: Sequence[float]
    duration: float
    keys: Sequence[float] = ()
    """those of frames that decoding can begin at"""
    origin: int = 0
    """the time stamp that the file gives the first frame"""
    cut: bool = False
    """whether the file ends before the video does"""


class Unreadable(Exception):
    """Why a video cannot be read; the text goes on after its name."""


def choose_frames(timeline: Timeline, sampling: FrameSampling) -> list[int]:
    """Indices of the frames to look at, ascending, none twice.

    As SmolVLM2 samples (transformers, video_processing_smolvlm.py): evenly from the first frame to the last,
    those included, but without a second at both ends of a long video. That counts frames; where they do not
    come at an even rate, what is shown at the times that an even rate would give is taken.
    """
    count, duration = len(timeline.times), timeline.duration
    if count == 1 or duration <= 0:
        return [0]
    rate = round(count / duration, 6)  # 30 frames a second are not to be 29.9999999
    wanted = max(1, min(round(sampling.fps * duration), sampling.max_frames))
    first, last = 0, count - 1
    if duration - 2 * SKIP_S > sampling.max_frames * sampling.fps:
        first, last = int(SKIP_S * rate), min(int(count - SKIP_S * rate), count - 1)
        if first >= last:
            first, last = 0, count - 1
    even = np.linspace(first, last, wanted).astype(int)
    pace = timeline.times[-1] / (count - 1)
    # A little later, so that rounded time stamps count as even ones.
    slack = np.diff(timeline.times).min() / 2
    places = {bisect_right(timeline.times, place * pace + slack) - 1 for place in even.tolist()}
    return sorted(places)
