"""The backend over the transformers library: models of images that no family of ours runs, one request at a time."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from galago.backends.backend import Facts
from galago.backends.memory_estimate import estimated_peak, usual_precision
from galago.backends.queued import QueuedBackend
from galago.choices import WEIGHT_BYTES, check_precision
from galago.engine.limits import Limits
from galago.errors import InvalidRequest
from galago.families import ModelFiles
from galago.families.text_model import identity_of
from galago.precision import BITS, FLOATS, pick_precision
from galago.precision.quantised import fallbacks, linear_kernels
from galago.store import hub
from galago.store.catalog import Entry, Local, with_precision
from galago.store.packed_cache import described
from galago.store.packing import packed_copy
from galago.system.device import pick_device, pick_threads, threads_warning, with_threads
from galago.system.progress import Progress

PRECISIONS = (*FLOATS, "int8")


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
) -> QueuedBackend:
    """See galago.load."""
    from galago.backends.transformers import checkpoint, florence
    from galago.backends.transformers.model import TransformersModel, context_of
    from galago.backends.transformers.prompts import Kind, kind_of
    from galago.backends.transformers.quantised import replace_layers, weights_bytes

    if revision is not None:
        why = "models that transformers runs have no revisions; name a repository's commit as owner/name@commit"
        raise InvalidRequest(why, "revision")
    notes = [warning for warning in [threads_warning(threads)] if warning]
    threads, where = pick_threads(threads), pick_device(device)
    files = hub.locate(name, progress=progress)
    entry = _entry(files)
    named = with_precision(name)[1] if precision in (None, "auto") else precision
    chosen = pick_precision(precision_for(entry, named, profile, where), where)
    with with_threads(threads), hub.blaming(files.name, files.source), torch.inference_mode():
        config = checkpoint.read_config(files.tokenizer.parent)
        processor = checkpoint.load_processor(files.tokenizer.parent, config)
        # Whole numbers are made of the weights as they are stored.
        model, unread = checkpoint.load_model(files, config, None if chosen.bits else chosen.dtype)
        if chosen.bits:
            # A copy has the layers by the names that this version of the library gives them.
            of_version = replace(files, revision=f"transformers {checkpoint.VERSION}")
            packed = packed_copy(of_version, chosen.name, pack=partial(_pack, model))
            kept = packed.weights[0] if packed.weights != files.weights else None
            if kept is None:
                checkpoint.check_weights(model)
            replace_layers(model, chosen.bits, where, chosen.dtype, kept)
            model.to(chosen.dtype)
            notes += packed.notes
        else:
            checkpoint.check_weights(model)
            notes += files.notes
        model.to(where)
    if unread:
        notes.append(f"not all tensors of the checkpoint are read: {unread[0]} is not, and {len(unread) - 1} more")
    kind = Kind(florence.SKILLS) if config.model_type == "florence2" else kind_of(config, processor)
    notes += [kind.note] if kind.note else []
    facts = Facts(
        name=files.name,
        identity=identity_of(files, chosen.name, where),
        revision=files.commit or "unknown",
        precision=chosen.name,
        device=str(where),
        kernels=kernels(chosen.name, device)[0],
        skills=kind.skills,
        threads=threads,
        fallbacks=(*kernels(chosen.name, device)[1], *notes),
        weights_bytes=weights_bytes(model),
        commit=files.commit,
    )
    of_kind = florence.Florence if config.model_type == "florence2" else TransformersModel
    loaded = of_kind(model, processor, kind, where, chosen.dtype, context_of(config))
    return QueuedBackend(loaded, facts, limits)


def precision_for(entry: Entry, precision: str | None, profile: str | None, device: torch.device) -> str:
    """The precision that is asked for, or the usual one of such a model. Raises InvalidRequest for one it lacks."""
    check_precision(precision)
    wanted = usual_precision(entry, profile, device.type) if precision in (None, "auto") else precision
    assert wanted is not None
    if wanted not in entry.precisions:
        raise InvalidRequest(f"{entry.id} cannot run in {wanted}; it can in {', '.join(entry.precisions)}", "precision")
    return wanted


def describe(name: str) -> Entry:
    """What a folder or repository holds, without its weights. Raises ModelNotFound, CheckpointError, DownloadError."""
    return _entry(hub.locate(name))


def kernels(precision: str, device: str | None) -> tuple[str, list[str]]:
    """The kernels that would compute the linear maps, and what is slower than it could be."""
    where = pick_device(device)
    chosen = pick_precision(precision, where)
    return (linear_kernels(chosen, where), fallbacks(where, chosen.bits)) if chosen.bits else ("torch", [])


def _pack(model: torch.nn.Module, files: ModelFiles, precision: str, file: Path, tell: Progress) -> None:
    from galago.backends.transformers.checkpoint import check_weights
    from galago.backends.transformers.quantised import pack_layers

    check_weights(model)
    pack_layers(model, BITS[precision], file, described(files, files.commit or "unknown"), tell)


def _entry(files: ModelFiles) -> Entry:
    from galago.backends.transformers.checkpoint import parameters_of, read_config
    from galago.backends.transformers.model import kv_bytes

    with hub.blaming(files.name, files.source):
        config = read_config(files.tokenizer.parent)
        parameters = parameters_of(files)
    cache = {name: kv_bytes(config, pick_precision(name, torch.device("cpu")).dtype) for name in PRECISIONS}
    return Entry(
        id=files.name,
        description="",
        license="",
        precisions=PRECISIONS,
        source=Local(files.source or files.weights[0].parent, (*files.weights, files.tokenizer)),
        parameters=parameters,
        backend="transformers",
        commit=files.commit,
        counted={name: estimated_peak(parameters, WEIGHT_BYTES[name]) + cache[name] for name in PRECISIONS},
    )
