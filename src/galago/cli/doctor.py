"""galago doctor"""

import shutil
import sys
from collections.abc import Iterator, Mapping
from textwrap import fill
from typing import Annotated, Any

import typer

from galago.choices import PRECISIONS
from galago.cli.streams import print_json
from galago.errors import size_of

EXAMPLES = """\b
Examples:
  galago doctor
  galago doctor --json"""


def doctor(json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Tell what this machine has, which models it can run, and what would make them quicker."""
    from galago.cli.diagnosis import diagnose

    found = diagnose()
    if json:
        print_json(found)
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
        for line in _report(found):
            # A command is to be copied whole.
            kept = line.startswith("    ") or len(line) <= width
            typer.echo(line if kept else fill(line, max(40, width), subsequent_indent=" " * 14, break_on_hyphens=False))
    if found["pytorch"] is None:
        raise typer.Exit(2)


def _report(found: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _facts(found):
        yield f"{name:12}  {value}"
    yield ""
    yield from _models(found)
    yield ""
    if best := found["recommended"]:
        yield f"recommended   {best['model']} in {best['precision']}, the best model for photographs that fits"
    yield f"default       {found['default']} answers where no model is named"
    yield ""
    for advice in found["advice"]:
        yield f"! {advice['what']}"
        if advice["command"]:
            yield f"    {advice['command']}"
    if not found["advice"]:
        yield "nothing is slower than it could be"


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    processor, memory = found["processor"], found["memory"]
    torch = f"PyTorch {found['pytorch']}" if found["pytorch"] else "no PyTorch"
    yield "galago", f"{found['galago'] or 'from a source tree'}, Python {found['python']}, {torch}"
    yield "processor", f"{processor['name']} ({found['system']})"
    yield "cores", _cores(processor)
    yield "device", found["device"] + (f", {found['device_name']}" if found["device_name"] else "")
    yield "instructions", ", ".join(processor["instruction_sets"]) or "none that there are kernels for"
    if found["device"] == "cpu":
        yield "kernels", f"galago {found['kernels']}" if found["kernels"] else "PyTorch's alone"
    there = f", {size_of(memory['device_free_bytes'])} on the device" if memory["device_free_bytes"] else ""
    limit = " of the container's limit" if memory["container_bytes"] == memory["free_bytes"] else ""
    allowed = size_of(memory["for_models_bytes"])
    yield "memory", f"{size_of(memory['free_bytes'])} free{limit}{there}; models may take {allowed}"
    for disk in found["disk"]:
        locked = "" if disk["writable"] else ", which cannot be written"
        yield "disk", f"{size_of(disk['free_bytes'])} free for {disk['what']} in {disk['folder']}{locked}"


def _cores(processor: Mapping[str, Any]) -> str:
    told = f"{processor['cores']} compute"
    if processor["compute_threads"] not in (None, processor["cores"]):
        told = f"{processor['compute_threads']} of {processor['cores']} compute"
    told += f"; the machine has {processor['machine_threads']} hardware threads"
    if processor["hardware_threads"] < processor["machine_threads"]:
        told += f", of which this process may use {processor['hardware_threads']} at a time"
    if processor["container_cores"] is not None:
        told += f" (the container's limit: {processor['container_cores']:g} cores)"
    return told


def _models(found: Mapping[str, Any]) -> Iterator[str]:
    """A line for each model: what it needs in each precision in GB, in brackets where that does not fit."""
    width = max(len(model["id"]) for model in found["models"])
    heads = " ".join(f"{name:>8}" for name in PRECISIONS)
    yield f"{'':{width}}  installed  {heads}"
    for model in found["models"]:
        cells = []
        for name in PRECISIONS:
            size = f"{model['needs'][name] / 1e9:.1f}" if name in model["needs"] else "-"
            cells.append(size if name in model["fits"] or size == "-" else f"({size})")
        yield f"{model['id']:{width}}  {'yes' if model['installed'] else 'no':9}  " + " ".join(f"{c:>8}" for c in cells)
    yield "GB of memory, caches included; in brackets what does not fit"
