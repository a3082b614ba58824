"""What one process measures."""

import re
from dataclasses import dataclass
from pathlib import Path

from galago.errors import InvalidRequest
from galago.request import Detail

MAX_PIXELS = 64_000_000
"""As many as an image may have anywhere else; see media/image.py, which would import more than a command line wants."""


@dataclass(frozen=True)
class Case:
    """Captions of `runs` noise images of width x height pixels, `tokens` new tokens each.

    `model` is what galago.load takes. What is None is for galago.load to choose.
    """

    model: str
    precision: str | None = None
    width: int = 378
    height: int = 378
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
        """Its size, and how it is looked at if that is not the usual way."""
        return f"{self.width}x{self.height}" + (" low" if self.detail == "low" else "")


def image_size(text: str) -> tuple[int, int]:
    """Width and height in pixels of 1024x768. Raises InvalidRequest."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip().lower())
    if not found or not all(map(int, found.groups())):
        raise InvalidRequest(f"--image must be WIDTHxHEIGHT in pixels, as 1024x768, not {text!r}", "image")
    width, height = map(int, found.groups())
    if width * height > MAX_PIXELS:
        raise InvalidRequest(f"--image {text} has too many pixels; {MAX_PIXELS / 1e6:g} million are allowed", "image")
    return width, height
