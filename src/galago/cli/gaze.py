"""galago gaze"""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from galago.answers import collect_answer
from galago.arguments import make_request
from galago.cli import options
from galago.cli.drawing import drawing_paths, save_drawing
from galago.cli.inputs import collect_sources
from galago.cli.running import AnswerPrinter, ask_images, decode_image
from galago.request import DetectGaze, check_skill
from galago.values import Box, Spot

if TYPE_CHECKING:
    from PIL import Image

    from galago.backends.backend import Run
    from galago.media.picture import Picture

EXAMPLES = """\b
Examples:
  galago gaze photo.jpg --eye 0.42,0.31 --draw gaze.png
  galago gaze photo.jpg --face 0.35,0.2,0.5,0.4 --accurate"""


@options.expand_groups
def gaze(
    given: options.ImagesArgument = None,
    more: options.ImagesOption = None,
    eye: Annotated[str | None, typer.Option(metavar="X,Y", help="Where the eyes are, in 0..1.")] = None,
    face: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="The box of the face, in 0..1; needed by --accurate.")
    ] = None,
    accurate: Annotated[bool, typer.Option("--accurate", help="Ask from many points of the face; slower.")] = False,
    draw: options.DrawOption = None,
    force: options.ForceOption = False,
    json: options.JsonOption = False,
    seed: options.SeedOption = None,
    *,
    loading: options.ModelOptions,
) -> None:
    """Find where a person looks."""
    images = collect_sources(given, more, "galago gaze photo.jpg --eye 0.42,0.31")
    box = cast(Box, options.parse_numbers(face, "--face", 4)) if face else None
    spot = cast(Spot, options.parse_numbers(eye, "--eye", 2)) if eye else None
    skill = DetectGaze(spot, box, accurate)
    check_skill(skill)
    settings = options.collect_settings(seed=seed)
    output, drawings = AnswerPrinter(images, json), drawing_paths(draw, images, "gaze", (loading.model_name,), force)

    def show(place: int, image: "Image.Image | Picture", run: "Run") -> None:
        from galago.media.draw import draw_findings

        answer = collect_answer(skill, run)
        found = answer["gaze"]
        output.show(images[place], answer, [_format_gaze(found, image.size)])
        if path := drawings[place]:
            boxes = [box] if box else []
            eyes = [spot] if spot else [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
            lines = [(start, (found["x"], found["y"])) for start in eyes if found]
            save_drawing(draw_findings(decode_image(image), boxes=boxes, gazes=lines), path)

    ask_images(images, loading, make_request(skill, None, settings, "batch"), show)


def _format_gaze(found: dict[str, float] | None, size: tuple[int, int]) -> str:
    if found is None:
        return "looks at nothing in the image"
    x, y = found["x"], found["y"]
    return f"looks at {x * size[0]:.0f}, {y * size[1]:.0f} px ({x:.4f}, {y:.4f})"
