"""Contact sheets: several pictures on one, for models that look at a single image."""

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from galago.engine.decoding import DECODING
from galago.media.picture import Picture, open_picture

SIDE, GAP = 1512, 6
"""Pixels of a sheet's longer side, and between its pictures"""
PAPER, INK = (255, 255, 255), (0, 0, 0)


def contact_sheet(pictures: Sequence[Picture]) -> Picture:
    """The pictures on one sheet, in reading order and numbered from 1; its warning says so.

    They are decoded one by one, within the bound on what is decoded at once. Raises InvalidImage, naming the field of
    the picture that cannot be decoded.
    """
    columns, rows = grid(len(pictures), sum(p.width / p.height for p in pictures) / len(pictures))
    cell = (SIDE // max(columns, rows), SIDE // max(columns, rows))
    sheet = Image.new("RGB", (columns * cell[0], rows * cell[1]), PAPER)
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=max(14, cell[1] // 12))
    for i, picture in enumerate(pictures):
        row, column = divmod(i, columns)
        left, top = column * cell[0] + GAP, row * cell[1] + GAP
        with DECODING.hold(picture.needs):
            image = picture.decode()
            image.thumbnail((cell[0] - 2 * GAP, cell[1] - 2 * GAP))
            sheet.paste(image, (left, top))
        box = canvas.textbbox((left, top), f" {i + 1} ", font=font)
        canvas.rectangle(box, fill=PAPER)
        canvas.text((left, top), f" {i + 1} ", font=font, fill=INK)
    out = io.BytesIO()
    sheet.save(out, "PNG", compress_level=1)
    made = open_picture(out.getvalue())
    told = f"{len(pictures)} images were shown to the model as one sheet, numbered in reading order"
    made.warnings.extend([told, *(warning for picture in pictures for warning in picture.warnings)])
    return made


def grid(count: int, aspect: float) -> tuple[int, int]:
    """Columns and rows for so many pictures of this width to height, on a sheet that is about square."""
    columns = min(count, max(1, round(math.sqrt(count / aspect))))
    return columns, math.ceil(count / columns)
