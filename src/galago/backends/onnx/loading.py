"""The ONNX backend: our engine over a model whose forward passes ONNX Runtime computes."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from galago.backends.backend import Facts
from galago.backends.onnx.decoder import OnnxModel
from galago.backends.onnx.layout import Exported, read_folder
from galago.backends.onnx.sessions import Graph, runtime
from galago.choices import KV_BYTES, check_device, check_precision, check_profile
from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.errors import InvalidRequest, UnsupportedTask, quoted
from galago.families.text_model import kv_values
from galago.store.catalog import Entry, Local
from galago.store.hub import blaming
from galago.system.device import CPU, pick_threads, threads_warning

WEIGHTS_HELD = {"float32": 1.3, "int8": 2.6}
"""How many times their files ONNX Runtime holds weights, at most, as measured: beside those of products with whole
numbers it keeps a copy in its own order."""
OVERHEAD = 200 << 20
"""Bytes that are reckoned beside the weights: Python, ONNX Runtime, pictures and activations."""


class Onnx(Engine):
    """An engine together with the facts of its model, as a Backend."""

    def __init__(self, model: Any, exported: Exported, limits: Limits | None, threads: int, notes: list[str]) -> None:
        super().__init__(model, limits, threads)
        self.facts = Facts(
            name=model.name,
            identity=model.identity,
            revision=model.revision,
            precision=exported.precision,
            device=str(CPU),
            kernels=f"ONNX Runtime {runtime().__version__}",
            skills=model.skills,
            video_sampling=model.video_sampling,
            threads=threads,
            fallbacks=tuple(notes),
            weights_bytes=sum(file.stat().st_size for file in exported.all_files),
        )


def load(
    name: str,
    *,
    precision: str | None = None,
    profile: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    variants: Path | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    limits: Limits | None = None,
) -> Onnx:
    """See galago.load. Precision and revision are those that the folder was exported with."""
    check_precision(precision)
    check_profile(profile)
    _check_device(device)
    exported = read_folder(Path(name))
    if precision not in (None, "auto", exported.precision):
        raise InvalidRequest(
            f"{exported.name} holds {exported.precision} graphs and cannot run in {precision}; export it anew",
            "precision",
        )
    if variants is not None:
        raise UnsupportedTask("a model that runs as ONNX graphs has no LoRA variants")
    notes = [warning for warning in [threads_warning(threads)] if warning]
    chosen = pick_threads(threads)
    graphs = {part: Graph(file, chosen) for part, file in exported.graphs.items()}
    with blaming(exported.name, exported.folder):
        model = _family(exported).load(exported.files, graphs, exported.precision, revision)
    return Onnx(model, exported, limits, chosen, notes)


def describe(name: str) -> Entry:
    """What an exported folder holds, without its weights. Raises CheckpointError."""
    exported = read_folder(Path(name))
    files = exported.files
    with blaming(exported.name, exported.folder):
        model: OnnxModel = _family(exported).load(files, {}, exported.precision, None)
    sizes = model.text_sizes
    weights = sum(file.stat().st_size for file in exported.all_files)
    return Entry(
        id=exported.name,
        description="",
        license="",
        precisions=(exported.precision,),
        source=Local(exported.folder, (*exported.all_files, files.tokenizer)),
        parameters=exported.parameters,
        backend="onnx",
        family=exported.family,
        revision=exported.revision,
        # Keys and values are float32 in each precision, whatever those of our own engine take.
        kv_values=kv_values(sizes) * 4 // KV_BYTES[exported.precision],
        context=sizes.max_context,
        counted={exported.precision: int(weights * WEIGHTS_HELD[exported.precision]) + OVERHEAD},
    )


def kernels(precision: str, device: str | None) -> tuple[str, list[str]]:
    """What computes the graphs."""
    _check_device(device)
    return f"ONNX Runtime {runtime().__version__}", []


def _family(exported: Exported) -> Any:
    return import_module(f"galago.backends.onnx.{exported.family}")


def _check_device(device: str | None) -> None:
    check_device(device)
    if device not in (None, "auto", "cpu"):
        raise InvalidRequest(f"ONNX graphs run on the processor, not on {quoted(device)}; use auto or cpu", "device")
