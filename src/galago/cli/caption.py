"""galago caption"""

from typing import TYPE_CHECKING, Annotated

import typer

from galago.answers import answer_of
from galago.arguments import request_of
from galago.cli.options import Frames, Json, Loading, Media, MoreMedia, Stream, TextSettings, settings_of, takes_groups
from galago.cli.running import Output, each_media
from galago.cli.words import sources_of
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


@takes_groups
def caption(
    media: Media = None,
    more: MoreMedia = None,
    length: Annotated[Length, typer.Option(help="How much to say.")] = "normal",
    stream: Stream = False,
    json: Json = False,
    *,
    frames: Frames,
    text: TextSettings,
    loading: Loading,
) -> None:
    """Describe images and videos."""
    sources = sources_of(media, more, "galago caption photo.jpg", "IMAGE or VIDEO")
    settings = settings_of(text)
    skill = Caption(length)
    output = Output(sources, json, stream)
    # A text that is watched while it is made goes before others.
    about = request_of(skill, None, settings, "interactive" if stream else "batch")

    def show(place: int, shown: "Image.Image | Picture | Clip", run: "Run") -> None:
        answer = answer_of(skill, run, stream)
        output.show(sources[place], answer, answer["caption"] if stream else [answer["caption"].strip()])

    each_media(sources, loading, frames, about, show)
