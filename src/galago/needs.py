"""What a model will take in memory, told before it is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from galago.catalog import Entry, Route, lookup, with_precision
from galago.checkpoint import count_weights
from galago.choices import (
    KV_BYTES,
    WEIGHT_BYTES,
    check_device,
    check_precision,
    check_profile,
    default_precision,
)
from galago.errors import InvalidRequest, ModelNotFound
from galago.hub import blaming, locate

if TYPE_CHECKING:
    from galago.engine.limits import Limits

OVERHEAD = 512 << 20
"""Bytes that are reckoned beside the weights where nothing was measured: PyTorch and activations."""
SLACK = 1.1
"""Weights are reckoned so much larger there: some are kept in a larger type than the precision says."""


def memory_needed(
    name: str,
    *,
    precision: str | None = None,
    profile: str | None = None,
    device: str | None = None,
    limits: "Limits | None" = None,
) -> int:
    """Bytes at the peak of one request, and what the image cache and keys and values may come to hold.

    The first is the catalogue's figure, or else an estimate on the safe side; the others are those of the `limits`,
    where they leave keys and values open what the longest request may need. The arguments are those of galago.load, and
    choose the precision as they do there. PyTorch itself is in each model's figure, so several models in one process
    need a little less than the sum of theirs. Nothing is downloaded. Raises ModelNotFound, CheckpointError or
    InvalidRequest.
    """
    from galago.engine.limits import Limits

    held = limits or Limits()
    kv = held.kv_bytes
    if kv is None:
        kv = longest_request(name, precision=precision, profile=profile, device=device)
    return _peak(name, precision, profile, device) + held.prefix_bytes + held.embedding_bytes + kv


def longest_request(
    name: str, *, precision: str | None = None, profile: str | None = None, device: str | None = None
) -> int:
    """Bytes of keys and values of a request that fills the model's context; arguments and errors as above."""
    number = KV_BYTES[precision_of(name, precision=precision, profile=profile, device=device)]
    entry = _entry(name)
    if entry is not None and entry.kv_values is not None and entry.context is not None:
        return entry.kv_values * entry.context * number
    from galago.families.family import family

    files = locate(name, offline=True)
    with blaming(files.name, files.source):
        outline = family(files.family).outline(files)
    return outline.kv_values * outline.context * number


def precision_of(
    name: str, *, precision: str | None = None, profile: str | None = None, device: str | None = None
) -> str:
    """What galago.load computes a model in: what its argument, the model's name or its file says, or the default.

    Raises ModelNotFound, CheckpointError or InvalidRequest.
    """
    check_precision(precision)
    check_profile(profile)
    if precision is not None and precision != "auto":
        return precision
    return with_precision(name)[1] or _default(name, profile, device)


def _default(name: str, profile: str | None, device: str | None) -> str:
    """The precision of a model, or of the models of a route, where neither an argument nor its name says one."""
    match lookup(name):
        case Entry() as entry:
            parameters = entry.parameters
        case Route() as route:
            # One that leads nowhere is told by routing.py.
            found = (_entry(model) for way in route.ways for model in way.models)
            parameters = min((entry.parameters for entry in found if entry), default=0)
        case None:
            from galago.precision.packed import bits_of

            files = locate(name, offline=True)
            with blaming(files.name, files.source):
                if bits := bits_of(files.weights):
                    return f"int{bits}"
                parameters = sum(map(count_weights, files.weights))
    return default_precision(parameters, _kind(device), profile)


def _kind(device: str | None) -> str:
    """cpu, cuda or mps; PyTorch is asked only where none is named."""
    if device not in (None, "auto"):
        check_device(device)
        return device.partition(":")[0]
    from galago.nn.device import pick_device

    return pick_device(None).type


def _peak(name: str, precision: str | None, profile: str | None, device: str | None) -> int:
    chosen, entry = precision_of(name, precision=precision, profile=profile, device=device), _entry(name)
    if entry is not None:
        return peak_of(entry, chosen)
    from galago.precision.packed import bits_of

    files = locate(name, offline=True)
    with blaming(files.name, files.source):
        if bits_of(files.weights):
            return counted_peak(sum(f.stat().st_size for f in files.weights), 1)
        return counted_peak(sum(map(count_weights, files.weights)), WEIGHT_BYTES[chosen])


def peak_of(entry: Entry, precision: str) -> int:
    """Bytes at the peak of one request to a model of the catalogue: measured, or else counted on the safe side."""
    return entry.memory.get(precision) or counted_peak(entry.parameters, WEIGHT_BYTES[precision])


def counted_peak(parameters: int, weight_bytes: float) -> int:
    """Bytes at the peak of one request, on the safe side where nothing was measured."""
    return int(parameters * weight_bytes * SLACK) + OVERHEAD


def precisions_of(name: str) -> tuple[str, ...]:
    """The precisions that a model can be loaded in; none where there is no such model."""
    from galago.precision import NAMES
    from galago.precision.packed import bits_of

    if entry := _entry(name):
        return entry.precisions
    try:
        files = locate(name, offline=True)
    except ModelNotFound:
        return ()
    with blaming(files.name, files.source):
        bits = bits_of(files.weights)
    return (f"int{bits}",) if bits else NAMES


def one_name(name: str, *, precision: str | None = None, profile: str | None = None, device: str | None = None) -> str:
    """The same name for whatever means the same model or route: its id, with a precision if that is not the usual one.

    A path becomes the real one; a name that is neither in the catalogue nor a path stays as it is.
    """
    if not isinstance(name, str) or not name:
        raise InvalidRequest("a model must be a name or a path, as a text that is not empty", "model")
    found = lookup(name)
    if found is None:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name
    named = with_precision(name)[1]
    if precision or named in (None, _default(found.id, profile, device)):
        return found.id
    return f"{found.id}-{named}"


def size_of(count: int) -> str:
    """Bytes in words: 3.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _entry(name: str) -> Entry | None:
    found = lookup(name)
    return found if isinstance(found, Entry) else None
