"""galago models"""

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from textwrap import wrap
from typing import Annotated

import typer

from galago.backends.memory_estimate import peak_bytes
from galago.choices import PRECISIONS
from galago.cli.streams import print_json
from galago.errors import ModelNotFound, size_of
from galago.store.catalog import Bundled, Entry, entries, find, lookup, routes, with_precision

app = typer.Typer(rich_markup_mode=None)

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name of `galago models`, or a repository: owner/name.")
]
ModelsJsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per model.")]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, json: ModelsJsonOption = False) -> None:
    """List the models, or pull and remove them."""
    if context.invoked_subcommand is None:
        list_models(json)


@app.command("list")
def list_models(json: ModelsJsonOption = False) -> None:
    """List the models: what each takes on disk and in memory, and what it is. The same as `galago models`."""
    from galago.store.hub import installed, random_checkpoints, repositories
    from galago.store.packed_cache import copies_without_model

    here, pulled, random = installed(), repositories(), random_checkpoints()
    left = {name: copies for name, copies in copies_without_model().items() if name not in random}
    if json:
        for entry in entries():
            print_json(_entry_json(entry, here.get(entry.id)))
        for name, files in pulled.items():
            known = {"id": name, "family": files.family, "commit": files.commit, "installed": True}
            print_json({**known, "bytes": files.size})
        for route in routes():
            print_json(asdict(route))
        for name, made in random.items():
            print_json({"id": name, "random_weights": True, "installed": True, "bytes": made})
        for name, copies in left.items():
            told = {"id": name, "packed_copies": [copy.precision for copy in copies], "installed": False}
            print_json({**told, "bytes": sum(copy.size for copy in copies)})
        return
    rows = [ModelRow(e.id, e.description, size_of(here[e.id]) if e.id in here else "-", _memory(e)) for e in entries()]
    for name, files in pulled.items():
        rows.append(ModelRow(name, f"{files.family}, at commit {files.commit}", size_of(files.size)))
    for route in routes():
        ways = "; ".join(f"{', '.join(way.takes)}: {' or '.join(way.models)}" for way in route.ways)
        rows.append(ModelRow(route.id, f"{route.description} ({ways})"))
    for name, size in random.items():
        rows.append(ModelRow(name, "random weights, made by `galago bench --random`", size_of(size)))
    for name, copies in left.items():
        precisions = ", ".join(copy.precision for copy in copies)
        about = f"packed copies in {precisions} of what is gone or not known; `galago models remove` deletes them"
        rows.append(ModelRow(name, about, size_of(sum(copy.size for copy in copies))))
    # Only a terminal has a width that lines must keep to.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo("\n".join(_format_rows(rows, width)))


@app.command()
def pull(name: ModelName) -> None:
    """Download a model, so that it can be used without a network."""
    from galago.store.hub import fetch, files_of_repository, installed, remote

    if found := remote(name):
        files = files_of_repository(found, anew=True)
        typer.echo(f"{files.name}: {size_of(files.size)}, commit {files.commit}")
    else:
        entry = find(name)
        fetch(entry)
        typer.echo(f"{entry.id}: {size_of(installed()[entry.id])}")


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`, or a folder.")],
) -> None:
    """Delete a downloaded model and its packed copies; a name such as moondream2-int8 means that copy alone.

    Of a folder of your own, there or gone, the packed copies are deleted, and nothing in it. moondream2-random means
    the random weights that `galago bench --random` made, and their packed copies.
    """
    from galago.store import hub, packed_cache

    packed_cache.discard_halves(packed_cache.packed_folder())
    if name.endswith(hub.RANDOM):
        plain, packed = hub.remove_random(name), packed_cache.remove_packed(name)
        if not plain + packed:
            raise ModelNotFound(f"there are no random weights {name}; `galago models` lists those that are kept")
        _print_freed(name, plain, packed)
        return
    if hub.remote(name):
        _print_freed(name, hub.remove(name), packed_cache.remove_packed(name))
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
    _print_freed(entry.id, freed, packed)


@app.command()
def path(name: ModelName) -> None:
    """Print where the weights of a model are on this machine. Nothing is downloaded."""
    from galago.store.hub import locate

    for file in locate(name, offline=True).weights:
        typer.echo(str(file))


def _remove_copies(name: str) -> None:
    """Of a folder or weights file, by its path, or by the name under which a copy of one that is gone is listed."""
    from galago.store import packed_cache

    path = Path(os.path.expanduser(name))
    copies = packed_cache.copies_of(path) or packed_cache.copies_without_model().get(name, [])
    if not copies and not os.path.exists(path):  # which minds no name
        find(name)  # says what there is
    if not copies:
        raise ModelNotFound(f"there is no packed copy of {path}, and files of your own are left alone")
    precisions = ", ".join(sorted({copy.precision for copy in copies}))
    typer.echo(f"{name}: {size_of(packed_cache.remove_copies(copies))} freed, packed copies in {precisions}")


def _print_freed(name: str, plain: int, packed: int) -> None:
    part = f", {size_of(packed)} of it in packed copies" if packed else ""
    typer.echo(f"{name}: {size_of(plain + packed)} freed{part}")


def _entry_json(entry: Entry, size: int | None) -> dict[str, object]:
    untold = ("source", "kv_values", "context", "counted")
    return {
        **{field.name: getattr(entry, field.name) for field in fields(entry) if field.name not in untold},
        "memory": {name: peak_bytes(entry, name) for name in entry.precisions},
        "memory_counted": [name for name in entry.precisions if name not in entry.memory],
        "installed": size is not None,
        "bytes": size,
    }


@dataclass(frozen=True)
class ModelRow:
    """A line of the list; `memory` has a cell for each of PRECISIONS, or none at all."""

    name: str
    about: str
    disk: str = ""
    memory: tuple[str, ...] = ()


LEGEND = "GB of memory at the peak of a request on a CPU; ~ is counted, not measured"


def _format_rows(rows: Sequence[ModelRow], width: int | None) -> list[str]:
    """A line for each model; with what it is below it, or all of it below its name, where a line would be too wide."""
    first, second = max(len(row.name) for row in rows), max(len("on disk"), *(len(row.disk) for row in rows))

    def cells(disk: str, memory: Sequence[str]) -> str:
        columns = zip(PRECISIONS, memory, strict=True)
        return f"  {disk:>{second}}  " + " ".join(f"{cell:>{max(5, len(name))}}" for name, cell in columns)

    numbers = {row.name: f"{row.name:{first}}" + cells(row.disk, row.memory or [""] * len(PRECISIONS)) for row in rows}
    head = " " * first + cells("on disk", PRECISIONS)
    if width is None:
        return [f"{head}  {LEGEND}", *(f"{numbers[row.name]}  {row.about}" for row in rows)]
    if len(head) > width:
        return [line for row in rows for line in _format_narrow(row, width)]
    below = {row.name: _wrap(row.about, width) for row in rows}
    lines = [line for row in rows for line in (numbers[row.name].rstrip(), *below[row.name])]
    return [head, *lines, *_wrap(LEGEND, width)]


def _format_narrow(row: ModelRow, width: int) -> list[str]:
    told = ", ".join(f"{name} {cell}" for name, cell in zip(PRECISIONS, row.memory, strict=False))
    texts = (row.about, told and f"memory: {told} GB")
    disk = "" if row.disk == "-" else row.disk
    return [f"{row.name}  {disk}".rstrip(), *(line for text in texts for line in _wrap(text, width))]


def _wrap(text: str, width: int) -> list[str]:
    return wrap(text, max(20, width), initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _memory(entry: Entry) -> tuple[str, ...]:
    """What each precision needs, in GB; ~ before what was not measured."""
    cells = []
    for name in PRECISIONS:
        size = peak_bytes(entry, name) / 1e9 if name in entry.precisions else None
        mark = "" if name in entry.memory else "~"
        cells.append("-" if size is None else mark + (f"{size:.1f}" if size >= 1 else f"{size:.2f}"))
    return tuple(cells)
