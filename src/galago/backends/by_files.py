"""Models that are named by a path or a repository: their files say which backend runs them."""

from collections.abc import Callable, Sequence
from typing import Any

from galago.backends import backend
from galago.choices import check_device, check_precision, check_profile
from galago.store import hub
from galago.store.catalog import Entry
from galago.store.checkpoint_folder import is_onnx
from galago.store.foreign import FOREIGN
from galago.store.gguf import GGUF
from galago.system.progress import Progress


def load(
    name: str,
    *,
    precision: str | None = None,
    profile: str | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> backend.Backend:
    """See galago.load."""
    check_precision(precision)  # what is wrong with these is told before a download
    check_profile(profile)
    check_device(device)
    load = _loader(name, progress).load
    return load(name, precision=precision, profile=profile, device=device, progress=progress, **options)


def describe(name: str) -> Entry:
    """What a folder, weights file or repository holds, without its weights; a repository is downloaded if need be.

    Raises ModelNotFound, CheckpointError or DownloadError.
    """
    return _loader(name).describe(name)


def kernels(precision: str, device: str | None) -> tuple[str, Sequence[str]]:
    """Those of our own engine; an entry of describe() names the backend that has others."""
    return backend.loader(backend.NATIVE).kernels(precision, device)


def _loader(name: str, progress: Progress | None = None) -> backend.Loader:
    if is_onnx(name):
        return backend.loader(backend.ONNX)
    if (named := hub.remote(name)) and named.file:
        return backend.loader(GGUF)  # which looks for its program before it downloads anything
    family = hub.locate(name, progress=progress).family
    return backend.loader(family if family in (FOREIGN, GGUF) else backend.NATIVE)
