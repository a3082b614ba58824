"""Cutting an image into the crops that SmolVLM's vision tower sees."""

import math

import numpy as np
from PIL import Image

from galago.engine.step import Crops
from galago.families.smolvlm.config import LONGEST, ImageConfig

WidthHeight = tuple[int, int]
"""width, height"""


def first_size(size: WidthHeight, edge: int) -> WidthHeight:
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


def tiled_size(size: WidthHeight, tile: int) -> WidthHeight:
    """The size in whole tiles: of the longer edge first, the other after what that became."""
    ratio = size[0] / size[1]
    if ratio >= 1:
        width = math.ceil(size[0] / tile) * tile
        return width, math.ceil(int(width / ratio) / tile) * tile
    height = math.ceil(size[1] / tile) * tile
    return math.ceil(int(height * ratio) / tile) * tile, height


def tiling_of(size: WidthHeight, c: ImageConfig, split: bool) -> tuple[int, int]:
    """Rows and columns of the tiles of an image, (0, 0) where it is seen as a whole alone."""
    if not split:
        return 0, 0
    width, height = tiled_size(first_size(size, c.edge) if c.resize else size, c.tile)
    return (0, 0) if max(width, height) <= c.tile else (height // c.tile, width // c.tile)


def make_crops(image: Image.Image, c: ImageConfig, split: bool) -> Crops:
    """Resize an RGB image (Lanczos, as it was trained with) and cut it: the tiles row by row, then the whole image.

    First its longest edge becomes `c.edge`, also where that makes it larger. Then it becomes whole tiles, which
    does not keep its aspect, and all of it once more a single tile. With tiling (0, 0) there is that one alone.
    """
    rows, columns = tiling = tiling_of(image.size, c, split)
    if c.resize:
        image = _resized(image, first_size(image.size, c.edge))
    if not split:
        return Crops(np.stack([np.asarray(_resized(image, (c.tile, c.tile)))]), tiling)
    image = _resized(image, tiled_size(image.size, c.tile))
    whole = np.asarray(_resized(image, (c.tile, c.tile)))
    pixels = np.asarray(image)
    tiles = [
        pixels[i * c.tile : (i + 1) * c.tile, j * c.tile : (j + 1) * c.tile]
        for i in range(rows)
        for j in range(columns)
    ]
    return Crops(np.stack([*tiles, whole]), tiling)


def _resized(image: Image.Image, size: WidthHeight) -> Image.Image:
    return image.resize(size, Image.Resampling.LANCZOS)
