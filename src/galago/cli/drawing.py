"""--draw: where drawings go."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import typer

from galago.errors import InvalidRequest

if TYPE_CHECKING:
    from PIL import Image


def drawings_for(draw: Path | None, sources: Sequence[str]) -> list[Path | None]:
    """Where each image's drawing goes: `draw` itself, or under the image's name in the folder `draw`.

    Raises InvalidRequest for a single file with several images, or a file type that cannot be written.
    """
    if draw is None:
        return [None] * len(sources)
    if draw.is_dir() or not draw.suffix:
        return list(_names_in(draw, sources))
    if len(sources) > 1:
        raise InvalidRequest(f"--draw {draw} is one file for {len(sources)} images; give a folder, as --draw drawings/")
    from PIL import Image

    if Image.registered_extensions().get(draw.suffix.lower()) not in Image.SAVE:
        raise InvalidRequest(f"--draw cannot write {draw.suffix} files; use .png or .jpg")
    return [draw]


def _names_in(folder: Path, sources: Sequence[str]) -> Iterator[Path]:
    used: set[str] = set()
    for source in sources:
        path = source.split("?")[0] if "://" in source else source
        stem = name = "stdin" if source == "-" else PurePosixPath(path).stem or "image"
        while name in used:
            name = f"{stem}-{int(name[len(stem) + 1 :] or 1) + 1}"
        used.add(name)
        yield folder / f"{name}.png"


def write(image: "Image.Image", path: Path) -> None:
    """Save a drawing and say where. Raises InvalidRequest if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except OSError as error:
        raise InvalidRequest(f"cannot write {path}: {error.strerror or error}") from error
    typer.echo(f"wrote {path}", err=True)
