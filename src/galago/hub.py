"""Finding a model's files: a folder, a single file, the bundled model, or a download kept in the hub's cache.

Only weights, tokenizer.json, config.json and preprocessor_config.json are read. Code that a repository ships is
never fetched or run.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from galago.catalog import Bundled, Hosted, Remote, entries, find, with_precision
from galago.errors import CheckpointError, DownloadError, InvalidRequest, ModelNotFound, quoted

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are there."""

FAMILIES = {"moondream1": "moondream", "smolvlm": "smolvlm", "idefics3": "smolvlm"}
"""Our family for each `model_type` of a config.json."""
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class Files:
    """What is needed to load one model. `revision` may be unknown.

    `config` is its config.json, `preprocessor` its preprocessor_config.json; empty where there is none.

    `precision` is what the model's name asked for, as moondream2-int8 does.
    """

    name: str
    family: str
    weights: tuple[Path, ...]
    tokenizer: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    precision: str | None = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


def locate(name_or_path: str | Path, *, progress: Progress | None = None, offline: bool | None = None) -> Files:
    """The files of a model of the catalogue, downloaded where needed, or of a folder or weights file.

    A folder holds model.safetensors (or one other checkpoint), tokenizer.json and what its family has of
    config.json and preprocessor_config.json; a weights file has the others beside it. Names of the catalogue
    come first: write ./name for a folder of the same name. What is already in the cache is used without a look
    at the network. Downloads show a bar on a terminal unless `progress` is given; `offline` defaults to
    HF_HUB_OFFLINE.

    Raises ModelNotFound, CheckpointError (something lacks or cannot be read) or DownloadError.
    """
    path = Path(os.path.expanduser(name_or_path))
    _, precision = with_precision(str(name_or_path))
    try:
        entry = find(str(name_or_path))
    except ModelNotFound:
        # Unlike methods of Path these do not mind names that no file can have.
        if os.path.isdir(path):
            return _local(path, path.resolve().name, _weights_in(path))
        if os.path.isfile(path):
            if path.suffix not in SUFFIXES:
                raise CheckpointError(f"{path.name} cannot be read; {', '.join(SUFFIXES)} can") from None
            return _local(path.parent, path.stem, (path,))
        if path.suffix in SUFFIXES or str(name_or_path).startswith((".", "/", "~")):
            raise ModelNotFound(f"no folder or file {path}") from None
        raise
    if isinstance(entry.source, Bundled):
        folder = bundled(entry.source)
        return replace(_local(folder, entry.id, _weights_in(folder), entry.revision), precision=precision)
    _download(entry.id, [r for r in entry.source.files if not _cached(r)], progress, offline)
    source = entry.source
    weights, tokenizer = tuple(_required(r) for r in source.weights), _required(source.tokenizer)
    config, preprocessor = (_json(_required(r)) if r else {} for r in (source.config, source.preprocessor))
    return Files(entry.id, entry.family, weights, tokenizer, config, entry.revision, precision, preprocessor)


def installed() -> dict[str, int]:
    """Bytes on disk by id, for the models of the catalogue whose files are all here."""
    found = {}
    for entry in entries():
        if isinstance(entry.source, Bundled):
            folder = bundled(entry.source)
            paths = [f for f in folder.glob("*") if f.is_file()] if (folder / "tokenizer.json").is_file() else []
        else:
            cached = [_cached(r) for r in entry.source.files]
            paths = [p for p in cached if p] if all(cached) else []
        if paths:
            found[entry.id] = sum(p.stat().st_size for p in paths)
    return found


def remove(name: str) -> int:
    """Delete a downloaded model; the bytes freed. Files that another installed model needs stay.

    Raises ModelNotFound if it is not in the catalogue or not installed, InvalidRequest for a bundled model.
    """
    from huggingface_hub import constants, scan_cache_dir

    entry = find(name)
    if isinstance(entry.source, Bundled):
        raise InvalidRequest(f"{entry.id} is part of galago and cannot be removed", "model")
    here = installed()
    others = [e for e in entries() if e.id != entry.id and e.id in here]
    needed = {r for e in others if isinstance(e.source, Hosted) for r in e.source.files}
    paths = {p for r in entry.source.files if r not in needed and (p := _cached(r))}
    if not paths:
        raise ModelNotFound(f"{entry.id} is not installed")
    cache = scan_cache_dir(constants.HF_HUB_CACHE)
    kept = [f for repo in cache.repos for rev in repo.revisions for f in rev.files if f.file_path in paths]
    doomed = cache.delete_files(*kept)
    doomed.execute()
    return doomed.expected_freed_size


def discard_partial() -> None:
    """Delete what this process has begun to download, for when it ends while a thread still waits for the network.

    The hub client never goes on with such a file. Where the system does not tell of open files they stay.
    """
    from huggingface_hub import constants

    for link in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):
            file = link.readlink()
            if file.suffix == ".incomplete" and file.is_relative_to(Path(constants.HF_HUB_CACHE).resolve()):
                file.unlink()


# --- what galago itself makes ----------------------------------------------------------------

RANDOM = "-random"
"""At the end of the name of a checkpoint of random weights, so that it is not taken for the model of its shapes."""


def cache_folder() -> Path:
    """Where galago keeps what it makes: GALAGO_CACHE, or galago in the user's cache folder."""
    chosen = os.environ.get("GALAGO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{base}/galago").expanduser()


def random_folder() -> Path:
    """Where the random checkpoints of `galago bench --random` lie, each in a folder of its name."""
    return cache_folder().resolve() / "random"


def random_checkpoints() -> dict[str, int]:
    """Bytes on disk by name, for the random checkpoints that are kept."""
    folders = sorted(f for f in random_folder().glob(f"*{RANDOM}") if f.is_dir())
    return {folder.name: sum(f.stat().st_size for f in folder.iterdir()) for folder in folders}


def remove_random(name: str) -> int:
    """Delete a random checkpoint; the bytes freed, 0 where there is none. Raises CheckpointError."""
    size = random_checkpoints().get(name, 0)
    if size:
        try:
            shutil.rmtree(random_folder() / name)
        except OSError as error:
            raise CheckpointError(f"cannot remove {random_folder() / name}: {error.strerror or error}") from error
    return size


# --- local folders ---------------------------------------------------------------------------


def bundled(source: Bundled) -> Path:
    """The folder of a checkpoint inside the package."""
    return Path(str(files("galago").joinpath("assets", source.folder)))


def _weights_in(folder: Path) -> tuple[Path, ...]:
    for name in ("model.safetensors", "weights.safetensors"):
        if (folder / name).is_file():
            return (folder / name,)
    found = sorted(f for f in folder.glob("*") if f.suffix in SUFFIXES and "lora" not in f.name.lower())
    shards = [f for f in found if f.name.startswith("model-") and "-of-" in f.name]
    if shards:
        count = shards[0].stem.rpartition("-of-")[2]
        if not count.isdigit() or len(shards) != int(count):
            raise CheckpointError(f"{folder}: {len(shards)} of {count} parts of the model are there")
        return tuple(shards)
    if len(found) == 1:
        return (found[0],)
    if found:
        raise CheckpointError(f"{folder}: more than one checkpoint; name the file to load, as {found[0].name}")
    raise CheckpointError(f"{folder}: no model.safetensors, nor any other {', '.join(SUFFIXES)} file")


def _local(folder: Path, name: str, weights: tuple[Path, ...], revision: str | None = None) -> Files:
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{folder}: tokenizer.json is missing; put the model's own beside its weights")
    config, preprocessor = (_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    kind = config.get("model_type") or next(iter(FAMILIES))
    if kind not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise CheckpointError(f"{folder}: model_type {quoted(kind)} is not supported; supported are {known}")
    stated = revision or config.get("revision")
    return Files(name, FAMILIES[kind], weights, tokenizer, config, stated, preprocessor=preprocessor)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold a JSON object")
    return config


# --- downloads -------------------------------------------------------------------------------


def _cached(remote: Remote) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(remote.repo, remote.file, revision=remote.revision)
    return Path(found) if isinstance(found, str) else None


def _required(remote: Remote) -> Path:
    path = _cached(remote)
    if path is None:
        raise DownloadError(f"{remote.file} of {remote.repo} vanished from the cache; try again")
    return path


def _download(name: str, remotes: Sequence[Remote], progress: Progress | None, offline: bool | None) -> None:
    if not remotes:
        return
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE if offline is None else offline:
        raise DownloadError(f"{name} is not installed, and offline mode (HF_HUB_OFFLINE) forbids fetching it")
    found = []
    for r in remotes:
        with _explained(name, r):
            found.append((r, get_hf_file_metadata(hf_hub_url(r.repo, r.file, revision=r.revision))))
    total = sum(meta.size or 0 for _, meta in found)
    _check_space(name, total, Path(constants.HF_HUB_CACHE))
    with _shown(name) if progress is None else contextlib.nullcontext(progress) as tell:
        done = 0
        for r, meta in found:
            bar = _counter(tell, done, total)
            with _explained(name, r):
                path = Path(hf_hub_download(r.repo, r.file, revision=r.revision, tqdm_class=bar))
                # Another process that fetched it at the same time may have found it damaged, and deleted it.
                right = _matches(path, meta.etag)
            if not right:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise DownloadError(f"{name}: {r.file} arrived damaged (its checksum differs); try again")
            done += meta.size or 0
            tell(done, total)


def _counter(tell: Progress, before: int, total: int) -> Any:
    """A class with as much of tqdm's face as the hub client uses, that only counts bytes."""

    class Counter:
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            self.n = initial

        def update(self, n: float = 1) -> None:
            self.n += int(n)
            tell(min(before + self.n, total), total)

        def ignore(self, *args: Any, **kwargs: Any) -> None:
            """Words, and bytes on the wire (update_transfer), which compression makes fewer than what is counted."""

        update_transfer = set_transfer_postfix_str = set_postfix_str = set_description = refresh = close = ignore

        def __enter__(self) -> "Counter":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    return Counter


@contextlib.contextmanager
def _shown(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"Downloading {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _check_space(name: str, needed: int, cache: Path) -> None:
    folder = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{name} needs {needed / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def check(files: Files) -> None:
    """Read downloaded weights again, which takes seconds for each gigabyte: are they what the hub has?

    The hub's cache calls a large file by its SHA-256. Raises CheckpointError.
    """
    for path in files.weights:
        digest = path.resolve().name
        if path.is_symlink() and len(digest) == 64 and not _matches(path, digest):
            helps = f"run galago models remove {files.name}, and try again"
            raise CheckpointError(f"{path} is damaged: its checksum is not the hub's; {helps}")


def _matches(path: Path, etag: str | None) -> bool:
    """The hub's etag is the SHA-256 of a large file, git's blob SHA-1 of a small one, or says nothing."""
    if etag is None or len(etag) not in (40, 64):
        return True
    digest = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == etag


@contextlib.contextmanager
def _explained(name: str, remote: Remote) -> Iterator[None]:
    """Turn whatever the hub client raises into one line that says what to do."""
    try:
        yield
    except Exception as error:
        raise DownloadError(f"{name}: {_reason(error, remote)}") from error


def _reason(error: Exception, remote: Remote) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError
    from huggingface_hub.errors import RepositoryNotFoundError as RepoNotFound
    from huggingface_hub.errors import RevisionNotFoundError as RevisionNotFound

    what = f"{remote.file} of {remote.repo} at {remote.revision}"
    match error:
        case GatedRepoError():
            return f"{remote.repo} is gated: accept its terms on its page, then set HF_TOKEN to your access token"
        case RepoNotFound():
            return f"{constants.ENDPOINT} has no {remote.repo}, or keeps it private: set HF_TOKEN if you may read it"
        case RevisionNotFound():
            return f"{remote.repo} has no revision {remote.revision}"
        case EntryNotFoundError() if isinstance(error, HfHubHTTPError):
            return f"{what} does not exist"
        case HfHubHTTPError():
            return f"{constants.ENDPOINT} answered {error.response.status_code} for {what}; try again later"
        case OSError(errno=errno.ENOSPC):
            return "the disk is full: make room, or set HF_HOME to a folder on a larger disk"
    why = (str(error) or type(error).__name__).splitlines()[0]
    return f"could not fetch {what} from {constants.ENDPOINT} ({why}); check the network and try again"
