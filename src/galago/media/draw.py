"""Drawing what was found on an image."""

from collections.abc import Iterable

from PIL import Image, ImageDraw, ImageFont

from galago.values import Box, Spot

COLOUR = (230, 30, 90)
PAPER = (255, 255, 255)


def draw_findings(
    image: Image.Image,
    *,
    boxes: Iterable[Box] = (),
    points: Iterable[Spot] = (),
    gazes: Iterable[tuple[Spot, Spot]] = (),
    label: str = "",
) -> Image.Image:
    """A copy of the image with boxes, points, and gazes (from the eye to where it looks) drawn on it.

    Coordinates are 0..1; what reaches past the image is drawn at its edge. `label` is written on each box
    and at each point. Lines and letters grow with the image.
    """
    image = image.convert("RGB")
    canvas = ImageDraw.Draw(image)
    line = max(2, round(min(image.size) / 200))
    font = ImageFont.load_default(size=max(11, 6 * line))

    def pixel(spot: Spot) -> tuple[float, float]:
        width, height = image.size
        return min(max(spot[0], 0.0), 1.0) * (width - 1), min(max(spot[1], 0.0), 1.0) * (height - 1)

    def dot(at: tuple[float, float]) -> None:
        canvas.circle(at, 3 * line, fill=COLOUR, outline=PAPER, width=max(1, line // 2))

    def write(at: tuple[float, float]) -> None:
        if not label:
            return
        left, top, right, bottom = canvas.textbbox((0, 0), label, font=font)
        # Above the place where there is room, and never past the right edge.
        x = max(0.0, min(at[0], image.width - right - 2 * line))
        y = at[1] - bottom - 2 * line if at[1] > bottom + 2 * line else at[1]
        canvas.rectangle((x + left, y + top - line, x + right + 2 * line, y + bottom + line), fill=COLOUR)
        canvas.text((x + line, y), label, font=font, fill=PAPER)

    for box in boxes:
        # In this order whatever the model says: Pillow refuses a box that is inside out.
        start, end = zip(*map(sorted, zip(pixel(box[:2]), pixel(box[2:]), strict=True)), strict=True)
        canvas.rectangle((*start, *end), outline=COLOUR, width=line)
        write(start)
    for spot in points:
        dot(pixel(spot))
        write((pixel(spot)[0] + 4 * line, pixel(spot)[1]))
    for eye, target in gazes:
        canvas.line((pixel(eye), pixel(target)), fill=COLOUR, width=line)
        dot(pixel(target))
    return image
