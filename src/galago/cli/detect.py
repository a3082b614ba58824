"""galago detect"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from galago.answers import answer_of
from galago.arguments import request_of
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
from galago.request import Detect, check_skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.backend import Run
    from galago.media.picture import Picture

EXAMPLES = """\b
Examples:
  galago detect photo.jpg person --draw found.png
  galago detect *.jpg "red car" --draw drawings/ --json"""


@takes_groups
def detect(
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
    """Find objects: their bounding boxes, in pixels and relative to the image."""
    images, object = sources_and_words(words, more, prompt, "galago detect photo.jpg person")
    skill = Detect(object, limits.max_objects)
    check_skill(skill)
    settings = settings_of(limits)
    output = Output(images, json)
    drawings = drawings_for(draw, images, object, (loading.named, limits.variant), force)

    def show(place: int, image: "Image.Image | Picture", run: "Run") -> None:
        from galago.media.draw import draw as drawn

        answer = answer_of(skill, run)
        boxes = [(o["x_min"], o["y_min"], o["x_max"], o["y_max"]) for o in answer["objects"]]
        output.show(images[place], answer, [table(object, boxes, image.size)])
        if path := drawings[place]:
            write(drawn(decoded(image), boxes=boxes, label=object), path)

    each_image(images, loading, request_of(skill, None, settings, "batch"), show)


def table(name: str, found: Sequence[Sequence[float]], size: tuple[int, int]) -> str:
    """A line for each box or point: its pixels, then 0..1."""
    lines = [f"{len(found)} x {name}"]
    if found:
        heads = ("x_min", "y_min", "x_max", "y_max") if len(found[0]) == 4 else ("x", "y")
        lines.append("    " + "".join(f"{h:>7}" for h in heads) + "  px" + "".join(f"{h:>8}" for h in heads))
    for count, values in enumerate(found, start=1):
        pixels = "".join(f"{v * size[i % 2]:7.0f}" for i, v in enumerate(values))
        lines.append(f"{count:4}{pixels}    " + "".join(f"{v:8.4f}" for v in values))
    return "\n".join(lines)
