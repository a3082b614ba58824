"""Reading a video from a path, bytes or a file: frames spread over the whole of it, within bounds."""

import io
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from galago.errors import InvalidVideo, UnsupportedTask
from galago.media import animation, containers
from galago.media.clip import Clip
from galago.media.timeline import FrameSampling, Timeline, Unreadable, VideoLimits, chosen

log = logging.getLogger(__name__)

VideoSource = Path | str | bytes | BinaryIO
"""A path, the bytes of a file, or a file that is open for reading."""


def load_clip(source: VideoSource, sampling: FrameSampling | None = None, limits: VideoLimits | None = None) -> Clip:
    """Frames of a video, or of an animated GIF, WebP or PNG.

    The bytes decide what it is, not a name. Frames are turned and mirrored as the file says, alpha is
    composited over white. Of a file that ends early, or is damaged, what can be read is used, and a warning
    logged. Raises InvalidVideo with the reason: missing, empty, not a video, without pictures or frames, or
    past the limits; UnsupportedTask where PyAV is not installed and the file needs it.
    """
    sampling, limits = sampling or FrameSampling(), limits or VideoLimits()
    with _opened(source) as (file, name):
        try:
            return _read(file, name, sampling, limits)
        except (InvalidVideo, UnsupportedTask):
            raise
        except Unreadable as error:
            raise InvalidVideo(f"{name} {error}") from error
        except Exception as error:
            # Decoders raise whatever comes on damaged bytes.
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidVideo(f"{name} cannot be decoded: {reason}") from error


@contextmanager
def _opened(source: VideoSource) -> Iterator[tuple[BinaryIO, str]]:
    if isinstance(source, bytes):
        yield io.BytesIO(source), "the video"
    elif isinstance(source, str | Path):
        with ExitStack() as stack:
            try:
                file = stack.enter_context(Path(source).open("rb"))
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise InvalidVideo(f"cannot read {source}: {reason}") from error
            yield file, str(source)
    elif hasattr(source, "read") and hasattr(source, "seek"):
        yield source, "the video"
    else:
        raise InvalidVideo(f"a video is a path, bytes or an open file, not {type(source).__name__}")


def _read(file: BinaryIO, name: str, sampling: FrameSampling, limits: VideoLimits) -> Clip:
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise Unreadable("is empty")
    if size > limits.bytes:
        raise Unreadable(f"has {size / 2**20:.0f} MiB; {limits.bytes / 2**20:g} are allowed")
    file.seek(0)
    reader = animation if animation.is_one(file.read(12)) else containers
    timeline = reader.timeline(file, limits)
    _check(timeline, limits)
    places = chosen(timeline, sampling)
    shown = [(time, _fitted(image, sampling)) for time, image in reader.frames(file, timeline, places, limits)]
    if not shown:
        raise Unreadable("cannot be decoded: no frame of it is readable")
    if timeline.cut or len(shown) < len(places):
        log.warning("%s is cut off or damaged; what can be read of it is used", name)
    times, frames = zip(*shown, strict=True)
    return Clip(frames, times, timeline.duration)


def _check(timeline: Timeline, limits: VideoLimits) -> None:
    if not timeline.times:
        raise Unreadable("has no frames that can be read")
    if timeline.duration > limits.seconds:
        raise Unreadable(f"is {timeline.duration:.0f} s long; {limits.seconds:g} are allowed")


def _fitted(image: Image.Image, sampling: FrameSampling) -> Image.Image:
    most = sampling.longest_edge
    if max(image.size) > most:
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    return image
