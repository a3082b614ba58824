"""Finding a model's files: a folder, a single file, the bundled model, or a download kept in the hub's cache.

Only weights, tokenizer.json, config.json and what says how images and videos are prepared are read. Code that a
repository ships is never fetched or run.
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from galago.checkpoint.config_file import TEXT, Members, one_of, read_json
from galago.checkpoint.tensors import Damaged
from galago.errors import CheckpointError, DownloadError, InvalidRequest, ModelNotFound
from galago.families import ModelFiles, by_model_type
from galago.store.catalog import Address, Bundled, Entry, Hosted, Local, Remote, Route, entries, find, lookup
from galago.store.checkpoint_folder import SUFFIXES, is_part, weights_in, weights_of
from galago.system.progress import Progress, progress_bar


def locate(name_or_path: str | Path, *, progress: Progress | None = None, offline: bool | None = None) -> ModelFiles:
    """The files of a model of the catalogue, downloaded where needed, or of a folder or weights file.

    A folder holds model.safetensors (or one other checkpoint, maybe in parts), tokenizer.json and what its family has
    of config.json and preprocessor_config.json or processor_config.json; a weights file has the others beside it. Names
    of the catalogue come first: write ./name for a folder of the same name. What is already in the cache is used
    without a look at the network. Downloads show a bar on a terminal unless `progress` is given; `offline` defaults to
    HF_HUB_OFFLINE.

    Raises ModelNotFound, CheckpointError (something lacks or cannot be read) or DownloadError.
    """
    path = Path(os.path.expanduser(name_or_path))
    try:
        entry = find(str(name_or_path))
    except ModelNotFound:
        # Unlike methods of Path these do not mind names that no file can have.
        if os.path.isdir(path):
            return replace(_local(path, path.resolve().name, weights_in(path)), source=path.resolve())
        if os.path.isfile(path):
            name = path.resolve().parent.name if is_part(path) else path.stem
            return replace(_local(path.parent, name, weights_of(path)), source=path.resolve())
        if path.suffix in SUFFIXES or str(name_or_path).startswith((".", "/", "~")):
            raise ModelNotFound(f"no folder or file {path}") from None
        raise
    if isinstance(entry.source, Bundled):
        folder = bundled(entry.source)
        return _local(folder, entry.id, weights_in(folder), entry.revision)
    source = entry.source
    if not isinstance(source, Hosted) or source.tokenizer is None:
        raise CheckpointError(f"{entry.id} is run by {entry.backend}: there is no checkpoint of it")
    fetch(entry, progress, offline)
    weights, tokenizer = tuple(_required(r) for r in source.weights), _required(source.tokenizer)
    with blaming(entry.id, None):
        config, preprocessor = (read_json(_required(r)) if r else {} for r in (source.config, source.preprocessor))
    return ModelFiles(entry.id, entry.family, weights, tokenizer, config, entry.revision, preprocessor)


def check_models(names: Sequence[str | Path], routes: bool = False) -> None:
    """Raise ModelNotFound or CheckpointError unless each is a model (or a route) of the catalogue or a checkpoint."""
    for name in names:
        found = lookup(str(name))
        if found is None or (isinstance(found, Route) and not routes):
            locate(name, offline=True)


def fetch(entry: Entry, progress: Progress | None = None, offline: bool | None = None) -> None:
    """Download what is not here yet of a model of the catalogue, as for locate()."""
    if isinstance(entry.source, Hosted):
        lacking = [r for r in entry.source.files if not _cached(r)]
        _download(entry.id, lacking, progress, offline, whole=len(lacking) == len(entry.source.files))


@contextlib.contextmanager
def blaming(name: str, source: Path | None) -> Iterator[None]:
    """Begin an error of a model's files with the model's name, and end one of a damaged file with what helps.

    `source` is that of the ModelFiles.
    """
    try:
        yield
    except Damaged as error:
        told = f"{name}: {error}"
        if not error.helps:
            pull = f" (galago models remove {name}, then galago models pull {name})" if source is None else ""
            told += f"; download it again{pull}" if pull else "; copy or download it again"
        raise CheckpointError(told) from error
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error


def files_of(entry: Entry) -> tuple[Path, ...] | None:
    """The files of a model; None unless all of them are here."""
    match entry.source:
        case Bundled() as source:
            folder = bundled(source)
            whole = (folder / "tokenizer.json").is_file()
            return tuple(sorted(f for f in folder.glob("*") if f.is_file())) if whole else None
        case Hosted() as source:
            cached = [_cached(r) for r in source.files]
            return tuple(p for p in cached if p) if all(cached) else None
        case Local(_, paths):
            return paths
        case Address():
            return ()


def installed() -> dict[str, int]:
    """Bytes on disk by id, for the models of the catalogue whose files are all here."""
    found = {entry.id: files_of(entry) for entry in entries()}
    return {name: sum(f.stat().st_size for f in files) for name, files in found.items() if files is not None}


def remove(name: str) -> int:
    """Delete a downloaded model; the bytes freed. Files that another installed model needs stay.

    Raises ModelNotFound if it is not in the catalogue or not installed, InvalidRequest for a bundled model.
    """
    from huggingface_hub import constants, scan_cache_dir

    entry = find(name)
    if isinstance(entry.source, Bundled):
        raise InvalidRequest(f"{entry.id} is part of galago and cannot be removed", "model")
    if not isinstance(entry.source, Hosted):
        raise InvalidRequest(f"{entry.id} is not on this machine", "model")
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
    folder = os.path.expanduser(chosen or f"{base}/galago")
    # A user without a home, as containers have: nothing can be kept.
    return Path(os.devnull, "galago") if folder.startswith("~") else Path(folder)


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


def _local(folder: Path, name: str, weights: tuple[Path, ...], revision: str | None = None) -> ModelFiles:
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise CheckpointError(f"{folder}: tokenizer.json is missing; put the model's own beside its weights")
    with blaming(name, folder):
        config = read_json(folder / "config.json")
        kinds = by_model_type()
        # A fine-tune may have no config; a file that a library wrote says what it is of.
        kind = config.take("model_type", one_of(*kinds), None if "text_config" in config else next(iter(kinds)))
        kind = kind or config.needed("model_type", one_of(*kinds))
        stated = revision or config.take("revision", TEXT, None)
        images, videos = _processors(folder)
    return ModelFiles(name, kinds[kind], weights, tokenizer, config, stated, preprocessor=images, video=videos)


def _processors(folder: Path) -> tuple[Members, Members]:
    """What a folder says of how images and videos are prepared: in one file, as transformers 5 saves it, or in each its
    own, as others do."""
    both = read_json(folder / "processor_config.json")
    images, videos = both.part("image_processor"), both.part("video_processor")
    own = (read_json(folder / f"{kind}preprocessor_config.json") for kind in ("", "video_"))
    return tuple(said or other for said, other in zip((images, videos), own, strict=True))  # type: ignore[return-value]


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


def _download(
    name: str, remotes: Sequence[Remote], progress: Progress | None, offline: bool | None, *, whole: bool
) -> None:
    """Fetch files of a model, all that it has if `whole`. Raises DownloadError."""
    if not remotes:
        return
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE if offline is None else offline:
        lacks = "is not installed" if whole else f"lacks {', '.join(f'{r.file} of {r.repo}' for r in remotes)}"
        raise DownloadError(
            f"{name} {lacks}, and offline mode (HF_HUB_OFFLINE) forbids fetching it; "
            f"galago models pull {name} does, where there is a network"
        )
    found = []
    for r in remotes:
        with _explained(name, r):
            found.append((r, get_hf_file_metadata(hf_hub_url(r.repo, r.file, revision=r.revision))))
    total = sum(meta.size or 0 for _, meta in found)
    _check_space(name, total, Path(constants.HF_HUB_CACHE))
    bar = progress_bar(f"Downloading {name}", of_bytes=True, stays=True)
    with bar if progress is None else contextlib.nullcontext(progress) as tell:
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


def _check_space(name: str, needed: int, cache: Path) -> None:
    folder = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(
            f"{name} needs {needed / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB free: "
            "make room, or set HF_HOME to a folder on a larger disk"
        )


def check(files: ModelFiles) -> None:
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
        case OSError(errno=errno.EROFS | errno.EACCES | errno.EPERM):
            where = f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror})"
            return f"{where}: set HF_HOME to a folder that can, or mount one there"
    why = (str(error) or type(error).__name__).splitlines()[0]
    return f"could not fetch {what} from {constants.ENDPOINT} ({why}); check the network and try again"
