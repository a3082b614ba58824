"""One picture in every form that strangers send it in, and what the bundled model says of each: a sheet in Markdown.

    python benchmarks/picture_forms.py > benchmarks/results/picture-forms.md

The forms that no library is asked to write are written sample by sample (tests/support/written.py).
"""

import io
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from written import bmp, chunk, ico, pfm, png, pnm, tga, tiff  # noqa: E402

SCENE = np.asarray(Image.open(ROOT / "examples" / "scene.png").convert("RGB")).astype(np.uint32)
GREY = np.asarray(Image.open(ROOT / "examples" / "scene.png").convert("L")).astype(np.uint32)[..., None]
QUESTION, OBJECT = "What color is the circle?", "circle"
AWAY: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: p.swapaxes(0, 1)[::-1],
    7: lambda p: p.swapaxes(0, 1)[::-1, ::-1],
    8: lambda p: p.swapaxes(0, 1)[:, ::-1],
}
"""How a file's rows lie that shows the picture when it is turned as its EXIF orientation says."""
TURNED = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}


@dataclass(frozen=True)
class Form:
    name: str
    data: bytes
    grey: bool = False


def saved(pixels: np.ndarray, kind: str, mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))
    (image if mode == "RGB" else image.convert(mode)).save(out, kind, **{**_OPTIONS.get(kind, {}), **options})
    return out.getvalue()


def turned(kind: str, orientation: int) -> bytes:
    """A file of this kind that lies otherwise, and says so."""
    told = Image.Exif()
    told[274] = orientation
    return saved(AWAY[orientation](SCENE), kind, exif=told)


def forms() -> Iterator[Form]:
    """Colours, then greys; the plain picture leads each."""
    yield Form("PNG, plain", (ROOT / "examples" / "scene.png").read_bytes())
    for kind in TURNED:
        for orientation in AWAY:
            yield Form(f"{kind}, orientation {orientation}", turned(kind, orientation))
    clear, solid = (np.full_like(GREY, value) for value in (0, 255))
    wide = SCENE * 257
    yield from (
        Form("PNG, interlaced", png(SCENE, interlaced=True)),
        Form("PNG, 16 bits", png(wide, 16)),
        Form("PNG, 16 bits, a colour clear", png(wide, 16, transparent=b"\0\1\0\2\0\3")),
        Form("PNG, alpha", png(np.dstack([SCENE, solid]))),
        Form("PNG, alpha all 0", png(np.dstack([SCENE, clear]))),
        Form("PNG, 128 colours", saved(SCENE, "PNG", "P")),
        Form("PNG, 3 MB of text", png(SCENE, before=chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 << 20))))),
        Form("JPEG", saved(SCENE, "JPEG")),
        Form("JPEG, progressive", saved(SCENE, "JPEG", progressive=True)),
        Form("JPEG, CMYK", saved(SCENE, "JPEG", "CMYK")),
        Form("JPEG, without its last 2 bytes", saved(SCENE, "JPEG")[:-2]),
        Form("WEBP", saved(SCENE, "WEBP", lossless=False, quality=90)),
        Form("AVIF", saved(SCENE, "AVIF")),
        Form("GIF", saved(SCENE, "GIF")),
        Form("JPEG 2000", saved(SCENE, "JPEG2000")),
        Form("TGA", tga(SCENE[..., ::-1])),
        Form("BMP, 24 bits", bmp(SCENE[..., ::-1], 24)),
        Form(
            "BMP, 32 bits, alpha all 0",
            bmp(np.dstack([SCENE[..., ::-1], clear]), 32, masks=(0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
        ),
        Form("ICO of a PNG", ico((0, 0, png(SCENE)))),
        Form("PPM", pnm("P6", SCENE, 255)),
        Form("PPM up to 65535", pnm("P6", wide, 65535)),
        Form("PPM up to 1000", pnm("P6", (SCENE * 1000 + 127) // 255, 1000)),
        Form("PPM as text", pnm("P3", SCENE, 255)),
    )
    for order, name in (("<", "II"), (">", "MM")):
        for deflated in (False, True):
            said = f"TIFF {name}{', deflated' * deflated}"
            yield Form(f"{said}, 16 bits", tiff(wide, 16, order=order, deflated=deflated))
            yield Form(f"{said}, 16 bits in planes", tiff(wide, 16, order=order, planar=True, deflated=deflated))
    yield Form("grey PNG, plain", png(GREY), True)
    deep, signed, share = GREY * 257, (GREY * 32767 // 255).astype(np.int32), (GREY / 255).astype(np.float32)
    greys = {
        "grey PNG, 16 bits": png(deep, 16),
        "grey PNG, 16 bits, a grey clear": png(deep, 16, transparent=b"\1\2"),
        "grey PNG, 4 bits": png((GREY * 15 + 127) // 255, 4),
        "grey PNG, 4 bits, a grey clear": png((GREY * 15 + 127) // 255, 4, transparent=b"\0\1"),
        "PGM up to 65535": pnm("P5", deep, 65535),
        "PGM up to 1000": pnm("P5", (GREY * 1000 + 127) // 255, 1000),
        "PFM": pfm(share),
        "TIFF, 0 is white, 16 bits": tiff(65535 - deep, 16, photometric=0),
        "TIFF, signed 16 bits": tiff(signed, 16),
        "TIFF, signed 32 bits": tiff(signed * 65536, 32),
        "TIFF, unsigned 32 bits": tiff(GREY * 16843009, 32),
        "TIFF, floating point": tiff(share, 32),
        "TIFF MM, deflated, floating point": tiff(share, 32, order=">", deflated=True),
    }
    yield from (Form(name, data, True) for name, data in greys.items())


def heic() -> Form | None:
    """Where what writes it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return None
    out = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(SCENE.astype(np.uint8))).save(out, quality=95)
    return Form("HEIC", out.getvalue())


def main() -> None:
    import galago
    from galago.media.picture import open_picture

    made = [*forms()]
    if one := heic():
        made.insert(next(i for i, form in enumerate(made) if form.grey), one)
    with galago.load() as model:
        print(f"# The example scene in every form\n\nWhat `{model.name}` ({model.precision}) answers to *{QUESTION}*")
        print(f"and its boxes of *{OBJECT}*: left, top, right and bottom in pixels of the picture as it is shown. The")
        print("last column is how far a side lies from where it lies in the plain picture. Made by")
        print("`python benchmarks/picture_forms.py`.\n\n| Form | Answer | Boxes | Off by |\n|---|---|---|---|")
        plain = np.zeros((0, 4))
        for form in made:
            answer = model.query(form.data, QUESTION)["answer"].strip()
            found = model.detect(form.data, OBJECT)["objects"]
            boxes = np.array([[*box.values()] for box in found]).reshape(-1, 4) * (open_picture(form.data).size * 2)
            if "plain" in form.name:
                plain = boxes
            off = f"{np.abs(boxes - plain).max(initial=0):.1f}" if boxes.shape == plain.shape else "-"
            told = "; ".join(" ".join(f"{side:.0f}" for side in box) for box in boxes)
            print(f"| {form.name} | {answer} | {told} | {off} |")


if __name__ == "__main__":
    main()
