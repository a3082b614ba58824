"""An image file that is decoded later: until then it takes no more memory than the file has."""

import io
import logging
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image

from galago.errors import InvalidImage
from galago.media.image import KNOWN, MAX_PIXELS, decode, is_plain, read_header, read_image

if TYPE_CHECKING:
    from hashlib import _Hash

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Picture:
    """What a model is to look at, as its file. Made by `open_picture`; its header was checked."""

    data: bytes
    size: tuple[int, int]
    """width, height in pixels, as it is shown"""
    needs: int
    """bytes that decoding it takes at the most"""
    max_pixels: int = MAX_PIXELS
    name: str = "the image"
    param: str | None = None
    """the field of a request that gave it, which errors name"""
    mirrored: bool = False
    """whether its sides are to be exchanged"""
    full_size: tuple[int, int] | None = None
    """its width and height in the file, where it is made smaller"""
    reading: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """held by who decodes it, so that others need not do the same"""
    known: "list[_Hash]" = field(default_factory=list, repr=False)
    """a digest of its pixels, once somebody has decoded it"""
    warnings: list[str] = field(default_factory=list, repr=False)
    """what of it could not be read, a sentence each, once somebody has decoded it"""

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    @property
    def is_plain(self) -> bool:
        """Whether its file can go to another decoder as it is."""
        return not self.mirrored and self.full_size is None and is_plain(self.data)

    def decode(self) -> Image.Image:
        """Decode the picture, as load_image does. Raises InvalidImage where the file is not what its header says."""
        try:
            decoded = decode(io.BytesIO(self.data), self.name, self.max_pixels, mirrored=self.mirrored)
            if decoded.image.size != (self.full_size or self.size):
                raise InvalidImage(f"{self.name} is not of the size that its header tells")
        except InvalidImage as error:
            error.param = self.param
            raise
        for warning in decoded.warnings:
            if warning not in self.warnings:
                log.warning(warning)
                self.warnings.append(warning)
        return decoded.image.resize(self.size, Image.Resampling.LANCZOS) if self.full_size else decoded.image

    def limit_side(self, most: int) -> "Picture":
        """The picture, with so many pixels on its longer side at the most."""
        longer = max(self.size)
        if longer <= most:
            return self
        size = (max(1, round(self.width * most / longer)), max(1, round(self.height * most / longer)))
        needs = self.needs + 4 * size[0] * size[1]
        return replace(self, size=size, full_size=self.full_size or self.size, needs=needs)

    def mirror(self) -> "Picture":
        """The picture with left and right exchanged."""
        more = 0 if self.mirrored else 4 * self.width * self.height
        return replace(
            self, mirrored=not self.mirrored, needs=self.needs + more, reading=threading.Lock(), known=list["_Hash"]()
        )


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, param: str | None = None) -> Picture:
    """A picture from the bytes of a file, of which only the header is read; raises as load_image does of that.

    What else is wrong with them, such as their ending early, shows when they are decoded.
    """
    header = read_header(io.BytesIO(data), "the image", max_pixels)
    return Picture(data, header.size, header.needs, max_pixels, param=param)


def read_picture(file: BinaryIO, name: str, known: str = KNOWN) -> Picture | Image.Image:
    """Like open_picture, from an open file, named in errors; the decoded image where that takes less memory."""
    header = read_header(file, name, known=known)
    if file.seek(0, io.SEEK_END) > header.needs:
        return read_image(file, name, known=known)
    file.seek(0)
    return Picture(file.read(), header.size, header.needs, name=name)
