"""Animated GIF, WebP and PNG as videos, through Pillow, which reads all three."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import BinaryIO

from PIL import Image

from galago.media.formats import format_of, open_as
from galago.media.image import orientation_of
from galago.media.samples import to_rgb
from galago.media.timeline import Timeline, Unreadable, VideoLimits

FORMATS = ("GIF", "WEBP", "PNG")
"""Those that can move."""
MAX_WORK = 4_000_000_000
"""Pixels of all frames together: each of them is decoded."""


def is_animation_format(head: bytes) -> bool:
    """Whether a file that begins with these bytes, 12 at least, is of one of the formats: a still image or not."""
    return head[:4] == b"GIF8" or head[:8] == b"\x89PNG\r\n\x1a\n" or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")


def is_animated(file: BinaryIO) -> bool:
    """Whether a file of one of the formats has more than one frame; not where it is too damaged to tell."""
    # Pillow's decoders raise whatever comes on damaged bytes.
    with suppress(Exception), _open(file) as image:
        return bool(image.is_animated)  # type: ignore[attr-defined]
    return False


def _open(file: BinaryIO) -> Image.Image:
    kind = format_of(file)
    if kind not in FORMATS:
        raise Unreadable(f"is not {' or '.join(FORMATS)}")
    return open_as(kind, file)


def read_timeline(file: BinaryIO, limits: VideoLimits) -> Timeline:
    """When each frame is shown. Raises Unreadable."""
    with _open(file) as image:
        pixels = image.width * image.height
        if pixels > limits.pixels:
            raise Unreadable(f"has {image.width} x {image.height} pixels; {limits.pixels / 1e6:g} million are allowed")
        times, now, cut = [], 0.0, False
        for place in count():
            try:
                image.seek(place)
                image.load()
            except EOFError:
                break
            except Exception:
                # Pillow's decoders raise whatever comes on damaged bytes.
                cut = True
                break
            if place == limits.frames or (place + 1) * pixels > MAX_WORK:
                raise Unreadable(f"has more than {place} frames of {image.width} x {image.height} pixels: too much")
            times.append(now / 1000)
            # Browsers show a frame so long that claims no time, or next to none.
            now += said if (said := image.info.get("duration") or 0) > 10 else 100
        if len(times) == 1 and not cut:
            raise Unreadable("is a still image, not a video")
        return Timeline(times, now / 1000, cut=cut)


def read_frames(
    file: BinaryIO, timeline: Timeline, places: Sequence[int], limits: VideoLimits
) -> Iterator[tuple[float, Image.Image]]:
    """The frames at these places of the timeline, each with its time."""
    with _open(file) as image:
        orientation = orientation_of(image, file)
        for place in places:
            image.seek(place)
            shown = to_rgb(image, orientation)
            # The file's own image becomes the next frame.
            yield timeline.times[place], shown.copy() if shown is image else shown
