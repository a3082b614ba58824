"""galago show"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from galago.backends.memory_estimate import model_entry, peak_bytes
from galago.choices import check_device
from galago.cli.streams import print_json
from galago.errors import ModelNotFound, size_of
from galago.store.catalog import Entry, Local, Route, lookup, with_precision
from galago.store.hub import check_models, remote
from galago.system.files import json_path

EXAMPLES = """\b
Examples:
  galago show moondream2
  galago show moondream2-int8 --json
  galago show ./my-finetune"""


def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`, a folder or weights file.")],
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps; by default the best there is.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Tell what a model is, what it needs and what computes it here. Nothing is downloaded or loaded."""
    check_device(device)
    check_models([model], routes=True)
    if (found := remote(model)) and not found.is_here:
        raise ModelNotFound(f"{model} is not installed; `galago models pull {model}` downloads it")
    match lookup(model):
        case Route() as route:
            told, shown = _route_facts(route, model, device), _print_route
        case _:
            told, shown = _model_facts(model_entry(model), with_precision(model)[1], device), _print_model
    if json:
        print_json(told)
    else:
        shown(told)


def _model_facts(entry: Entry, precision: str | None, device: str | None) -> dict[str, Any]:
    from galago.backends.backend import loader
    from galago.store.hub import files_of
    from galago.store.packed_cache import copies_of, packed_copies
    from galago.system.device import device_here

    precisions = (precision,) if precision else entry.precisions
    found = {name: loader(entry.backend).kernels(name, device) for name in precisions}
    path = entry.source.path if isinstance(entry.source, Local) and not entry.commit else None
    copies = copies_of(path) if path else packed_copies(entry.id)
    files = files_of(entry)
    return {
        "id": entry.id,
        **{
            name: getattr(entry, name) or None
            for name in ("description", "backend", "family", "revision", "commit", "license")
        },
        "parameters": entry.parameters,
        "installed": files is not None,
        "bytes": None if files is None else sum(f.stat().st_size for f in files),
        "files": [json_path(f) for f in files or ()],
        "packed": [
            {"precision": c.precision, "bytes": c.size, "file": json_path(c.file)}
            for c in copies
            if c.precision in precisions
        ],
        "device": str(device_here(device)),
        "precisions": {
            name: {
                "memory": peak_bytes(entry, name),
                "measured": name in entry.memory,
                "kernels": kernels,
                "fallbacks": list(fallbacks),
            }
            for name, (kernels, fallbacks) in found.items()
        },
    }


def _print_model(told: Mapping[str, Any]) -> None:
    backend = None if told["family"] else told["backend"]
    lines = [("", told["description"]), ("backend", backend)]
    lines += [(name, told[name]) for name in ("family", "revision", "commit", "license")]
    lines.append(("parameters", told["parameters"] and f"{told['parameters']:,}"))
    if told["files"]:
        folder = Path(told["files"][0]).parent
        lines.append(("on disk", f"{size_of(told['bytes'])} in {folder}"))
    elif not told["installed"]:
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


def _route_facts(route: Route, name: str, device: str | None) -> dict[str, Any]:
    from galago.backends.memory_estimate import memory_needed
    from galago.fleet.routing import ways_of

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
    from galago.fleet.routing import MEDIA

    typer.echo(f"{told['id']}\n{told['description']}")
    for way in told["ways"]:
        typer.echo(f"\n{', '.join(MEDIA[medium] for medium in way['takes'])}: the first that memory has room for of")
        width = max(len(model["id"]) for model in way["models"])
        for model in way["models"]:
            typer.echo(f"  {model['id']:{width}}  {size_of(model['memory']):>8}")
