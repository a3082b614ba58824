"""The native backend: our own engine over models of the families in families/."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from galago.backends.backend import Facts
from galago.backends.memory_estimate import estimated_peak, usual_precision
from galago.checkpoint.packed import bits_of
from galago.choices import PRECISIONS, check_precision, check_profile
from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.errors import InvalidRequest
from galago.families import ModelFiles
from galago.families.family import LoadedModel, family
from galago.nn.footprint import footprint
from galago.precision import pick_precision
from galago.precision.quantised import fallbacks, linear_kernels
from galago.store import hub
from galago.store.catalog import Entry, Local, entry_of, with_precision
from galago.store.packing import packed_copy
from galago.system.device import pick_device, pick_threads, threads_warning, with_threads


class Native(Engine):
    """An engine together with the facts of its model, as a Backend."""

    def __init__(
        self,
        model: LoadedModel,
        limits: Limits | None = None,
        threads: int | None = None,
        notes: Sequence[str] = (),
        commit: str | None = None,
    ) -> None:
        """`notes` say what is slower, larger or otherwise than it could be or was asked for."""
        weights = footprint(model.weights)
        super().__init__(model, limits, threads)
        self.facts = Facts(
            name=model.name,
            identity=model.identity,
            revision=model.revision,
            precision=model.precision.name,
            device=str(model.device),
            kernels=linear_kernels(model.precision, model.device),
            skills=model.skills,
            video_sampling=model.video_sampling,
            threads=self.threads,
            fallbacks=(*fallbacks(model.device, model.precision.bits), *notes),
            weights_bytes=weights.bytes,
            mapped_bytes=weights.mapped,
            commit=commit,
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
) -> Native:
    """See galago.load."""
    cut = filter(None, [threads_warning(threads)])
    threads = pick_threads(threads)
    where = pick_device(device)
    check_precision(precision)  # a wrong name is told before a download
    check_profile(profile)
    files = hub.locate(name, progress=progress)
    with hub.blaming(files.name, files.source):
        packed = bits_of(files.weights)
    wanted = with_precision(name)[1] if precision in (None, "auto") else precision
    if wanted is None:
        wanted = usual_precision(entry_of(name) or _entry(files, revision), profile, where.type)
    chosen = pick_precision(wanted, where)
    if packed and chosen.bits != packed:
        raise InvalidRequest(f"{files.name} holds int{packed} weights and cannot run in {chosen.name}", "precision")
    with with_threads(threads), hub.blaming(files.name, files.source):
        whole = packed_copy(files, chosen.name) if chosen.bits else files
        load = family(files.family).load
        made = load(whole, precision=chosen, device=where, revision=revision, variants=variants)
    return Native(made, limits, threads, [*cut, *whole.notes], files.commit)


def describe(name: str) -> Entry:
    """What a folder, weights file or repository holds, without its weights; a repository is downloaded if need be.

    Raises ModelNotFound, CheckpointError or DownloadError.
    """
    return _entry(hub.locate(name))


def kernels(precision: str, device: str | None) -> tuple[str, list[str]]:
    """The kernels that would compute the linear maps, and what is slower than it could be."""
    where = pick_device(device)
    chosen = pick_precision(precision, where)
    return linear_kernels(chosen, where), fallbacks(where, chosen.bits)


def _entry(files: ModelFiles, revision: str | None = None) -> Entry:
    with hub.blaming(files.name, files.source):
        bits = bits_of(files.weights)
        outline = family(files.family).outline(replace(files, revision=revision or files.revision))
    size = sum(f.stat().st_size for f in files.weights)
    return Entry(
        id=files.name,
        description="",
        license="",
        precisions=(f"int{bits}",) if bits else PRECISIONS,
        source=Local(files.source or files.weights[0].parent, (*files.weights, files.tokenizer)),
        parameters=sum(map(math.prod, outline.shapes.values())),
        family=files.family,
        revision=outline.revision,
        commit=files.commit,
        kv_values=outline.kv_values,
        context=outline.context,
        counted={f"int{bits}": estimated_peak(size, 1)} if bits else {},
    )
