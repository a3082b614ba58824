"""galago models"""

import json as jsonlib
from typing import Annotated

import typer

from galago.catalog import Entry, entries, find

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
    from galago.hub import installed

    here = installed()
    if json:
        for entry in entries():
            typer.echo(jsonlib.dumps(_described(entry, here.get(entry.id))))
        return
    width = max(len(e.id) for e in entries())
    typer.echo(f"{'':{width}}  {'on disk':>8}  {'memory':>8}")
    for entry in entries():
        size = here.get(entry.id)
        state = "-" if size is None else _size(size)
        typer.echo(f"{entry.id:{width}}  {state:>8}  {_memory(entry):>8}  {entry.description}")


@app.command()
def pull(name: Name) -> None:
    """Download a model, so that it can be used without a network."""
    from galago.hub import installed, locate

    entry = find(name)
    locate(entry.id)
    typer.echo(f"{entry.id}: {_size(installed()[entry.id])}")


@app.command()
def remove(name: Name) -> None:
    """Delete a downloaded model."""
    from galago import hub

    typer.echo(f"{find(name).id}: {_size(hub.remove(name))} freed")


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


def _memory(entry: Entry) -> str:
    """The most that any precision was measured to need."""
    return _size(max(entry.memory.values())) if entry.memory else "?"


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
