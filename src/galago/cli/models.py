"""galago models"""

import json as jsonlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer

from galago.catalog import Bundled, Entry, entries, find, lookup, routes, with_precision
from galago.errors import ModelNotFound
from galago.needs import size_of

app = typer.Typer(rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`.")]


@app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")] = False,
) -> None:
    """List the models, or pull and remove them."""
    if context.invoked_subcommand:
        return
    from galago.hub import installed, random_checkpoints
    from galago.packed_cache import copies_without_model

    here, random, left = installed(), random_checkpoints(), copies_without_model()
    if json:
        for entry in entries():
            typer.echo(jsonlib.dumps(_described(entry, here.get(entry.id))))
        for route in routes():
            typer.echo(jsonlib.dumps(asdict(route)))
        for name, made in random.items():
            typer.echo(jsonlib.dumps({"id": name, "random_weights": True, "installed": True, "bytes": made}))
        for name, copies in left.items():
            told = {"id": name, "packed_copies": [copy.precision for copy in copies], "installed": False}
            typer.echo(jsonlib.dumps({**told, "bytes": sum(copy.size for copy in copies)}))
        return
    rows = []
    for entry in entries():
        size = here.get(entry.id)
        rows.append((entry.id, "-" if size is None else size_of(size), _memory(entry), entry.description))
    for route in routes():
        ways = "; ".join(f"{', '.join(way.takes)}: {' or '.join(way.models)}" for way in route.ways)
        rows.append((route.id, "", "", f"{route.description} ({ways})"))
    for name, size in random.items():
        rows.append((name, size_of(size), "", "random weights, made by `galago bench --random`"))
    for name, copies in left.items():
        precisions = ", ".join(copy.precision for copy in copies)
        about = f"packed copies in {precisions} of what is no longer there; `galago models remove` deletes them"
        rows.append((name, size_of(sum(copy.size for copy in copies)), "", about))
    # Only a terminal has a width that lines must keep to.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo("\n".join(_listed(rows, width)))


@app.command()
def pull(name: Name) -> None:
    """Download a model, so that it can be used without a network."""
    from galago.hub import installed, locate

    entry = find(name)
    locate(entry.id)
    typer.echo(f"{entry.id}: {size_of(installed()[entry.id])}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`, or a folder.")],
) -> None:
    """Delete a downloaded model and its packed copies; a name such as moondream2-int8 means that copy alone.

    Of a folder of your own, there or gone, the packed copies are deleted, and nothing in it. moondream2-random means
    the random weights that `galago bench --random` made, and their packed copies.
    """
    from galago import hub, packed_cache

    packed_cache.discard_halves(packed_cache.packed_folder())
    if name.endswith(hub.RANDOM):
        plain, packed = hub.remove_random(name), packed_cache.remove_packed(name)
        if not plain + packed:
            raise ModelNotFound(f"there are no random weights {name}; `galago models` lists those that are kept")
        _freed(name, plain, packed)
        return
    if lookup(name) is None:
        _remove_copies(name)
        return
    entry, (_, precision) = find(name), with_precision(name)
    if isinstance(entry.source, Bundled) and not precision:
        hub.remove(name)  # says why not
    if precision:
        packed = packed_cache.remove_packed(entry.id, precision)
        if not packed:
            raise ModelNotFound(f"there is no packed copy of {entry.id} in {precision}")
        typer.echo(f"{entry.id}: {size_of(packed)} freed, its packed copy in {precision}")
        return
    try:
        freed = hub.remove(name)
    except ModelNotFound:
        # Its packed copies may be left.
        packed = packed_cache.remove_packed(entry.id)
        if not packed:
            raise
        freed = 0
    else:
        packed = packed_cache.remove_packed(entry.id)
    _freed(entry.id, freed, packed)


def _remove_copies(name: str) -> None:
    """Of a folder or weights file, by its path, or by the name under which a copy of one that is gone is listed."""
    from galago import packed_cache

    path = Path(name).expanduser()
    copies = packed_cache.copies_of(path) or packed_cache.copies_without_model().get(name, [])
    if not copies and not os.path.exists(path):  # which minds no name
        find(name)  # says what there is
    if not copies:
        raise ModelNotFound(f"there is no packed copy of {path}, and files of your own are left alone")
    precisions = ", ".join(sorted({copy.precision for copy in copies}))
    typer.echo(f"{name}: {size_of(packed_cache.remove_copies(copies))} freed, packed copies in {precisions}")


def _freed(name: str, plain: int, packed: int) -> None:
    part = f", {size_of(packed)} of it in packed copies" if packed else ""
    typer.echo(f"{name}: {size_of(plain + packed)} freed{part}")


def _described(entry: Entry, size: int | None) -> dict[str, object]:
    return {
        "id": entry.id,
        "aliases": entry.aliases,
        "description": entry.description,
        "family": entry.family,
        "revision": entry.revision,
        "license": entry.license,
        "parameters": entry.parameters,
        "precisions": entry.precisions,
        "memory": dict(entry.memory),
        "installed": size is not None,
        "bytes": size,
    }


def _listed(rows: Sequence[tuple[str, str, str, str]], width: int | None) -> list[str]:
    """A line for each name, with its size, its memory and what it is; or some, where a line would be too wide."""
    table = [("", "on disk", "memory", ""), *rows]
    first, second, third = (max(len(row[column]) for row in table) for column in range(3))
    lines = [f"{a:{first}}  {b:>{second}}  {c:{third}}  {d}".rstrip() for a, b, c, d in table]
    if width is None or all(len(line) <= width for line in lines):
        return lines
    lines = []
    for name, disk, memory, about in rows:
        lines.append(f"{name}  {disk}" if disk not in ("", "-") else name)
        for text in filter(None, (about, memory and f"memory: {memory}")):
            lines += wrap(text, max(20, width), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return lines


def _memory(entry: Entry) -> str:
    """What each precision was measured to need: float32 12.5, bfloat16 4.1 GB."""
    sizes = {name: size / 1e9 for name, size in entry.memory.items()}
    told = ", ".join(f"{name} {size:.1f}" if size >= 1 else f"{name} {size:.2f}" for name, size in sizes.items())
    return f"{told} GB" if told else "not measured"
