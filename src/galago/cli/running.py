"""What the commands share: opening images and videos, asking the model about each, and printing its answers."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from galago.cli.options import Frames, Loading
from galago.cli.streams import json_name, print_json, standard_input
from galago.errors import InvalidImage, InvalidRequest, InvalidVideo, UnsupportedTask

if TYPE_CHECKING:
    from PIL import Image

    from galago.media.clip import Clip
    from galago.media.source import FileSource
    from galago.model import Model

T = TypeVar("T")


class Output:
    """Standard output: answers as JSON, or as text after the source's name where there are several."""

    def __init__(self, sources: Sequence[str], as_json: bool, stream: bool = False) -> None:
        if as_json and stream:
            raise InvalidRequest("--json and --stream exclude each other")
        self.as_json = as_json
        self.named = len(sources) > 1

    def show(self, source: str | None, answer: Mapping[str, Any], plain: Iterable[str]) -> None:
        """Print one source's answer: the dict, or the pieces of `plain`, which may still be under way."""
        if self.as_json:
            named = {} if source is None else {"image": json_name(source)}
            print_json({**named, **answer})
            return
        if self.named:
            typer.echo(f"{source}: ", nl=False)
        # echo flushes, so a stream shows each piece.
        for piece in plain:
            typer.echo(piece, nl=False)
        typer.echo()


def each_image(
    sources: Sequence[str],
    loading: Loading,
    ask: Callable[["Model", "Image.Image", int], None],
    skill: str | None = None,
) -> None:
    """Open each image and ask about it; `ask` gets the model, the image and its place in `sources`.

    Where no model is named it is one that has the `skill`, one of catalog.SKILLS.

    An image that cannot be read does not keep the others: its error is printed, and the exit code at the
    end is 2. The model is loaded when the first image is open.
    """
    from galago.media.image import load_image

    loading.check()
    _each(sources, loading, lambda source, model: load_image(source), ask, skill)


def each_media(
    sources: Sequence[str], loading: Loading, frames: Frames, ask: Callable[["Model", "Image.Image | Clip", int], None]
) -> None:
    """The same of images and videos: of a video such frames as the model looks at, but for what `frames` says.

    Raises InvalidRequest where that is out of range. To a model that looks at images only a video is one that cannot
    be read. The model is loaded before the first video is decoded.
    """
    from galago.media.load import load_media
    from galago.media.timeline import FrameSampling

    loading.check()
    frames.of(FrameSampling())

    def opened(source: "FileSource", model: "Callable[[str | None], Model]") -> "Image.Image | Clip":
        def sampling() -> FrameSampling | None:
            usual = model("video").video_sampling
            return None if usual is None else frames.of(usual)

        return load_media(source, sampling)

    _each(sources, loading, opened, ask)


def _each(
    sources: Sequence[str],
    loading: Loading,
    opened: "Callable[[FileSource, Callable[[str | None], Model]], T]",
    ask: Callable[["Model", T, int], None],
    skill: str | None = None,
) -> None:
    failed = False
    loaded: list[Model] = []
    with ExitStack() as stack:

        def model(skill: str | None) -> "Model":
            # Who asks first says what it must be able to do, where none is named.
            if not loaded:
                loaded.append(stack.enter_context(loading.open(skill)))
            return loaded[0]

        for place, source in _counted(list(enumerate(sources))):
            try:
                shown = opened(open_source(source), model)
            except (InvalidImage, InvalidVideo, UnsupportedTask) as error:
                typer.echo(f"error: {error}" if source != "-" else f"error: standard input: {error}", err=True)
                failed = True
                continue
            ask(model(skill), shown, place)
    if failed:
        raise typer.Exit(2)


def open_source(source: str) -> "FileSource":
    """What is read for a source. Raises InvalidImage for a folder, and where there is no standard input."""
    if source == "-":
        return standard_input()
    if "://" not in source and os.path.isdir(source):  # which takes a data: URL for no name, and not for an error
        raise InvalidImage(f"{source} is a folder; name the files in it, as {Path(source) / '*.png'}")
    return source


def _counted(work: list[T]) -> Iterator[T]:
    """The same items; with a bar on standard error when there are many and nothing else shows progress."""
    if len(work) < 2 or sys.stdout.isatty() or not sys.stderr.isatty():
        yield from work
        return
    from rich.console import Console
    from rich.progress import Progress

    # Standard output goes to a file or pipe and must get there as it is.
    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        yield from bar.track(work, description="Images")
