"""galago detect"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from galago.answers import collect_answer
from galago.arguments import make_request
from galago.cli import options
from galago.cli.drawing import drawing_paths, save_drawing
from galago.cli.inputs import split_words
from galago.cli.running import AnswerPrinter, ask_images, decode_image
from galago.request import Detect, Point, check_skill

if TYPE_CHECKING:
    from PIL import Image

    from galago.backends.backend import Run
    from galago.media.picture import Picture

EXAMPLES = """\b
Examples:
  galago detect photo.jpg person --draw found.png
  galago detect *.jpg "red car" --draw drawings/ --json"""


def object_command(kind: type[Detect | Point], help: str) -> Callable[..., None]:
    """The command of a skill that finds what an object is called; `help` is what it says of itself."""
    name = kind.__name__.lower()

    def command(
        words: options.ObjectArguments = None,
        more: options.ImagesOption = None,
        prompt: options.ObjectOption = None,
        draw: options.DrawOption = None,
        force: options.ForceOption = False,
        json: options.JsonOption = False,
        *,
        limits: options.ObjectOptions,
        loading: options.ModelOptions,
    ) -> None:
        images, object = split_words(words, more, prompt, f"galago {name} photo.jpg person")
        skill = kind(object, limits.max_objects)
        check_skill(skill)
        settings = options.collect_settings(limits)
        output = AnswerPrinter(images, json)
        drawings = drawing_paths(draw, images, object, (loading.model_name, limits.variant), force)

        def show(place: int, image: "Image.Image | Picture", run: "Run") -> None:
            from galago.media.draw import draw_findings

            answer = collect_answer(skill, run)
            [(what, found)] = answer.items()
            places = [tuple(one.values()) for one in found]
            output.show(images[place], answer, [format_places(object, places, image.size)])
            if path := drawings[place]:
                shown = {"boxes" if what == "objects" else what: places}
                save_drawing(draw_findings(decode_image(image), **shown, label=object), path)

        ask_images(images, loading, make_request(skill, None, settings, "batch"), show)

    command.__name__, command.__doc__ = name, help
    return options.expand_groups(command)


def format_places(name: str, found: Sequence[Sequence[float]], size: tuple[int, int]) -> str:
    """A line for each box or point: its pixels, then 0..1."""
    lines = [f"{len(found)} x {name}"]
    if found:
        heads = ("x_min", "y_min", "x_max", "y_max") if len(found[0]) == 4 else ("x", "y")
        lines.append("    " + "".join(f"{h:>7}" for h in heads) + "  px" + "".join(f"{h:>8}" for h in heads))
    for count, values in enumerate(found, start=1):
        pixels = "".join(f"{v * size[i % 2]:7.0f}" for i, v in enumerate(values))
        lines.append(f"{count:4}{pixels}    " + "".join(f"{v:8.4f}" for v in values))
    return "\n".join(lines)


detect = object_command(Detect, "Find objects: their bounding boxes, in pixels and relative to the image.")
