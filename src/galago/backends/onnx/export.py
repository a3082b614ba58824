"""Writing a model as ONNX graphs, each checked with ONNX Runtime against PyTorch."""

import json
import math
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from galago.backends.onnx.graphs import ExportedGraph, graphs_of
from galago.backends.onnx.layout import FORMAT, GRAPHS, SUFFIXES, data_file, file_name
from galago.backends.onnx.sessions import Graph, array_of, value_of
from galago.checkpoint.config_file import TEXT, read_json
from galago.checkpoint.packed import bits_of
from galago.errors import CheckpointError, InvalidRequest, UnsupportedTask, quoted
from galago.families import ModelFiles
from galago.families.base import DecoderModel
from galago.families.family import family
from galago.precision import pick_precision
from galago.store.checkpoint_folder import ONNX_MANIFEST
from galago.store.hub import blaming
from galago.system.device import pick_threads
from galago.system.progress import Progress
from galago.version import VERSION

TOLERANCE = {"float32": 1e-4, "int8": 0.25}
"""How far the numbers of a graph may be from PyTorch's: the root mean square of the differences, as a part of that of
the numbers."""
MOST_INLINE = 256 << 20
"""Bytes of weights that a graph's own file holds: no such file can have 2 GB."""
BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "processor_config.json",
)
"""Files that programs in browsers read beside a model's config, copied where they are."""


@dataclass(frozen=True)
class Written:
    """An exported graph: its bytes, those of a file of weights beside it, and how far it was from PyTorch."""

    bytes: int
    data: int
    difference: float
    """see TOLERANCE; of the output that is furthest"""


def export_model(files: ModelFiles, precision: str, folder: Path, progress: Progress) -> dict[str, Written]:
    """Write a folder, which must not be there or be empty, with a model's graphs, tokenizer and configs.

    Nothing is left of it when it does not come to its end. Raises InvalidRequest for a precision that there is not,
    UnsupportedTask for a family without graphs, and CheckpointError for weights that are quantized already and where
    ONNX Runtime does not compute what PyTorch does.
    """
    if precision not in SUFFIXES:
        raise InvalidRequest(f"cannot export in {quoted(precision)}; use {' or '.join(SUFFIXES)}", "precision")
    if files.family not in GRAPHS:
        raise UnsupportedTask(f"models of the family {files.family} cannot be exported; {', '.join(GRAPHS)} can")
    if bits := bits_of(files.weights):
        raise CheckpointError(f"{files.name} is quantized to int{bits} already; start from the original")
    with _whole_folder(folder) as partial:
        with blaming(files.name, files.source):
            cpu = torch.device("cpu")
            model = family(files.family).load(files, precision=pick_precision("float32", cpu), device=cpu)
            outline = family(files.family).outline(files)
        assert isinstance(model, DecoderModel)
        _write_configs(files, partial)
        written: dict[str, Written] = {}
        for made in graphs_of(model, precision == "int8"):
            progress(len(written), len(GRAPHS[files.family]))
            written[made.graph.name] = _write_graph(made, precision, partial)
        about = {
            "format": FORMAT,
            "made_by": f"galago {VERSION}",
            "model": files.name,
            "family": files.family,
            "revision": outline.revision,
            "precision": precision,
            "parameters": sum(map(math.prod, outline.shapes.values())),
            "graphs": {
                name: {"file": file_name(name, precision), "bytes": one.bytes, "data": one.data}
                for name, one in written.items()
            },
        }
        _write_json(partial / ONNX_MANIFEST, about)
        progress(len(written), len(written))
    return written


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside this one that takes its place at the end."""
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    (partial / "onnx").mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_configs(files: ModelFiles, folder: Path) -> None:
    for name in BESIDE:
        with suppress(FileNotFoundError):
            shutil.copyfile(files.tokenizer.with_name(name), folder / name)
    shutil.copyfile(files.tokenizer, folder / "tokenizer.json")
    _add_chat_template(folder)
    _write_json(folder / "config.json", dict(files.config))
    for name, members in (
        ("preprocessor_config.json", files.preprocessor),
        ("video_preprocessor_config.json", files.video),
    ):
        if members:
            _write_json(folder / name, dict(members))


def _add_chat_template(folder: Path) -> None:
    """Put the chat template, where it lies in a file of its own, into tokenizer_config.json: browsers look there."""
    config, old, new = (
        folder / name for name in ("tokenizer_config.json", "chat_template.json", "chat_template.jinja")
    )
    if not config.is_file() or not (old.is_file() or new.is_file()):
        return
    template = new.read_text(encoding="utf-8") if new.is_file() else read_json(old).take("chat_template", TEXT, None)
    _write_json(config, {"chat_template": template} | dict(read_json(config)))


def _write_json(file: Path, members: Any) -> None:
    file.write_text(json.dumps(members, indent=1) + "\n", encoding="utf-8")


def _write_graph(made: ExportedGraph, precision: str, folder: Path) -> Written:
    file = folder / file_name(made.graph.name, precision)
    data = data_file(file)
    made.graph.save(file, data, MOST_INLINE)
    return Written(file.stat().st_size, data.stat().st_size if data.exists() else 0, _difference(made, file, precision))


def _difference(made: ExportedGraph, file: Path, precision: str) -> float:
    """Run a graph beside PyTorch on arrays of several shapes; how far apart they are.

    Raises CheckpointError where that is more than TOLERANCE.
    """
    graph, largest = Graph(file, pick_threads()), 0.0
    for size in (2, 3, 7):
        with torch.inference_mode():
            inputs = made.example(size)
            wanted = made.reference(*inputs.values())
        found = graph.run({name: value_of(x.numpy()) for name, x in inputs.items()})
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        for name, w, f in zip(graph.outputs, wanted, found, strict=True):
            expected, given = w.numpy(), array_of(f)
            apart = float(np.linalg.norm(expected - given) / max(float(np.linalg.norm(expected)), 1e-6))
            if not apart <= TOLERANCE[precision]:
                raise CheckpointError(
                    f"{made.graph.name}: {name} of ONNX Runtime is {apart:.1e} of its size from PyTorch's, "
                    f"{TOLERANCE[precision]:.0e} are allowed; nothing was written"
                )
            largest = max(largest, apart)
    return largest
