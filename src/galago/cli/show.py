"""galago show"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from galago.catalog import Entry, Route, lookup, with_precision
from galago.choices import WEIGHT_BYTES, check_device, check_models
from galago.cli.streams import json_name, print_json
from galago.needs import counted_peak, size_of

if TYPE_CHECKING:
    from galago.hub import Files

EXAMPLES = """\b
Examples:
  galago show moondream2
  galago show moondream2-int8 --json
  galago show ./my-finetune"""


@dataclass(frozen=True)
class About:
    """What can be said of a model without its weights. What is not known is None."""

    id: str
    description: str | None
    family: str
    revision: str | None
    license: str | None
    parameters: int
    precisions: tuple[str, ...]
    memory: Mapping[str, int]
    """measured, by precision"""
    files: "Files | None"
    """None where it is not installed"""


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`, a folder or weights file.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what a model is, what it needs and what computes it here. Nothing is downloaded or loaded."""
    check_device(device)
    check_models([model], routes=True)
    match lookup(model):
        case Route() as route:
            told, shown = _route_told(route, model, device), _print_route
        case Entry() as entry:
            told, shown = _told(_of_entry(entry, with_precision(model)[1]), device), _print
        case None:
            told, shown = _told(_of_files(model), device), _print
    if json:
        print_json(told)
    else:
        shown(told)


def _of_entry(entry: Entry, precision: str | None) -> About:
    from galago.hub import installed, locate

    return About(
        id=entry.id,
        description=entry.description,
        family=entry.family,
        revision=entry.revision,
        license=entry.license,
        parameters=entry.parameters,
        precisions=(precision,) if precision else entry.precisions,
        memory=entry.memory,
        files=locate(entry.id, offline=True) if entry.id in installed() else None,
    )


def _of_files(model: str) -> About:
    from galago.families.family import family
    from galago.hub import blaming, locate
    from galago.precision import NAMES
    from galago.precision.packed import bits_of

    files = locate(model)
    with blaming(files.name, files.source):
        outline, bits = family(files.family).outline(files), bits_of(files.weights)
    return About(
        id=files.name,
        description=None,
        family=files.family,
        revision=outline.revision,
        license=None,
        parameters=sum(_product(shape) for shape in outline.shapes.values()),
        precisions=(f"int{bits}",) if bits else NAMES,
        memory={},
        files=files,
    )


def _told(about: About, device: str | None) -> dict[str, Any]:
    from galago.nn.device import pick_device
    from galago.packed_cache import copies_of, packed_copies
    from galago.precision import pick_precision
    from galago.precision.quantised import described, fallbacks

    where = pick_device(device)
    found = {name: pick_precision(name, where) for name in about.precisions}
    source = about.files.source if about.files else None
    files = () if about.files is None else (*about.files.weights, about.files.tokenizer)
    return {
        "id": about.id,
        "description": about.description,
        "family": about.family,
        "revision": about.revision,
        "license": about.license,
        "parameters": about.parameters,
        "installed": bool(files),
        "bytes": sum(f.stat().st_size for f in files) if files else None,
        "files": [json_name(f) for f in files],
        "packed": [
            {"precision": c.precision, "bytes": c.size, "file": json_name(c.file)}
            for c in (copies_of(source) if source else packed_copies(about.id))
            if c.precision in about.precisions
        ],
        "device": str(where),
        "precisions": {
            name: {
                "memory": _peak(about, name),
                "measured": name in about.memory,
                "kernels": described(found[name], where),
                "fallbacks": fallbacks(where, found[name].bits),
            }
            for name in about.precisions
        },
    }


def _peak(about: About, precision: str) -> int:
    """Bytes, as needs reckons them: what was measured, or else counted."""
    return about.memory.get(precision) or counted_peak(about.parameters, WEIGHT_BYTES[precision])


def _print(told: Mapping[str, Any]) -> None:
    lines = [("", told["description"]), ("family", told["family"]), ("revision", told["revision"])]
    lines += [("license", told["license"]), ("parameters", told["parameters"] and f"{told['parameters']:,}")]
    if told["installed"]:
        folder = Path(told["files"][0]).parent
        lines.append(("on disk", f"{size_of(told['bytes'])} in {folder}"))
    else:
        lines.append(("on disk", f"nothing; `galago models pull {told['id']}` downloads it"))
    lines += [("packed", f"{c['precision']}, {size_of(c['bytes'])}: {c['file']}") for c in told["packed"]]
    typer.echo(told["id"])
    for name, value in lines:
        if value is not None:
            typer.echo(f"{name:10}  {value}" if name else value)
    # Memory is measured on a CPU.
    head = "memory" if told["device"] == "cpu" else "on a CPU"
    typer.echo(f"\n{'':10}  {head:>9}  kernels on {told['device']}")
    for name, entry in told["precisions"].items():
        memory = ("" if entry["measured"] else "~") + size_of(entry["memory"])
        typer.echo(f"{name:10}  {memory:>9}  {entry['kernels']}")
    if not all(entry["measured"] for entry in told["precisions"].values()):
        typer.echo("~ is counted, not measured")
    for fallback in dict.fromkeys(f for entry in told["precisions"].values() for f in entry["fallbacks"]):
        typer.echo(f"! {fallback}")


def _route_told(route: Route, name: str, device: str | None) -> dict[str, Any]:
    from galago.needs import memory_needed
    from galago.routing import ways_of

    return {
        "id": route.id,
        "description": route.description,
        "ways": [
            {
                "takes": list(way.takes),
                "models": [{"id": model, "memory": memory_needed(model, device=device)} for model in way.models],
            }
            for way in ways_of(name, {"device": device})
        ],
    }


def _print_route(told: Mapping[str, Any]) -> None:
    from galago.routing import MEDIA

    typer.echo(f"{told['id']}\n{told['description']}")
    for way in told["ways"]:
        typer.echo(f"\n{', '.join(MEDIA[medium] for medium in way['takes'])}: the first that memory has room for of")
        width = max(len(model["id"]) for model in way["models"])
        for model in way["models"]:
            typer.echo(f"  {model['id']:{width}}  {size_of(model['memory']):>8}")


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total
