"""galago caption"""

from typing import TYPE_CHECKING, Annotated

import typer

from galago.cli.options import Images, Json, Loading, Stream, TextSettings, settings_of, takes_groups
from galago.cli.running import Output, each_image
from galago.request import Length

if TYPE_CHECKING:
    from PIL import Image

    from galago.model import Model

EXAMPLES = """\b
Examples:
  galago caption photo.jpg
  galago caption *.png --length short --json > captions.jsonl
  cat photo.jpg | galago caption - --stream"""


@takes_groups
def caption(
    images: Images,
    length: Annotated[Length, typer.Option(help="How much to say.")] = "normal",
    stream: Stream = False,
    json: Json = False,
    *,
    text: TextSettings,
    loading: Loading,
) -> None:
    """Describe images."""
    settings = settings_of(text)
    output = Output(images, json, stream)

    def ask(model: "Model", image: "Image.Image", place: int) -> None:
        answer = model.caption(image, length, stream, settings)
        output.show(images[place], answer, answer["caption"] if stream else [answer["caption"].strip()])

    each_image(images, loading, ask)
