"""galago point"""

from typing import TYPE_CHECKING

from galago.cli.detect import table
from galago.cli.drawing import drawings_for, write
from galago.cli.options import (
    Draw,
    Force,
    ImagesAndObject,
    Json,
    Loading,
    MoreImages,
    Object,
    ObjectSettings,
    settings_of,
    takes_groups,
)
from galago.cli.running import Output, each_image
from galago.cli.words import sources_and_words
from galago.request import Point, check_skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.model import Model

EXAMPLES = """\b
Examples:
  galago point photo.jpg "door handle"
  galago point photo.jpg face --max-objects 3 --draw points.png"""


@takes_groups
def point(
    words: ImagesAndObject = None,
    more: MoreImages = None,
    prompt: Object = None,
    draw: Draw = None,
    force: Force = False,
    json: Json = False,
    *,
    limits: ObjectSettings,
    loading: Loading,
) -> None:
    """Point at objects: a place in each, in pixels and relative to the image."""
    images, object = sources_and_words(words, more, prompt, "galago point photo.jpg person")
    check_skill(Point(object, limits.max_objects))
    settings = settings_of(limits)
    output = Output(images, json)
    drawings = drawings_for(draw, images, object, (loading.named, limits.variant), force)

    def ask(model: "Model", image: "Image.Image", place: int) -> None:
        from galago.media.draw import draw as drawn

        answer = model.point(image, object, settings)
        points = [(p["x"], p["y"]) for p in answer["points"]]
        output.show(images[place], answer, [table(object, points, image.size)])
        if path := drawings[place]:
            write(drawn(image, points=points, label=object), path)

    each_image(images, loading, ask, "objects")
