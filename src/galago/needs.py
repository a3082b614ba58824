"""What a model will take in memory, told before it is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from galago.backend import loader_of
from galago.catalog import Entry, Route, lookup, with_precision
from galago.choices import (
    KV_BYTES,
    WEIGHT_BYTES,
    check_device,
    check_precision,
    check_profile,
    default_precision,
)
from galago.errors import InvalidRequest, ModelNotFound

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

    chosen = precision_of(name, precision=precision, profile=profile, device=device)
    entry, held = described(name), limits or Limits()
    peak = peak_of(entry, chosen)
    if not entry.kv_values:
        return peak
    kv = _longest(entry, chosen) if held.kv_bytes is None else held.kv_bytes
    return peak + held.prefix_bytes + held.embedding_bytes + kv


def longest_request(
    name: str, *, precision: str | None = None, profile: str | None = None, device: str | None = None
) -> int:
    """Bytes of keys and values of a request that fills the model's context; arguments and errors as above."""
    return _longest(described(name), precision_of(name, precision=precision, profile=profile, device=device))


def _longest(entry: Entry, precision: str) -> int:
    return entry.kv_values * entry.context * KV_BYTES[precision] if entry.kv_values else 0


def described(name: str) -> Entry:
    """What is known of a model without loading it. Raises ModelNotFound or CheckpointError."""
    found = lookup(name)
    return found if isinstance(found, Entry) else loader_of(name).describe(name)


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
    if isinstance(route := lookup(name), Route):
        # One that leads nowhere is told by routing.py.
        found = (lookup(model) for way in route.ways for model in way.models)
        smallest = min((entry.parameters for entry in found if isinstance(entry, Entry)), default=0)
        return default_precision(smallest, _kind(device), profile)
    return usual_precision(described(name), profile, device)


def usual_precision(entry: Entry, profile: str | None, device: str | None) -> str:
    """The precision of a model where nobody names one."""
    if len(entry.precisions) == 1:
        return entry.precisions[0]
    return default_precision(entry.parameters, _kind(device), profile)


def _kind(device: str | None) -> str:
    """cpu, cuda or mps; PyTorch is asked only where none is named."""
    if device not in (None, "auto"):
        check_device(device)
        return device.partition(":")[0]
    from galago.nn.device import pick_device

    return pick_device(None).type


def peak_of(entry: Entry, precision: str) -> int:
    """Bytes at the peak of one request: measured, or else counted on the safe side."""
    known = entry.memory.get(precision) or entry.counted.get(precision)
    return known or counted_peak(entry.parameters, WEIGHT_BYTES[precision])


def counted_peak(parameters: int, weight_bytes: float) -> int:
    """Bytes at the peak of one request, on the safe side where nothing was measured."""
    return int(parameters * weight_bytes * SLACK) + OVERHEAD


def precisions_of(name: str) -> tuple[str, ...]:
    """The precisions that a model can be loaded in; none where there is no such model."""
    try:
        return described(name).precisions
    except ModelNotFound:
        return ()


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
