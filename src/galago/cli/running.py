"""What the commands share: opening images, asking the model about each, and printing its answers."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from galago.cli.options import Loading
from galago.errors import InvalidImage, InvalidRequest

if TYPE_CHECKING:
    from PIL import Image

    from galago.model import Model

T = TypeVar("T")


class Output:
    """Standard output: answers as JSON, or as text after the image's name where there are several images."""

    def __init__(self, sources: Sequence[str], as_json: bool, stream: bool = False) -> None:
        if as_json and stream:
            raise InvalidRequest("--json and --stream exclude each other")
        self.as_json = as_json
        self.named = len(sources) > 1

    def show(self, source: str | None, answer: Mapping[str, Any], plain: Iterable[str]) -> None:
        """Print one image's answer: the dict, or the pieces of `plain`, which may still be under way."""
        if self.as_json:
            named = {} if source is None else {"image": source}
            typer.echo(json.dumps({**named, **answer}, ensure_ascii=False))
            return
        if self.named:
            typer.echo(f"{source}: ", nl=False)
        # echo flushes, so a stream shows each piece.
        for piece in plain:
            typer.echo(piece, nl=False)
        typer.echo()


def each_image(sources: Sequence[str], loading: Loading, ask: Callable[["Model", "Image.Image", int], None]) -> None:
    """Open each image and ask about it; `ask` gets the model, the image and its place in `sources`.

    An image that cannot be read does not keep the others: its error is printed, and the exit code at the
    end is 2. The model is loaded when the first image is open.
    """
    from galago.media.image import load_image

    failed = False
    with ExitStack() as stack:
        model: Model | None = None
        for place, source in _counted(list(enumerate(sources))):
            try:
                image = load_image(sys.stdin.buffer.read() if source == "-" else source)
            except InvalidImage as error:
                typer.echo(f"error: {error}" if source != "-" else f"error: standard input: {error}", err=True)
                failed = True
                continue
            model = model or stack.enter_context(loading.open())
            ask(model, image, place)
    if failed:
        raise typer.Exit(2)


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
