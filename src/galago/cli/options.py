"""Options that several commands share, with their help texts."""

import inspect
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from galago.choices import check_device, check_precision, check_profile, check_threads
from galago.errors import InvalidRequest, quoted
from galago.fleet.default_model import model_from_environment
from galago.store.catalog import check_revision
from galago.store.hub import check_models

if TYPE_CHECKING:
    from galago.media.timeline import FrameSampling
    from galago.model import Model

Texts = list[str] | None
ImagesArgument = Annotated[
    Texts, typer.Argument(metavar="IMAGE", help="Paths or URLs; - reads standard input.", show_default=False)
]
ImagesOption = Annotated[
    Texts, typer.Option("--image", metavar="IMAGE", help="The same as IMAGE; may be given again.", show_default=False)
]
ObjectArguments = Annotated[
    Texts,
    typer.Argument(
        metavar="IMAGE|OBJECT",
        help="Paths or URLs, - for standard input; and last what to look for.",
        show_default=False,
    ),
]
ObjectOption = Annotated[
    str | None, typer.Option("--prompt", "--object", metavar="OBJECT", help="The same as OBJECT.", show_default=False)
]
MediaArgument = Annotated[
    Texts,
    typer.Argument(
        metavar="IMAGE|VIDEO", help="Paths or URLs of images or videos; - reads standard input.", show_default=False
    ),
]
MediaOption = Annotated[
    Texts,
    typer.Option(
        "--image",
        "--video",
        metavar="IMAGE|VIDEO",
        help="The same as IMAGE|VIDEO; may be given again.",
        show_default=False,
    ),
]
QuestionOption = Annotated[
    str | None, typer.Option("--prompt", metavar="QUESTION", help="The same as QUESTION.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")]
StreamOption = Annotated[bool, typer.Option("--stream", help="Print the text as it is made.")]
DrawOption = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Draw what was found: a picture to write, or a folder for several images."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace files that galago did not write; never an input.")]
VariantOption = Annotated[str | None, typer.Option(metavar="FILE", help="A LoRA variant to apply.")]
DetailOption = Annotated[
    str | None, typer.Option(metavar="low|high", help="low sees a large image as a whole only: quicker, and coarser.")
]
SeedOption = Annotated[int | None, typer.Option(help="Makes what is drawn at random repeat.")]

PrecisionOption = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16, int8 or int4; by default what the model's name or --profile says."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option(
        help="optimized: the quickest for the device, the default from 100 M parameters on. standard: float32."
    ),
]
RevisionOption = Annotated[
    str | None, typer.Option(help="Whose behaviour a local checkpoint has, as 2025-06-21, if it does not tell.")
]
ThreadsOption = Annotated[int | None, typer.Option(help="CPU threads that compute; by default all cores.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is to run."""

    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A name of `galago models`, or a folder or weights file; by default GALAGO_MODEL, or else the best "
            "that is installed and fits.",
        ),
    ] = None
    precision: PrecisionOption = None
    profile: ProfileOption = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None
    revision: RevisionOption = None
    threads: ThreadsOption = None

    def check(self) -> None:
        """Find what is wrong before PyTorch is imported, which takes seconds. Raises GalagoError."""
        check_precision(self.precision)
        check_profile(self.profile)
        check_device(self.device)
        check_threads(self.threads)
        check_revision(self.revision)
        check_models([] if self.model_name is None else [self.model_name])

    @property
    def model_name(self) -> str | None:
        """The model that was asked for, here or in the environment."""
        return self.model or model_from_environment()

    def open(self, skill: str | None = None) -> "Model":
        """Load the model that was asked for; or one that has this skill (of catalog.SKILLS), and tell which."""
        self.check()
        import galago

        return galago.load(**self.choose(skill))

    def choose(self, skill: str | None = None) -> dict[str, Any]:
        """The arguments of galago.load: the model that was asked for, or one that has this skill, and tell which."""
        return {**asdict(self), "model": self.model_name or self._choose_default(skill)}

    def _choose_default(self, skill: str | None) -> str:
        from galago.fleet.default_model import MEMORY_SHARE, choose_default_model
        from galago.system.device import available_memory, device_here

        choice = {"precision": self.precision, "profile": self.profile, "device": self.device}
        chosen = choose_default_model(int(MEMORY_SHARE * available_memory(device_here(self.device))), skill, choice)
        typer.echo(chosen.reason, err=True)
        return chosen.name


@dataclass(frozen=True)
class FrameOptions:
    """Which frames of a video are looked at."""

    fps: Annotated[
        float | None,
        typer.Option(help="Frames of each second of a video to look at; by default 1, or the model's own."),
    ] = None
    max_frames: Annotated[
        int | None,
        typer.Option(
            help="Look at so many of a video at the most, spread over the whole; by default 64, or the model's."
        ),
    ] = None

    def override(self, usual: "FrameSampling") -> "FrameSampling":
        """The usual sampling with the options that were given. Raises InvalidRequest for what is out of range."""
        return replace(usual, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class TextOptions:
    """How text is drawn."""

    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of text at most; by default the model's own limit.")
    ] = None
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token; higher is more varied.")] = 0.0
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that make up this probability.")] = 1.0
    min_p: Annotated[float, typer.Option(help="Leave out tokens less likely than this share of the likeliest.")] = 0.0
    seed: SeedOption = None
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; may be given again.")
    ] = None
    variant: VariantOption = None
    detail: DetailOption = None


@dataclass(frozen=True)
class ObjectOptions:
    """How objects are looked for."""

    max_objects: Annotated[int, typer.Option(help="Find so many at most.")] = 50
    variant: VariantOption = None
    detail: DetailOption = None


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Decorator: parameters that are dataclasses of options become one option for each of their fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            of_field = get_type_hints(groups[name], include_extras=True)
            members = [(f.name, of_field[f.name], f.default) for f in fields(groups[name])]
        else:
            members = [(name, hints[name], parameter.default)]
        flat += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=d, annotation=a) for n, a, d in members]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in flat}
    return run


def collect_settings(group: TextOptions | ObjectOptions | None = None, **more: Any) -> dict[str, Any]:
    """The settings that were given, checked before a model is loaded. Raises InvalidRequest."""
    from galago.arguments import make_request
    from galago.request import Caption

    given = {**(asdict(group) if group else {}), **more}
    settings = {name: value for name, value in given.items() if value is not None and value != []}
    make_request(Caption(), None, settings)
    variant = settings.get("variant")
    if variant is not None and not os.path.isfile(variant):
        raise InvalidRequest(f"no file {variant}; --variant names the file of a LoRA", "variant")
    return settings


def parse_numbers(text: str, option: str, *counts: int) -> tuple[float, ...]:
    """The numbers of an option such as 0.5,0.4. Raises InvalidRequest unless there are as many as allowed."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in counts:
        forms = " or ".join({2: "x,y", 4: "x0,y0,x1,y1"}[n] for n in counts)
        raise InvalidRequest(f"{option} must be {forms}, each in 0..1, not {quoted(text)}")
    return values
