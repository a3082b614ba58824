"""Reading a video: frames spread over the whole of it, within bounds."""

import io
import logging
from typing import BinaryIO

from PIL import Image

from galago.errors import InvalidVideo, UnsupportedTask
from galago.media import animation, containers
from galago.media.clip import Clip
from galago.media.source import FileSource, open_file
from galago.media.timeline import FrameSampling, Timeline, Unreadable, VideoLimits, choose_frames

log = logging.getLogger(__name__)


def load_clip(source: FileSource, sampling: FrameSampling | None = None, limits: VideoLimits | None = None) -> Clip:
    """Frames of a video, or of an animated GIF, WebP or PNG: of a path, a URL, bytes or an open file.

    The bytes decide what it is, not a name. Frames are turned and mirrored as the file says, alpha is
    composited over white. Of a file that ends early, or is damaged, what can be read is used, and a warning
    logged. Raises InvalidVideo with the reason: missing, empty, not a video, without pictures or frames, or
    past the limits; UnsupportedTask where PyAV is not installed and the file needs it.
    """
    with open_file(source, "video") as (file, name):
        return read_clip(file, name or "the video", sampling, limits)


def read_clip(
    file: BinaryIO, name: str, sampling: FrameSampling | None = None, limits: VideoLimits | None = None
) -> Clip:
    """Like load_clip, from an open file, which errors call by its name."""
    try:
        return _read(file, name, sampling or FrameSampling(), limits or VideoLimits())
    except (InvalidVideo, UnsupportedTask):
        raise
    except Unreadable as error:
        raise InvalidVideo(f"{name} {error}") from error
    except Exception as error:
        # Decoders raise whatever comes on damaged bytes.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidVideo(f"{name} cannot be decoded: {reason}") from error


def _read(file: BinaryIO, name: str, sampling: FrameSampling, limits: VideoLimits) -> Clip:
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise Unreadable("is empty")
    if size > limits.bytes:
        raise Unreadable(f"has {size / 2**20:.0f} MiB; {limits.bytes / 2**20:g} are allowed")
    file.seek(0)
    reader = animation if animation.is_animation_format(file.read(12)) else containers
    timeline = reader.read_timeline(file, limits)
    _check(timeline, limits)
    places = choose_frames(timeline, sampling)
    shown = [(time, _fit(image, sampling)) for time, image in reader.read_frames(file, timeline, places, limits)]
    if not shown:
        raise Unreadable("cannot be decoded: no frame of it is readable")
    warnings: tuple[str, ...] = ()
    if timeline.cut or len(shown) < len(places):
        warnings = (f"{name} is cut off or damaged; what can be read of it is used",)
        log.warning(warnings[0])
    times, frames = zip(*shown, strict=True)
    return Clip(frames, times, timeline.duration, warnings)


def _check(timeline: Timeline, limits: VideoLimits) -> None:
    if not timeline.times:
        raise Unreadable("has no frames that can be read")
    if timeline.duration > limits.seconds:
        raise Unreadable(f"is {timeline.duration:.0f} s long; {limits.seconds:g} are allowed")


def _fit(image: Image.Image, sampling: FrameSampling) -> Image.Image:
    most = sampling.longest_edge
    if max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image
