"""galago export"""

from pathlib import Path
from typing import Annotated

import typer

from galago.cli.streams import print_json
from galago.errors import InvalidRequest, ModelNotFound, UnsupportedTask, quoted, size_of
from galago.store.catalog import entry_of, find, with_precision
from galago.store.hub import check_models
from galago.system.files import json_path
from galago.system.outputs import check_folder
from galago.system.progress import progress_bar

FORMATS = ("onnx",)
PRECISIONS = ("float32", "int8")
EXAMPLES = """\b
Examples:
  galago export moondream2 --to onnx
  galago export ./my-finetune --to onnx --precision int8 --out small/
  galago caption photo.jpg --model ./moondream2-onnx"""


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name of `galago models`, a folder or weights file.")],
    to: Annotated[str, typer.Option(metavar="onnx", help="The format.")],
    precision: Annotated[str, typer.Option(metavar="float32|int8", help="The precision of the weights.")] = PRECISIONS[
        0
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; by default MODEL-onnx or MODEL-onnx-int8 in this folder."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a folder that holds a model for other programs: as ONNX graphs, which run without PyTorch."""
    # What can be wrong is looked at before a download.
    if to not in FORMATS:
        raise InvalidRequest(f"cannot export to {quoted(to)}; use {' or '.join(FORMATS)}", "to")
    if precision not in PRECISIONS:
        raise InvalidRequest(f"cannot export in {quoted(precision)}; use {' or '.join(PRECISIONS)}", "precision")
    if asked := with_precision(model)[1]:
        raise InvalidRequest(f"{model} asks for {asked}: name the model alone, and --precision", "precision")
    folder = out or _default_folder(model, precision)
    if folder is not None:
        check_folder(folder, [model], forceable=False)
    check_models([model])
    if (entry := entry_of(model)) and entry.backend != "native":
        raise UnsupportedTask(f"{entry.id} is run by {entry.backend} and cannot be exported; Moondream and SmolVLM can")
    try:
        from galago.backends.onnx.export import export_model
    except ModuleNotFoundError as error:
        raise UnsupportedTask(f"an export needs {error.name}: pip install 'galago[onnx]'") from error
    from galago.store.hub import locate

    files = locate(model)
    if folder is None:
        folder = Path(_named(files.name, precision))
        check_folder(folder, [model], forceable=False)
    with progress_bar(f"Exporting {files.name}") as tell:
        written = export_model(files, precision, folder, tell)
    size = sum(graph.bytes + graph.data for graph in written.values())
    if json:
        graphs = {
            name: {"bytes": graph.bytes + graph.data, "difference": graph.difference} for name, graph in written.items()
        }
        told = {"model": files.name, "precision": precision, "folder": json_path(folder), "bytes": size}
        print_json(told | {"graphs": graphs})
        return
    width = max(map(len, written))
    for name, graph in written.items():
        typer.echo(f"{name:{width}}  {size_of(graph.bytes + graph.data):>9}  {graph.difference:.0e} from PyTorch")
    typer.echo(f"{folder}: {size_of(size)}, before {size_of(sum(f.stat().st_size for f in files.weights))}")


def _default_folder(model: str, precision: str) -> Path | None:
    try:
        return Path(_named(find(model).id, precision))
    except ModelNotFound:
        return None


def _named(model: str, precision: str) -> str:
    return f"{model}-onnx" if precision == PRECISIONS[0] else f"{model}-onnx-{precision}"
