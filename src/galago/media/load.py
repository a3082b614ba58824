"""Reading files that may be images or videos: their first bytes tell which."""

from collections.abc import Callable
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image

from galago.errors import UnsupportedTask
from galago.media import animation, containers, image
from galago.media.clip import Clip
from galago.media.picture import Picture, read_picture
from galago.media.source import FileSource, open_file
from galago.media.timeline import FrameSampling
from galago.media.video import read_clip

Still = TypeVar("Still")
KNOWN = f"an image ({', '.join(image.FORMATS)}) or a video (MP4, WebM, MKV, AVI, ...) of a known format"


ONE_BY_ONE = "`galago watch` asks it about one frame after another"
"""What to do where a model looks at images only."""


def load_media(source: np.ndarray | FileSource, sampling: Callable[[], FrameSampling | None]) -> Image.Image | Clip:
    """An image as load_image reads it, or frames of a video as load_clip does; an animation is a video.

    `sampling` is called where there is a video, and says which frames are taken; None if videos are not looked at:
    then of an animation the first frame is taken. Raises InvalidImage, InvalidVideo, and UnsupportedTask for a video
    that is not looked at.
    """
    if isinstance(source, np.ndarray):
        return image.load_image(source)
    return _read_media(source, sampling, lambda file, name: image.read_image(file, name, known=KNOWN))


def open_media(source: FileSource, sampling: Callable[[], FrameSampling | None]) -> Image.Image | Picture | Clip:
    """Like load_media, but a still image is decoded only when a model looks at it; damage shows only then."""
    return _read_media(source, sampling, lambda file, name: read_picture(file, name, KNOWN))


def open_image(source: FileSource) -> Image.Image | Picture:
    """An image, or the first frame of an animation, that is decoded later too. Raises InvalidImage."""
    with open_file(source) as (file, name):
        return read_picture(file, name or "the image")


def _read_media(
    source: FileSource, sampling: Callable[[], FrameSampling | None], still: Callable[[BinaryIO, str], Still]
) -> Still | Clip:
    with open_file(source) as (file, name):
        file.seek(0)
        head = file.read(containers.HEAD)
        moving = animation.is_animation_format(head) and animation.is_animated(file)
        video = containers.is_video(head) and not animation.is_animation_format(head)
        if (moving or video) and (wanted := sampling()):
            return read_clip(file, name or "the video", wanted)
        if video:
            what = f"{name or 'the video'} is a video, and this model looks at images only"
            raise UnsupportedTask(f"{what}; {ONE_BY_ONE}")
        return still(file, name or "the file")
