"""What a model will take in memory, told before it is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING

from galago.catalog import Entry, lookup, with_precision
from galago.checkpoint import count_weights
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

    held = limits or Limits()
    kv = held.kv_bytes
    if kv is None:
        kv = longest_request(name, precision=precision, profile=profile, device=device)
    return _peak(name, precision, profile, device) + held.prefix_bytes + held.embedding_bytes + kv


def longest_request(
    name: str, *, precision: str | None = None, profile: str | None = None, device: str | None = None
) -> int:
    """Bytes of keys and values of a request that fills the model's context; arguments and errors as above."""
    from galago.families.family import family
    from galago.hub import blaming, locate
    from galago.nn.device import pick_device
    from galago.precision import pick_precision
    from galago.precision.packed import bits_of

    entry, where = _entry(name), pick_device(device)
    if entry is not None and entry.kv_values is not None and entry.context is not None:
        chosen = pick_precision(precision or with_precision(name)[1], where, profile)
        return entry.kv_values * entry.context * chosen.kv.itemsize
    files = locate(name, offline=True)
    with blaming(files.name, files.source):
        packed, outline = bits_of(files.weights), family(files.family).outline(files)
    chosen = pick_precision(precision or files.precision or (f"int{packed}" if packed else None), where, profile)
    return outline.kv_values * outline.context * chosen.kv.itemsize


def _peak(name: str, precision: str | None, profile: str | None, device: str | None) -> int:
    from galago.hub import blaming, locate
    from galago.nn.device import pick_device
    from galago.precision import pick_precision
    from galago.precision.packed import bits_of

    entry, where = _entry(name), pick_device(device)
    if entry is not None and entry.parameters is not None:
        chosen = pick_precision(precision or with_precision(name)[1], where, profile)
        measured = entry.memory.get(chosen.name)
        return measured or int(entry.parameters * chosen.weight_bytes * SLACK) + OVERHEAD
    files = locate(name, offline=True)
    with blaming(files.name, files.source):
        if bits_of(files.weights):
            weights = float(sum(f.stat().st_size for f in files.weights))
        else:
            count = sum(map(count_weights, files.weights))
            weights = count * pick_precision(precision, where, profile).weight_bytes
    return int(weights * SLACK) + OVERHEAD


def precisions_of(name: str) -> tuple[str, ...]:
    """The precisions that a model can be loaded in; none where there is no such model."""
    from galago.hub import blaming, locate
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
    from galago.nn.device import pick_device
    from galago.precision import pick_precision

    if not isinstance(name, str) or not name:
        raise InvalidRequest("a model must be a name or a path, as a text that is not empty", "model")
    found = lookup(name)
    if found is None:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name
    named = with_precision(name)[1]
    if precision or named in (None, pick_precision(None, pick_device(device), profile).name):
        return found.id
    return f"{found.id}-{named}"


def size_of(count: int) -> str:
    """Bytes in words: 3.9 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _entry(name: str) -> Entry | None:
    found = lookup(name)
    return found if isinstance(found, Entry) else None
