"""--draw: where drawings go."""

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import typer

from galago.errors import InvalidRequest
from galago.system.outputs import MARK, check_folder, check_outputs, is_given, may_replace, replace_file

if TYPE_CHECKING:
    from PIL import Image


def drawing_paths(
    draw: Path | None, sources: Sequence[str], label: str, others: Sequence[str | None] = (), force: bool = False
) -> list[Path | None]:
    """Where each image's drawing goes: `draw` itself, or under the image's name in the folder `draw`.

    Where that name is an image's own, or of a file that galago did not write, the label is added to it (a.circle.png).
    `others` are further files that the command reads. Raises InvalidRequest for a single file with several images, a
    file type that cannot be written, and as check_outputs does.
    """
    if draw is None:
        return [None] * len(sources)
    kept = [Path(source) for source in (*sources, *others) if source and "://" not in source and source != "-"]
    if os.path.isdir(draw) or not draw.suffix:
        chosen = list(_paths_in(draw, sources, label, kept, force))
    elif len(sources) > 1:
        raise InvalidRequest(f"--draw {draw} is one file for {len(sources)} images; give a folder, as --draw drawings/")
    else:
        from PIL import Image

        if Image.registered_extensions().get(draw.suffix.lower()) not in Image.SAVE:
            raise InvalidRequest(f"--draw cannot write {draw.suffix} files; use .png or .jpg")
        chosen = [draw]
    folder = chosen[0].parent
    if os.path.isdir(folder):
        check_outputs(chosen, kept, force)
    else:
        check_folder(folder)
    return list(chosen)


def _paths_in(folder: Path, sources: Sequence[str], label: str, kept: Sequence[Path], force: bool) -> Iterator[Path]:
    used: set[str] = set()
    added = re.sub(r"\W+", "-", label).strip("-")[:40] or "found"
    for source in sources:
        path = source.split("?")[0] if "://" in source else source
        stem = "stdin" if source == "-" else PurePosixPath(path).stem or "image"
        usual = folder / f"{stem}.png"
        if is_given(usual, kept) or not may_replace(usual, force):
            stem = f"{stem}.{added}"
        for name in chain([stem], (f"{stem}-{number}" for number in count(2))):
            # As a file system compares them that takes large and small letters as one.
            folded = unicodedata.normalize("NFC", name).casefold()
            if folded not in used and not is_given(folder / f"{name}.png", kept):
                break
        used.add(folded)
        yield folder / f"{name}.png"


def save_drawing(image: "Image.Image", path: Path) -> None:
    """Save a drawing and say where. Raises InvalidRequest if that cannot be done."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    kind = Image.registered_extensions()[path.suffix.lower()]
    about: dict[str, Any] = {}
    if kind == "PNG":
        about["pnginfo"] = PngInfo()
        about["pnginfo"].add_text("Software", MARK)
    elif kind == "JPEG":
        about["comment"] = MARK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror or error}") from error
    with replace_file(path) as file:
        image.save(file, format=kind, **about)
    typer.echo(f"wrote {path}", err=True)
