"""Estimates of the memory that a model takes, before it is loaded."""

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from galago.backends.backend import loader_of
from galago.choices import KV_BYTES, WEIGHT_BYTES, check_device, check_precision, check_profile, default_precision
from galago.errors import InvalidRequest, ModelNotFound
from galago.store.catalog import Entry, Route, entry_of, lookup, with_precision

if TYPE_CHECKING:
    from galago.engine.limits import Limits

OVERHEAD = 512 << 20
"""Bytes that are reckoned beside the weights where nothing was measured: PyTorch and activations."""
SLACK = 1.1
"""Weights are reckoned so much larger there: some are kept in a larger type than the precision says."""


class RunOptions(TypedDict, total=False):
    """How a model is to run, as for galago.load."""

    precision: str | None
    profile: str | None
    device: str | None


def memory_needed(name: str, *, limits: "Limits | None" = None, **options: Unpack[RunOptions]) -> int:
    """Bytes at the peak of one request, and what the image cache and keys and values may come to hold.

    The first is the catalogue's figure, or else an estimate on the safe side; the others are those of the `limits`,
    where they leave keys and values open what the longest request may need. PyTorch itself is in each model's figure,
    so several models in one process need a little less than the sum of theirs. Nothing is downloaded
    but a repository that is not here. Raises ModelNotFound, CheckpointError, DownloadError or InvalidRequest.
    """
    from galago.engine.limits import Limits

    entry, held = model_entry(name), limits or Limits()
    peak = peak_bytes(entry, precision_of(name, **options))
    if not entry.kv_values:
        return peak
    kv = max_request_bytes(name, **options) if held.kv_bytes is None else held.kv_bytes
    return peak + held.prefix_bytes + held.embedding_bytes + kv


def max_request_bytes(name: str, **options: Unpack[RunOptions]) -> int:
    """Bytes of keys and values of a request that fills the model's context; 0 where it keeps none."""
    entry = model_entry(name)
    return entry.kv_values * entry.context * KV_BYTES[precision_of(name, **options)] if entry.kv_values else 0


def model_entry(name: str) -> Entry:
    """The catalogue's entry of a model, or one made from its files. Raises ModelNotFound or CheckpointError."""
    return entry_of(name) or loader_of(name).describe(name)


def precision_of(name: str, **options: Unpack[RunOptions]) -> str:
    """The precision that galago.load uses: as its argument, the model's name or its file says, or the default.

    Raises ModelNotFound, CheckpointError or InvalidRequest.
    """
    precision = options.get("precision")
    check_precision(precision)
    check_profile(options.get("profile"))
    if precision is not None and precision != "auto":
        return precision
    return with_precision(name)[1] or _default(name, options)


def _default(name: str, options: RunOptions) -> str:
    """The precision of a model, or of the models of a route, where neither an argument nor its name says one."""
    if isinstance(route := lookup(name), Route):
        # One that leads nowhere is told by routing.py.
        found = (entry_of(model) for way in route.ways for model in way.models)
        smallest = min((entry.parameters for entry in found if entry), default=0)
        return default_precision(smallest, _device_type(options.get("device")), options.get("profile"))
    return usual_precision(model_entry(name), options.get("profile"), options.get("device"))


def usual_precision(entry: Entry, profile: str | None, device: str | None) -> str:
    """The precision of a model where nobody names one."""
    if len(entry.precisions) == 1:
        return entry.precisions[0]
    return default_precision(entry.parameters, _device_type(device), profile)


def _device_type(device: str | None) -> str:
    """cpu, cuda or mps; PyTorch is asked only where none is named."""
    if device not in (None, "auto"):
        check_device(device)
        return device.partition(":")[0]
    from galago.system.device import device_here

    return device_here(None).type


def peak_bytes(entry: Entry, precision: str) -> int:
    """Bytes at the peak of one request: measured, or else estimated on the safe side."""
    known = entry.memory.get(precision) or entry.counted.get(precision)
    return known or estimated_peak(entry.parameters, WEIGHT_BYTES[precision])


def estimated_peak(parameters: int, weight_bytes: float) -> int:
    """Bytes at the peak of one request, on the safe side where nothing was measured."""
    return int(parameters * weight_bytes * SLACK) + OVERHEAD


def precisions_of(name: str) -> tuple[str, ...]:
    """The precisions that a model can be loaded in; none where there is no such model."""
    try:
        return model_entry(name).precisions
    except ModelNotFound:
        return ()


def canonical_name(name: str, **options: Unpack[RunOptions]) -> str:
    """One name for all names of the same model or route: its id, with a precision if that is not the usual one.

    A path becomes the real one; a name that is neither in the catalogue nor a path stays as it is.
    """
    if not isinstance(name, str) or not name:
        raise InvalidRequest("a model must be a name or a path, as a text that is not empty", "model")
    found = lookup(name)
    if found is None:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name
    named = with_precision(name)[1]
    if options.get("precision") or named in (None, _default(found.id, options)):
        return found.id
    return f"{found.id}-{named}"
