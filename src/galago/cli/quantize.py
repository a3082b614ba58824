"""galago quantize"""

from pathlib import Path
from typing import Annotated

import typer

from galago.choices import BITS
from galago.cli.streams import print_json
from galago.errors import InvalidRequest, ModelNotFound, quoted, size_of
from galago.store.catalog import find, with_precision
from galago.store.hub import check_models
from galago.system.files import json_path
from galago.system.outputs import check_folder

EXAMPLES = """\b
Examples:
  galago quantize moondream2 --to int8
  galago quantize ./my-finetune --to int4 --out small/
  galago caption photo.jpg --model ./moondream2-int8"""


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`, a folder or weights file.")],
    to: Annotated[str, typer.Option(metavar="int8|int4", help="The precision of the weights.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; by default MODEL-PRECISION in this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a folder that holds a model in int8 or int4: smaller, and used straight from the file."""
    from galago.store.hub import locate

    # What can be wrong is looked at before a download.
    if to not in BITS:
        raise InvalidRequest(f"cannot quantize to {quoted(to)}; use {' or '.join(BITS)}", "precision")
    if (asked := with_precision(model)[1]) not in (None, to):
        raise InvalidRequest(f"{model} asks for {asked}, and --to for {to}", "precision")
    folder = out or _default_folder(model, to)
    if folder is not None:
        check_folder(folder, [model], force)
    check_models([model])
    from galago.families import FAMILIES
    from galago.store.packing import quantise_model

    files = locate(model)
    if files.family not in FAMILIES:
        helps = "it is packed when it is first loaded with --precision int8"
        raise InvalidRequest(f"{files.name} is run by {files.family}, which reads no packed folders; {helps}", "model")
    if folder is None:
        folder = Path(f"{files.name}-{to}")
        check_folder(folder, [model], force)
    made = quantise_model(files, to, folder)
    before, after = sum(f.stat().st_size for f in files.weights), made.stat().st_size
    if json:
        told = {
            "model": files.name,
            "precision": to,
            "folder": json_path(folder),
            "bytes": after,
            "bytes_before": before,
        }
        print_json(told)
    else:
        typer.echo(f"{folder}: {size_of(after)}, before {size_of(before)}")


def _default_folder(model: str, to: str) -> Path | None:
    try:
        return Path(f"{find(model).id}-{to}")
    except ModelNotFound:
        return None
