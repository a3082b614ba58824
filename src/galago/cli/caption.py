"""galago caption"""

from typing import TYPE_CHECKING, Annotated

import typer

from galago.answers import collect_answer
from galago.arguments import make_request
from galago.cli import options
from galago.cli.inputs import collect_sources
from galago.cli.running import AnswerPrinter, ask_media
from galago.request import Caption, Length

if TYPE_CHECKING:
    from PIL import Image

    from galago.backends.backend import Run
    from galago.media.clip import Clip
    from galago.media.picture import Picture

EXAMPLES = """\b
Examples:
  galago caption photo.jpg
  galago caption *.png --length short --json > captions.jsonl
  cat photo.jpg | galago caption - --stream
  galago caption clip.mp4 --model smolvlm2 --fps 2"""


@options.expand_groups
def caption(
    media: options.MediaArgument = None,
    more: options.MediaOption = None,
    length: Annotated[Length, typer.Option(help="How much to say.")] = "normal",
    stream: options.StreamOption = False,
    json: options.JsonOption = False,
    *,
    frames: options.FrameOptions,
    text: options.TextOptions,
    loading: options.ModelOptions,
) -> None:
    """Describe images and videos."""
    sources = collect_sources(media, more, "galago caption photo.jpg", "IMAGE or VIDEO")
    settings = options.collect_settings(text)
    skill = Caption(length)
    output = AnswerPrinter(sources, json, stream)
    # A text that is watched while it is made goes before others.
    template = make_request(skill, None, settings, "interactive" if stream else "batch")

    def show(place: int, shown: "Image.Image | Picture | Clip", run: "Run") -> None:
        answer = collect_answer(skill, run, stream)
        output.show(sources[place], answer, answer["caption"] if stream else [answer["caption"].strip()])

    ask_media(sources, loading, frames, template, show)
