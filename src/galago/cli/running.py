"""What commands share: opening images and videos, asking the model about each, and printing the answers."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from galago.cli.options import FrameOptions, ModelOptions
from galago.cli.streams import print_json, standard_input
from galago.errors import InvalidImage, InvalidRequest, InvalidVideo, UnsupportedTask
from galago.system.files import json_path
from galago.system.progress import progress_bar

if TYPE_CHECKING:
    from PIL import Image

    from galago.backends.backend import Run
    from galago.media.clip import Clip
    from galago.media.picture import Picture
    from galago.media.source import FileSource
    from galago.model import Model
    from galago.request import Request


class AnswerPrinter:
    """Standard output: answers as JSON, or as text after the source's name where there are several."""

    def __init__(self, sources: Sequence[str], as_json: bool, stream: bool = False) -> None:
        if as_json and stream:
            raise InvalidRequest("--json and --stream exclude each other")
        self.as_json = as_json
        self.named = len(sources) > 1

    def show(self, source: str | None, answer: Mapping[str, Any], plain: Iterable[str]) -> None:
        """Print one source's answer: the dict, or the pieces of `plain`, which may still be under way."""
        if self.as_json:
            named = {} if source is None else {"image": json_path(source)}
            print_json({**named, **answer})
            return
        pieces = iter(plain)
        first = next(pieces, "")  # before anything is printed, since it may be an error instead
        if self.named:
            typer.echo(f"{source}: ", nl=False)
        # echo flushes, so a stream shows each piece.
        for piece in chain([first], pieces):
            typer.echo(piece, nl=False)
        typer.echo()


def ask_images(
    sources: Sequence[str],
    loading: ModelOptions,
    template: "Request",
    show: "Callable[[int, Image.Image | Picture, Run], None]",
) -> None:
    """Submit the same request for each image, many at a time, and call show(place, image, run) in their order.

    Where no model is named it is one that has the skills of objects.
    An image that cannot be read does not keep the others: its error is printed, and the exit code at the
    end is 2. The model is loaded when the first image is open.
    """
    from galago.media.load import open_image

    loading.check()
    _ask_each(sources, loading, lambda source, get_model: open_image(source), template, show, "objects")


def ask_media(
    sources: Sequence[str],
    loading: ModelOptions,
    frames: FrameOptions,
    template: "Request",
    show: "Callable[[int, Image.Image | Picture | Clip, Run], None]",
) -> None:
    """Like ask_images, for images and videos; of a video the model sees the frames it samples, or those of `frames`.

    Raises InvalidRequest where that is out of range. To a model that looks at images only a video is one that cannot
    be read. The model is loaded before the first video is decoded.
    """
    from galago.media.load import open_media
    from galago.media.timeline import FrameSampling

    loading.check()
    frames.override(FrameSampling())

    def open_one(source: "FileSource", get_model: "Callable[[str | None], Model]") -> "Image.Image | Picture | Clip":
        def sampling() -> FrameSampling | None:
            usual = get_model("video").video_sampling
            return None if usual is None else frames.override(usual)

        try:
            return open_media(source, sampling)
        except UnsupportedTask as error:
            raise InvalidVideo(str(error)) from error

    _ask_each(sources, loading, open_one, template, show)


def _ask_each(
    sources: Sequence[str],
    loading: ModelOptions,
    open_one: "Callable[[FileSource, Callable[[str | None], Model]], Any]",
    template: "Request",
    show: "Callable[[int, Any, Run], None]",
    needs: str | None = None,
) -> None:
    from galago.batch.each import each

    failed = False
    loaded: list[Model] = []
    with ExitStack() as stack:

        def get_model(needs: str | None) -> "Model":
            # Who asks first says what it must be able to do, where none is named.
            if not loaded:
                loaded.append(stack.enter_context(loading.open(needs)))
            return loaded[0]

        def request(place: int) -> "Request":
            return replace(template, image=open_one(open_source(sources[place]), get_model))

        def submit(request: "Request") -> "Run":
            return get_model(needs).submit(request)

        def finish(place: int, request: "Request", run: "Run") -> None:
            show(place, request.image, run)

        # Nobody sees it, or the answers show how far it is.
        hidden = len(sources) < 2 or sys.stdout.isatty() or not sys.stderr.isatty()
        with nullcontext() if hidden else progress_bar("Images") as tell:
            told = (lambda done: tell(done, len(sources))) if tell else (lambda done: None)
            results = each(range(len(sources)), request, submit, finish, progress=told)
            with closing(results):
                for source, error in zip(sources, results, strict=True):
                    if isinstance(error, InvalidImage | InvalidVideo):
                        typer.echo(f"error: {error}" if source != "-" else f"error: standard input: {error}", err=True)
                        failed = True
                    elif error is not None:
                        raise error
    if failed:
        raise typer.Exit(2)


def decode_image(image: "Image.Image | Picture") -> "Image.Image":
    """The decoded pixels of an image, to draw on."""
    from galago.media.picture import Picture

    return image.decode() if isinstance(image, Picture) else image


def open_source(source: str) -> "FileSource":
    """Standard input for -, any other source as it is. Raises InvalidImage for a folder or a closed input."""
    if source == "-":
        return standard_input()
    if "://" not in source and os.path.isdir(source):  # which takes a data: URL for no name, and not for an error
        raise InvalidImage(f"{source} is a folder; name the files in it, as {Path(source) / '*.png'}")
    return source
