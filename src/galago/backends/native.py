"""Our own engine over models of the families that it knows."""

from collections.abc import Callable, Sequence
from pathlib import Path

from galago import hub
from galago.backend import Facts
from galago.choices import check_precision, check_profile
from galago.engine.engine import Engine
from galago.engine.limits import Limits
from galago.errors import InvalidRequest
from galago.families.family import Loaded, family
from galago.needs import precision_of
from galago.nn.device import pick_device, pick_threads, threads_cut, with_threads
from galago.nn.footprint import footprint
from galago.nn.forked import computed
from galago.packing import packed_copy
from galago.precision import pick_precision
from galago.precision.packed import bits_of
from galago.precision.quantised import described, fallbacks


class Native(Engine):
    """An engine with the facts of its model: the first Backend."""

    def __init__(
        self, model: Loaded, limits: Limits | None = None, threads: int | None = None, notes: Sequence[str] = ()
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
            kernels=described(model.precision, model.device),
            skills=model.skills,
            video_sampling=model.video_sampling,
            threads=self.threads,
            fallbacks=(*fallbacks(model.device, model.precision.bits), *notes),
            weights_bytes=weights.bytes,
            mapped_bytes=weights.mapped,
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
    cut = filter(None, [threads_cut(threads)])
    threads = pick_threads(threads)
    where = pick_device(device)
    check_precision(precision)  # a wrong name is told before a download
    check_profile(profile)
    files = hub.locate(name, progress=progress)
    kind = family(files.family)
    with hub.blaming(files.name, files.source):
        packed = bits_of(files.weights)
    wanted = precision_of(name, precision=precision, profile=profile, device=where.type)
    chosen = pick_precision(wanted, where)
    if packed and chosen.bits != packed:
        raise InvalidRequest(f"{files.name} holds int{packed} weights and cannot run in {chosen.name}", "precision")

    def loaded() -> tuple[Loaded, tuple[str, ...]]:
        with with_threads(threads), hub.blaming(files.name, files.source):
            whole = packed_copy(files, chosen.name) if chosen.bits else files
            return kind.load(whole, precision=chosen, device=where, revision=revision, variants=variants), whole.notes

    made, notes = computed(loaded)
    return Native(made, limits, threads, [*cut, *notes])
