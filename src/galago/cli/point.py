"""galago point"""

from typing import TYPE_CHECKING

from galago.answers import answer_of
from galago.arguments import request_of
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
from galago.cli.running import Output, decoded, each_image
from galago.cli.words import sources_and_words
from galago.request import Point, check_skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.backend import Run
    from galago.media.picture import Picture

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
    skill = Point(object, limits.max_objects)
    check_skill(skill)
    settings = settings_of(limits)
    output = Output(images, json)
    drawings = drawings_for(draw, images, object, (loading.named, limits.variant), force)

    def show(place: int, image: "Image.Image | Picture", run: "Run") -> None:
        from galago.media.draw import draw as drawn

        answer = answer_of(skill, run)
        points = [(p["x"], p["y"]) for p in answer["points"]]
        output.show(images[place], answer, [table(object, points, image.size)])
        if path := drawings[place]:
            write(drawn(decoded(image), points=points, label=object), path)

    each_image(images, loading, request_of(skill, None, settings, "batch"), show)
