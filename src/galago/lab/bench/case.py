"""A benchmark case: what one child process measures."""

import re
from dataclasses import dataclass
from pathlib import Path

from galago.errors import InvalidRequest, quoted
from galago.request import Detail

MAX_PIXELS = 64_000_000
"""As many as an image may have anywhere else; see media/image.py, which would import more than a command line wants."""


@dataclass(frozen=True)
class BenchCase:
    """Captions of `runs` noise images of width x height pixels, `tokens` new tokens each.

    With `frames` they are clips of so many. `model` is what galago.load takes. What is None is for galago.load to
    choose.
    """

    model: str
    precision: str | None = None
    width: int = 378
    height: int = 378
    frames: int = 0
    tokens: int = 64
    runs: int = 3
    threads: int | None = None
    device: str | None = None
    detail: Detail = "high"

    @property
    def name(self) -> str:
        """The model without its folder, and the precision if one is asked for."""
        return f"{Path(self.model).name or self.model} {self.precision or ''}".strip()

    @property
    def image(self) -> str:
        """The size of its images, with the frames of clips, and the detail where it is low."""
        frames = f"{self.frames}x" if self.frames else ""
        return f"{frames}{self.width}x{self.height}" + (" low" if self.detail == "low" else "")


def parse_image_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of 1024x768. Raises InvalidRequest."""
    frames, *size = parse_clip_size(text)
    if frames:
        raise InvalidRequest(f"--image must be WIDTHxHEIGHT in pixels, as 1024x768, not {quoted(text)}", "image")
    return size[0], size[1]


def parse_clip_size(text: str) -> tuple[int, int, int]:
    """Frames (0 of a still image), width and height in pixels of 1024x768 or 8x512x512. Raises InvalidRequest."""
    found = re.fullmatch(r"(?:(\d{1,3})x)?(\d{1,6})x(\d{1,6})", text.strip().lower())
    if not found or not all(int(part) for part in found.groups() if part is not None):
        said = "WIDTHxHEIGHT in pixels, as 1024x768, or FRAMESxWIDTHxHEIGHT, as 8x512x512"
        raise InvalidRequest(f"--image must be {said}, not {quoted(text)}", "image")
    frames, width, height = (int(part or 0) for part in found.groups())
    if max(1, frames) * width * height > MAX_PIXELS:
        raise InvalidRequest(f"--image {text} has too many pixels; {MAX_PIXELS / 1e6:g} million are allowed", "image")
    return frames, width, height
