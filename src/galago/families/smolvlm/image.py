"""Cutting an image into the frames that SmolVLM's vision tower sees."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from galago.families.smolvlm.config import LONGEST, ImageConfig

Size = tuple[int, int]
"""width, height"""


@dataclass(frozen=True)
class Frames:
    """The views of one image: its tiles row by row, then all of it. With tiling (0, 0) all of it alone."""

    pixels: np.ndarray
    """uint8 [n, tile, tile, 3]"""
    tiling: tuple[int, int]
    """rows, columns"""


def first_size(size: Size, edge: int) -> Size:
    """The size whose longest edge is `edge`, and whose other edge is even."""
    ratio = size[0] / size[1]
    found = (edge, _even(int(edge / ratio))) if ratio >= 1 else (_even(int(edge * ratio)), edge)
    width, height = (max(side, 1) for side in found)
    if max(width, height) <= LONGEST:
        return width, height
    ratio = width / height
    return (LONGEST, max(int(LONGEST / ratio), 1)) if ratio >= 1 else (max(int(LONGEST * ratio), 1), LONGEST)


def _even(side: int) -> int:
    return side + side % 2


def tiled_size(size: Size, tile: int) -> Size:
    """The size in whole tiles: of the longer edge first, the other after what that became."""
    ratio = size[0] / size[1]
    if ratio >= 1:
        width = math.ceil(size[0] / tile) * tile
        return width, math.ceil(int(width / ratio) / tile) * tile
    height = math.ceil(size[1] / tile) * tile
    return math.ceil(int(height * ratio) / tile) * tile, height


def tiling_of(size: Size, c: ImageConfig, split: bool) -> tuple[int, int]:
    """Rows and columns of the tiles of an image, (0, 0) where it is seen as a whole alone."""
    if not split:
        return 0, 0
    width, height = tiled_size(first_size(size, c.edge) if c.resize else size, c.tile)
    return (0, 0) if max(width, height) <= c.tile else (height // c.tile, width // c.tile)


def make_frames(image: Image.Image, c: ImageConfig, split: bool) -> Frames:
    """Resize an RGB image (Lanczos, as it was trained with) and cut it.

    First its longest edge becomes `c.edge`, also where that makes it larger. Then it becomes whole tiles, which
    does not keep its aspect, and all of it once more a single tile.
    """
    rows, columns = tiling = tiling_of(image.size, c, split)
    if c.resize:
        image = _resized(image, first_size(image.size, c.edge))
    if not split:
        return Frames(np.stack([np.asarray(_resized(image, (c.tile, c.tile)))]), tiling)
    image = _resized(image, tiled_size(image.size, c.tile))
    whole = np.asarray(_resized(image, (c.tile, c.tile)))
    pixels = np.asarray(image)
    tiles = [
        pixels[i * c.tile : (i + 1) * c.tile, j * c.tile : (j + 1) * c.tile]
        for i in range(rows)
        for j in range(columns)
    ]
    return Frames(np.stack([*tiles, whole]), tiling)


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)
