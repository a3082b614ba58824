"""galago gaze"""

from typing import TYPE_CHECKING, Annotated, cast

import typer

from galago.answers import answer_of
from galago.arguments import request_of
from galago.cli.drawing import drawings_for, write
from galago.cli.options import Draw, Force, Images, Json, Loading, MoreImages, Seed, numbers, settings_of, takes_groups
from galago.cli.running import Output, decoded, each_image
from galago.cli.words import sources_of
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


@takes_groups
def gaze(
    given: Images = None,
    more: MoreImages = None,
    eye: Annotated[str | None, typer.Option(metavar="X,Y", help="Where the eyes are, in 0..1.")] = None,
    face: Annotated[
        str | None, typer.Option(metavar="X0,Y0,X1,Y1", help="The box of the face, in 0..1; needed by --accurate.")
    ] = None,
    accurate: Annotated[bool, typer.Option("--accurate", help="Ask from many points of the face; slower.")] = False,
    draw: Draw = None,
    force: Force = False,
    json: Json = False,
    seed: Seed = None,
    *,
    loading: Loading,
) -> None:
    """Find where a person looks."""
    images = sources_of(given, more, "galago gaze photo.jpg --eye 0.42,0.31")
    box = cast(Box, numbers(face, "--face", 4)) if face else None
    spot = cast(Spot, numbers(eye, "--eye", 2)) if eye else None
    skill = DetectGaze(spot, box, accurate)
    check_skill(skill)
    settings = settings_of(seed=seed)
    output, drawings = Output(images, json), drawings_for(draw, images, "gaze", (loading.named,), force)

    def show(place: int, image: "Image.Image | Picture", run: "Run") -> None:
        from galago.media.draw import draw as drawn

        answer = answer_of(skill, run)
        found = answer["gaze"]
        output.show(images[place], answer, [_told(found, image.size)])
        if path := drawings[place]:
            boxes = [box] if box else []
            eyes = [spot] if spot else [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in boxes]
            lines = [(start, (found["x"], found["y"])) for start in eyes if found]
            write(drawn(decoded(image), boxes=boxes, gazes=lines), path)

    each_image(images, loading, request_of(skill, None, settings, "batch"), show)


def _told(found: dict[str, float] | None, size: tuple[int, int]) -> str:
    if found is None:
        return "looks at nothing in the image"
    x, y = found["x"], found["y"]
    return f"looks at {x * size[0]:.0f}, {y * size[1]:.0f} px ({x:.4f}, {y:.4f})"
