"""Painting: backgrounds, things, and what a camera adds."""

from __future__ import annotations

import io
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from galago.lab.eval.scenes.phrases import one_of
from galago.lab.eval.scenes.ranges import MORE_COLORS, RGB
from galago.lab.eval.scenes.things import Placed, SceneObject, jitter, luma

_SKINS: tuple[RGB, ...] = ((250, 216, 188), (228, 184, 146), (172, 118, 80), (108, 72, 48))
_HAIR: tuple[RGB, ...] = ((34, 28, 26), (84, 52, 30), (150, 150, 152))


def paint_background(rng: np.random.Generator, base: RGB, size: tuple[int, int]) -> Image.Image:
    """The double-size canvas: one colour, in some scenes with a faint pattern of a second."""
    width, height = size
    double = (2 * width, 2 * height)
    canvas = Image.new("RGB", double, base)
    style = rng.random()
    if style < 0.4:
        return canvas
    step = int(rng.integers(8, 17)) * (1 if luma(base) < 128 else -1)
    second = jitter(rng, (base[0] + step, base[1] + step, base[2] + step), 2)
    if style < 0.6:  # gradient
        corners = Image.fromarray(rng.integers(0, 256, (2, 2), dtype=np.uint8))
        canvas.paste(second, (0, 0), corners.resize(double, Image.Resampling.BILINEAR))
        return canvas
    period = max(3, int(min(size) * rng.uniform(0.06, 0.2)))
    across = np.arange(width)[None, :] // period
    down = np.arange(height)[:, None] // period
    if style < 0.75:  # stripes
        rows, columns = (0, 1) if rng.random() < 0.5 else (1, 0)
        marked = (rows * down + columns * across) % 2 == 1
    elif style < 0.87:  # checker
        marked = (down + across) % 2 == 1
    else:  # speckle
        marked = rng.random((height, width), dtype=np.float32) < 0.15
    pattern = Image.fromarray(marked.astype(np.uint8) * 255)
    canvas.paste(second, (0, 0), pattern.resize(double, Image.Resampling.NEAREST))
    return canvas


def paint_thing(
    rng: np.random.Generator,
    canvas: Image.Image,
    one: Placed,
    thing: SceneObject,
    base: RGB,
    outlined: bool,
    *,
    turned: bool = False,
) -> None:
    """Paint one thing at its place; with `turned`, heads turn towards what they look at."""
    if thing.kind == "face":
        _paint_face(rng, canvas, one, thing, 0.09 if turned else 0.0)
        return
    color = _shade(jitter(rng, MORE_COLORS[thing.color], 12), thing.shade)
    if thing.texture:
        canvas.paste(_apply_texture(color, thing.texture, one.mask.size), (one.x, one.y), one.mask)
        return
    if thing.kind == "word" or not outlined or thing.name in ("ring", "crescent"):
        canvas.paste(color, (one.x, one.y), one.mask)
        return
    edge = (25, 25, 25) if luma(base) > 90 else (235, 235, 235)
    canvas.paste(edge, (one.x, one.y), one.mask)
    w, h = one.mask.size
    cx, cy, shrink = one.x + w / 2, one.y + h / 2, 0.86
    inner = [(cx + (px - cx) * shrink, cy + (py - cy) * shrink) for px, py in one.outline]
    ImageDraw.Draw(canvas).polygon(inner, fill=color)


def _shade(color: RGB, shade: str) -> RGB:
    if not shade:
        return color
    r, g, b = (round(v * 0.55) if shade == "dark" else round(0.5 * v + 128) for v in color)
    return r, g, min(b, 255)


def _apply_texture(color: RGB, texture: str, size: tuple[int, int]) -> Image.Image:
    """The colour with a pattern of a lighter or a darker one, which covers less than half."""
    mixed = _shade(color, "dark" if luma(color) > 120 else "light")
    w, h = size
    period = max(w, h) / 4.5
    down, across = np.mgrid[:h, :w] / period
    if texture == "striped":
        marked = (down % 1) < 0.42
    elif texture == "checkered":
        marked = (np.floor(2 * down) + np.floor(2 * across)) % 2 == 1
    else:
        marked = (down % 1 - 0.5) ** 2 + (across % 1 - 0.5) ** 2 < 0.1
    return Image.fromarray(np.where(marked[..., None], np.array(mixed), np.array(color)).astype(np.uint8))


def _paint_face(rng: np.random.Generator, canvas: Image.Image, one: Placed, thing: SceneObject, turn: float) -> None:
    """`turn`: how far the features move towards what is looked at, in widths of the head."""
    w, h = one.mask.size
    x, y = one.x, one.y
    skin = jitter(rng, one_of(rng, _SKINS), 6)
    dark = (30, 24, 22)
    draw = ImageDraw.Draw(canvas)
    head = (x, y, x + w - 1, y + h - 1)
    draw.ellipse(head, fill=skin)
    if rng.random() < 0.7:
        reach = float(rng.uniform(32, 50))  # half angle of the hair, degrees from straight up
        hair = jitter(rng, one_of(rng, _HAIR), 8)
        angles = np.radians(np.linspace(270 - reach, 270 + reach, 24))
        rim = np.stack([np.cos(angles) * w, np.sin(angles) * h], axis=1) / 2
        center = (x + (w - 1) / 2, y + (h - 1) / 2)
        draw.polygon([(center[0] + px, center[1] + py) for px, py in rim.tolist()], fill=hair)
    draw.ellipse(head, outline=dark, width=max(2, round(w * 0.03)))

    shift = (0.0, 0.0)
    if thing.gaze is not None and thing.eye is not None:
        dx, dy = thing.gaze[0] - thing.eye[0], thing.gaze[1] - thing.eye[1]
        full = min(1.0, math.hypot(dx, dy) / 0.25)
        px, py = dx * canvas.width, dy * canvas.height  # the direction as seen in the picture
        length = math.hypot(px, py)
        shift = (full * px / length, full * py / length)
    if turn:
        norm = math.hypot(*shift) or 1.0  # a look is told by its direction; near things are no less looked at
        shift = (shift[0] / norm, shift[1] / norm)
        x, y = round(x + shift[0] * turn * w), round(y + shift[1] * turn * w)
    rx, ry, pupil = 0.205 * w, 0.185 * w, 0.095 * w
    cy = y + 0.44 * h
    for side in (-1, 1):
        cx = x + w / 2 + side * 0.235 * w
        draw.ellipse(
            (cx - rx, cy - ry, cx + rx, cy + ry), fill=(255, 255, 255), outline=dark, width=max(1, round(w * 0.015))
        )
        ex, ey = cx + shift[0] * (rx - pupil), cy + shift[1] * (ry - pupil)
        draw.ellipse((ex - pupil, ey - pupil, ex + pupil, ey + pupil), fill=(12, 12, 16))
    mouth = (x + 0.3 * w, y + 0.66 * h, x + 0.7 * w, y + 0.86 * h)
    line = max(2, round(w * 0.045))
    if rng.random() < 0.6:
        draw.arc(mouth, 20, 160, fill=(150, 30, 40), width=line)
    else:
        level = mouth[3] - 0.06 * h
        draw.line((mouth[0], level, mouth[2], level), fill=(150, 30, 40), width=line)


def clutter(rng: np.random.Generator, canvas: Image.Image, base: RGB) -> None:
    """In some scenes, lines and blobs of nearly the background's colour."""
    if rng.random() < 0.7:
        return
    draw = ImageDraw.Draw(canvas)
    scale = min(canvas.size)
    for _ in range(int(rng.integers(5, 26))):
        step = int(rng.integers(7, 19)) * (1 if luma(base) < 128 else -1)
        tone = (base[0] + step, base[1] + step, base[2] + step)
        x, y = float(rng.uniform(0, canvas.width)), float(rng.uniform(0, canvas.height))
        w, h = (float(v) * scale for v in rng.uniform(0.02, 0.3, 2))
        if rng.random() < 0.5:
            draw.line((x, y, x + w, y + h - 0.15 * scale), fill=tone, width=max(2, scale // 60))
        else:
            draw.ellipse((x, y, x + w, y + h), fill=tone)


def compress(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """In some scenes, what JPEG does to a picture."""
    if rng.random() < 0.65:
        return image
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(rng.integers(25, 91)))
    with Image.open(stored) as read:
        return read.convert("RGB")


def camera_effects(rng: np.random.Generator, image: Image.Image, short: int) -> Image.Image:
    """What a camera would add: sometimes blur, noise, a different exposure."""
    if rng.random() < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.007 * short))))
    gain = float(rng.uniform(0.9, 1.08)) if rng.random() < 0.3 else 1.0
    sigma = float(rng.uniform(1, 12)) if rng.random() < 0.35 else 0.0
    if not sigma and gain == 1.0:
        return image
    if not sigma:
        return image.point(lambda v: min(255, round(v * gain)))
    return add_noise(rng, np.asarray(image, np.float32) * np.float32(gain), sigma)


def add_noise(rng: np.random.Generator, pixels: np.ndarray, sigma: float) -> Image.Image:
    """The image of float32 pixels with Gaussian noise of this deviation."""
    pixels = pixels + np.float32(sigma) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
