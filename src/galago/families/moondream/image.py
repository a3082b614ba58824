"""Cutting an image into the crops that Moondream's vision tower sees."""

import math

import numpy as np
from PIL import Image

from galago.engine.step import Crops
from galago.families.moondream.config import VisionConfig


def select_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns of tiles for an image of these sides less the outer margins (may be <= 0).

    The product can exceed max_crops for extreme aspect ratios: so does the reference.
    """
    if height <= window or width <= window:
        return 1, 1
    rows, cols = math.ceil(height / window), math.ceil(width / window)
    if rows * cols > max_crops:
        ratio = math.sqrt(max_crops / (rows * cols))
        return max(1, math.floor(rows * ratio)), max(1, math.floor(cols * ratio))
    rows = max(math.floor(math.sqrt(max_crops * height / width)), rows)
    cols = max(math.floor(math.sqrt(max_crops * width / height)), cols)
    if rows * cols > max_crops:
        if cols > rows:
            cols = math.floor(max_crops / rows)
        else:
            rows = math.floor(max_crops / cols)
    return max(1, rows), max(1, cols)


def tiling_of(height: int, width: int, c: VisionConfig) -> tuple[int, int]:
    """Rows and columns of tiles for an image of height x width pixels."""
    margins = 2 * c.overlap_margin * c.enc_patch_size
    return select_tiling(height - margins, width - margins, c.crop_size - margins, c.max_crops)


def crop_count(c: VisionConfig, width: int, height: int) -> int:
    """How many crops an image of this size is cut into."""
    rows, columns = tiling_of(height, width, c)
    return 1 if rows * columns == 1 else 1 + rows * columns


def make_crops(image: Image.Image, c: VisionConfig, tiled: bool = True) -> Crops:
    """Resize (Lanczos, aspect not kept) and cut: the global view first, then the tiles row by row.

    Alpha is dropped and EXIF ignored, as the reference does. Unless `tiled`, there is the global view alone. With
    tiling (1, 1) the only tile equals the global view, and stands for both.
    """
    if image.mode != "RGB":
        image = image.convert("RGB")
    rows, cols = tiling = tiling_of(image.height, image.width, c) if tiled else (1, 1)
    size = c.crop_size
    crops = [np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))]
    if tiling != (1, 1):
        margins = 2 * c.overlap_margin * c.enc_patch_size
        window = size - margins
        resized = image.resize((cols * window + margins, rows * window + margins), Image.Resampling.LANCZOS)
        pixels = np.asarray(resized)
        crops += [
            pixels[i * window : i * window + size, j * window : j * window + size]
            for i in range(rows)
            for j in range(cols)
        ]
    return Crops(np.stack(crops), tiling)
