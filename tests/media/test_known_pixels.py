"""Files written sample by sample show what their formats say, in every depth, order, palette and mask."""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written import bmp, gif, ico, packed, pfm, png, pnm, tga, tiff

from galago.errors import InvalidImage
from galago.media.image import load_image, read_header

H, W = 5, 7
RNG = np.random.default_rng(3)
CLEAR = [255, 255, 255]


def grey(bits: int) -> np.ndarray:
    """All of the range, its ends among them."""
    return np.linspace(0, 2**bits - 1, H * W).round().astype(np.uint32).reshape(H, W, 1)


def colour(bits: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 2**bits, (H, W, channels), dtype=np.uint32)


def shown(samples: np.ndarray, most: float) -> np.ndarray:
    """RGB of greys or colours whose white is `most`."""
    return np.broadcast_to(np.clip(samples / most, 0, 1) * 255, (*samples.shape[:2], 3))


def over_white(samples: np.ndarray, most: float) -> np.ndarray:
    alpha = samples[..., -1:] / most
    return shown(samples[..., :-1], most) * alpha + 255 * (1 - alpha)


def where(pixels: np.ndarray, mask: np.ndarray, value: Any = CLEAR) -> np.ndarray:
    pixels = pixels.copy()
    pixels[mask] = value
    return pixels


PALETTE = [(i * 2, 255 - i * 2, (i * 37) % 256) for i in range(128)]
INDICES = RNG.integers(0, 128, (H, W, 1), dtype=np.uint32)
COLOURS = np.array(PALETTE, float)[INDICES[..., 0]]

Case = tuple[bytes, np.ndarray]
CASES: dict[str, Case] = {}


def add(name: str, data: bytes, pixels: np.ndarray) -> None:
    CASES[name] = data, pixels


def key(*samples: int) -> bytes:
    return struct.pack(f">{len(samples)}H", *samples)


for bits in (1, 2, 4, 8, 16):
    g, most = grey(bits), 2**bits - 1
    for adam in (False, True):
        add(f"png grey {bits}{' interlaced' * adam}", png(g, bits, interlaced=adam), shown(g, most))
    for clear in (0, 1, most):
        mask = (g == clear)[..., 0]
        add(f"png grey {bits}, {clear} clear", png(g, bits, transparent=key(clear)), where(shown(g, most), mask))
    if bits < 16:
        few = (INDICES % 2**bits).astype(np.uint32)
        table, at = PALETTE[: 2**bits], few[..., 0]
        flat = [v for c in table for v in c]
        plain = np.array(table, float)[at]
        add(f"png palette {bits}", png(few, bits, palette=flat), plain)
        add(
            f"png palette {bits}, one clear", png(few, bits, palette=flat, transparent=b"\xff\0"), where(plain, at == 1)
        )
        half = np.where((at == 1)[..., None], (plain * 100 + 255 * 155) / 255, plain)
        add(f"png palette {bits}, one half clear", png(few, bits, palette=flat, transparent=b"\xff\x64"), half)
for bits in (8, 16):
    most = 2**bits - 1
    for channels in (2, 4):
        a = colour(bits, channels)
        add(f"png alpha {bits} x {channels}", png(a, bits), over_white(a, most))
    c = colour(bits)
    c[0, 0], c[0, 1] = (7, 8, 9), (7, 8, 10)
    add(f"png rgb {bits}", png(c, bits), shown(c, most))
    mask = (c == (7, 8, 9)).all(-1)
    add(f"png rgb {bits}, one clear", png(c, bits, transparent=key(7, 8, 9)), where(shown(c, most), mask))
    adam_too = png(c, bits, transparent=key(7, 8, 9), interlaced=True)
    add(f"png rgb {bits}, one clear, interlaced", adam_too, where(shown(c, most), mask))
    unused = png(c, bits, transparent=key(1, 2, 3))
    add(f"png rgb {bits}, an unused one clear", unused, shown(c, most))

for order in "<>":
    for how in ({}, {"deflated": True}, {"rows": 2}):
        form = f"{'II' if order == '<' else 'MM'} {' '.join(how)}"
        for bits in (1, 2, 4, 8, 16):
            g, most = grey(bits), 2**bits - 1
            add(f"tiff {form} grey {bits}", tiff(g, bits, order=order, **how), shown(g, most))
            if (order, bits) != (">", 16):  # which Pillow does not read
                white = tiff(g, bits, order=order, photometric=0, **how)
                add(f"tiff {form} grey {bits}, 0 is white", white, 255 - shown(g, most))
        for bits in (8, 16):
            most = 2**bits - 1
            c = colour(bits)
            for planar in (False, True):
                name = f"tiff {form} rgb {bits}{' planar' * planar}"
                add(name, tiff(c, bits, order=order, planar=planar, **how), shown(c, most))
            a = colour(bits, 4)
            add(f"tiff {form} rgba {bits}", tiff(a, bits, order=order, tags={338: [2]}, **how), over_white(a, most))
            if bits == 8:
                la = colour(bits, 2)
                told = tiff(la, bits, order=order, tags={338: [2]}, **how)
                add(f"tiff {form} grey with alpha", told, over_white(la, most))
                before = np.minimum(la, la[..., 1:])
                pre = tiff(before, bits, order=order, tags={338: [1]}, **how)
                add(
                    f"tiff {form} grey with alpha multiplied in",
                    pre,
                    shown(before[..., :1], 255) + 255 - before[..., 1:],
                )
        signed = np.linspace(0, 32767, H * W).round().astype(np.int32).reshape(H, W, 1)
        add(f"tiff {form} signed 16", tiff(signed, 16, order=order, **how), shown(signed, 32767))
        add(f"tiff {form} signed 8", tiff(signed // 256, 8, order=order, **how), shown(signed // 256, 127))
        add(f"tiff {form} signed 32", tiff(signed * 65536, 32, order=order, **how), shown(signed * 65536, 2**31 - 1))
        small = tiff(grey(16).astype(np.int32), 32, order=order, **how)
        add(f"tiff {form} signed 32 of 16", small, shown(grey(16), 65535))
        if order == "<":
            add(f"tiff {form} unsigned 32", tiff(grey(32), 32, order=order, **how), shown(grey(32), 2**32 - 1))
            add(f"tiff {form} unsigned 32 of 8", tiff(grey(8), 32, order=order, **how), shown(grey(8), 255))
        f = (grey(16) / 65535).astype(np.float32)
        add(f"tiff {form} float", tiff(f, 32, order=order, **how), shown(f, 1))
        add(f"tiff {form} float, 0 is white", tiff(f, 32, order=order, photometric=0, **how), 255 - shown(f, 1))
        over = (grey(16) / 65535 * 1.001 - 0.0005).astype(np.float32)
        add(f"tiff {form} float a little past", tiff(over, 32, order=order, **how), shown(over, 1))
        add(f"tiff {form} float of 8", tiff(grey(8).astype(np.float32), 32, order=order, **how), shown(grey(8), 255))

for most in (1, 7, 100, 255, 256, 1000, 4095, 65535):
    g = np.linspace(0, most, H * W).round().astype(np.uint32).reshape(H, W, 1)
    c = RNG.integers(0, most + 1, (H, W, 3), dtype=np.uint32)
    for magic, samples in (("P2", g), ("P5", g), ("P3", c), ("P6", c)):
        add(f"{magic} up to {most}", pnm(magic, samples, most, "# a comment\n"), shown(samples, most))
for magic in ("P1", "P4"):
    add(magic, pnm(magic, INDICES % 2), 255 - shown(INDICES % 2, 1))
for order in "<>":
    add(f"pfm {order}", pfm((grey(16) / 65535).astype(np.float32), order), shown(grey(16), 65535))

for bits in (1, 4, 8):
    few, table = INDICES % min(2**bits, 128), PALETTE[: 2**bits]
    add(f"bmp {bits}", bmp(few, bits, palette=table), np.array(table, float)[few[..., 0]])
c = colour(8)
for upside in (False, True):
    add(f"bmp 24{' from above' * upside}", bmp(c, 24, upside=upside), shown(c[..., ::-1], 255))
unused = np.dstack([c, colour(8, 1)])
nothing = np.dstack([c, np.zeros((H, W, 1), np.uint32)])
BGRA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
add("bmp 32, the fourth unused", bmp(unused, 32), shown(c[..., ::-1], 255))
add("bmp 32, alpha all 0, as in Windows' clipboard", bmp(nothing, 32, masks=BGRA), shown(c[..., ::-1], 255))
add("bmp 32 with alpha", bmp(unused, 32, masks=BGRA), over_white(unused[..., [2, 1, 0, 3]], 255))
sixteen = colour(16, 1)
for name, masks, parts in (("555", (), (5, 5, 5)), ("565", (0xF800, 0x7E0, 0x1F, 0), (5, 6, 5))):
    at, planes = 16 if len(masks) else 15, []
    for part in parts:
        at -= part
        planes.append((sixteen >> at & (2**part - 1)) / (2**part - 1) * 255)
    add(f"bmp 16, {name}", bmp(sixteen, 16, masks=masks), np.dstack(planes))

around = np.full((H + 3, W + 2, 3), 255.0)
around[2:-1, 1:-1] = COLOURS
one = int(INDICES[0, 0, 0])
clear = where(COLOURS, (one == INDICES)[..., 0])
for local in (False, True):
    add(f"gif{' with its own palette' * local}", gif(INDICES, PALETTE, local=local), COLOURS)
    add(f"gif{' with its own palette' * local}, one clear", gif(INDICES, PALETTE, local=local, transparent=one), clear)
add("gif smaller than its canvas", gif(INDICES, PALETTE, canvas=(W + 2, H + 3), at=(1, 2)), around)

for upside in (False, True):
    add(f"tga grey {upside}", tga(c[..., :1], upside=upside), shown(c[..., :1], 255))
    add(f"tga 24 {upside}", tga(c, upside=upside, footer=True), shown(c[..., ::-1], 255))
add("tga 32", tga(unused), over_white(unused[..., [2, 1, 0, 3]], 255))
add("tga 32, alpha all 0", tga(nothing), shown(c[..., ::-1], 255))
add("ico of a png", ico((W, H, png(c))), shown(c, 255))
add("ico, the largest", ico((2, 2, png(c[:2, :2])), (W, H, png(c))), shown(c, 255))
dib = bytearray(bmp(unused, 32)[14:])
dib[8:12] = struct.pack("<i", 2 * H)
shape = ico((W, H, bytes(dib) + bytes(4 * H)))
add("ico of a bitmap", shape, over_white(unused[..., [2, 1, 0, 3]], 255))


@pytest.mark.parametrize("name", CASES)
def test_it_shows_what_was_written(name: str) -> None:
    data, pixels = CASES[name]
    header = read_header(io.BytesIO(data), name)
    image = load_image(data)
    assert image.mode == "RGB" and image.size == header.size == pixels.shape[1::-1]
    off = np.abs(np.asarray(image).astype(float) - pixels).max()
    # Of 16 bits with alpha the lower ones are cut off, and then the colour is mixed with white.
    assert off <= (2 if "a 16" in name else 1.01), f"{np.asarray(image)[0, :3].tolist()}, not {pixels[0, :3].tolist()}"


NOT_TOLD: dict[str, Callable[[], bytes]] = {
    "negative": lambda: tiff(np.linspace(-9, 9, H * W).astype(np.int32).reshape(H, W, 1), 16),
    "negative float": lambda: tiff(np.linspace(-9, 9, H * W, dtype=np.float32).reshape(H, W, 1), 32),
    "bright float": lambda: pfm(np.linspace(0, 12.5, H * W, dtype=np.float32).reshape(H, W, 1)),
    "not a number": lambda: pfm(np.full((H, W, 1), np.nan, np.float32)),
    "infinite": lambda: pfm(np.full((H, W, 1), np.inf, np.float32)),
}


@pytest.mark.parametrize("name", NOT_TOLD)
def test_what_has_no_brightness_is_refused(name: str) -> None:
    with pytest.raises(InvalidImage, match=r"samples go from .* nothing says how bright they are; scale it to 8 bits"):
        load_image(NOT_TOLD[name]())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            tiff(np.ones((2, 2, 3), np.float32), 32),
            "decoded: its kind of pixels, such as floating point",
        ),
        (tiff(grey(16), 16, order=">", photometric=0), "its kind of pixels"),
        (gif(INDICES[:0], PALETTE, canvas=(0, 0)), "it has no pixels"),
        (png(c)[:40] + b"nonsense" * 20, "broken PNG"),
        (png(c)[:12] + b"IHDX" + png(c)[16:], "decoded"),
        (
            ico((W, H, bytes(dib[:4]) + struct.pack("<ii", 9000, 9000) + bytes(dib[12:]))),
            "larger than an icon's can be",
        ),
        (b"PF\n1 1\n1.0\n" + bytes(12), "not an image of a known format"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, said: str) -> None:
    with pytest.raises(InvalidImage, match=said) as told:
        load_image(data)
    assert said.startswith("not an") or "known format" not in str(told.value)


@pytest.mark.parametrize(
    ("image", "most"),
    [
        (Image.fromarray(grey(16)[..., 0].astype(np.int32)), 65535),
        (Image.fromarray(grey(8)[..., 0].astype(np.int32)), 255),
        (Image.fromarray((grey(16)[..., 0] / 65535).astype(np.float32)), 1),
        (Image.fromarray(grey(8)[..., 0].astype(np.uint8)).convert("F"), 255),
        (Image.fromarray(grey(8)[..., 0].astype(np.uint8)).convert("I"), 255),
        (Image.fromarray(grey(16)[..., 0].astype(np.uint16)), 65535),
    ],
)
def test_deep_pillow_images(image: Image.Image, most: float) -> None:
    bits = 16 if most in (1, 65535) else 8
    assert np.abs(np.asarray(load_image(image)) - shown(grey(bits), 2**bits - 1)).max() <= 1


def test_an_empty_canvas_is_white() -> None:
    assert (np.asarray(load_image(png(np.zeros((H, W, 4), np.uint32)))) == 255).all()


def test_the_writer_packs_as_the_formats_say() -> None:
    assert packed(np.array([[[1], [0], [1]]], np.uint32), 1) == b"\xa0"
    assert packed(np.array([[[1], [2]]], np.uint32), 4) == b"\x12"
    assert packed(np.array([[[258]]], np.uint32), 16) == b"\x01\x02"
