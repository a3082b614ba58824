"""galago detect"""

from collections.abc import Callable, Sequence
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
from galago.request import Detect, Point, check_skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.backends.backend import Run
    from galago.media.picture import Picture

EXAMPLES = """\b
Examples:
  galago detect photo.jpg person --draw found.png
  galago detect *.jpg "red car" --draw drawings/ --json"""


def finding(kind: type[Detect | Point], help: str) -> Callable[..., None]:
    """The command of a skill that finds what an object is called; `help` is what it says of itself."""
    name = kind.__name__.lower()

    def command(
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
        images, object = sources_and_words(words, more, prompt, f"galago {name} photo.jpg person")
        skill = kind(object, limits.max_objects)
        check_skill(skill)
        settings = settings_of(limits)
        output = Output(images, json)
        drawings = drawings_for(draw, images, object, (loading.named, limits.variant), force)

        def show(place: int, image: "Image.Image | Picture", run: "Run") -> None:
            from galago.media.draw import draw as drawn

            answer = answer_of(skill, run)
            [(what, found)] = answer.items()
            places = [tuple(one.values()) for one in found]
            output.show(images[place], answer, [table(object, places, image.size)])
            if path := drawings[place]:
                shown = {"boxes" if what == "objects" else what: places}
                write(drawn(decoded(image), **shown, label=object), path)

        each_image(images, loading, request_of(skill, None, settings, "batch"), show)

    command.__name__, command.__doc__ = name, help
    return takes_groups(command)


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


detect = finding(Detect, "Find objects: their bounding boxes, in pixels and relative to the image.")
