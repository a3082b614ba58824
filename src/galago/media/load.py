"""Reading what may be an image or a video: how it begins tells which."""

from collections.abc import Callable
from typing import BinaryIO

from PIL import Image

from galago.errors import UnsupportedTask
from galago.media import animation, containers, image
from galago.media.clip import Clip
from galago.media.source import FileSource, opened
from galago.media.timeline import FrameSampling
from galago.media.video import read_clip

KNOWN = f"an image ({', '.join(image.FORMATS)}) or a video (MP4, WebM, MKV, AVI, ...) of a known format"


ONE_BY_ONE = "`galago watch` asks it about one frame after another"
"""What to do where a model looks at images only."""


def load_media(source: FileSource, sampling: Callable[[], FrameSampling | None]) -> Image.Image | Clip:
    """An image as load_image reads it, or frames of a video as load_clip does; an animation is a video.

    `sampling` is called where there is a video, and says which frames are taken; None if videos are not looked at.
    Raises InvalidImage, InvalidVideo, and UnsupportedTask for a video that is not looked at.
    """
    with opened(source) as (file, name):
        if not is_video(file):
            return image.read_image(file, name or "the file", known=KNOWN)
        name = name or "the video"
        wanted = sampling()
        if wanted is None:
            raise UnsupportedTask(f"{name} is a video, and this model looks at images only; {ONE_BY_ONE}")
        return read_clip(file, name, wanted)


def is_video(file: BinaryIO) -> bool:
    """Whether it holds a video, or an image that moves; whatever its name, and whether or not it can be read."""
    file.seek(0)
    head = file.read(containers.HEAD)
    return animation.moves(file) if animation.is_one(head) else containers.is_one(head)
