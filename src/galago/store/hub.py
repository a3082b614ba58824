"""Finding a model's files: a folder, a single file, the bundled model, or a download kept in the hub's cache.

Only weights, tokenizer.json, config.json and what says how images and videos are prepared are read. Code that a
repository ships is never fetched or run.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from galago.checkpoint.config_file import TEXT, Members, one_of, read_json
from galago.checkpoint.tensors import Damaged, tensor_names
from galago.errors import CheckpointError, DownloadError, InvalidRequest, ModelNotFound
from galago.families import FAMILIES, ModelFiles, by_model_type
from galago.store import gguf
from galago.store.catalog import (
    Address,
    Bundled,
    Entry,
    Hosted,
    Local,
    Published,
    Remote,
    Route,
    entries,
    find,
    is_unsupported,
    lookup,
)
from galago.store.checkpoint_folder import SUFFIXES, is_onnx, is_part, weights_in, weights_of
from galago.store.download import cached, check_online, delete, download, explained, is_offline, matches, required
from galago.store.foreign import BESIDE as BESIDE_FOREIGN
from galago.store.foreign import FOREIGN, check_installed, is_foreign
from galago.store.repository import TOKENIZER, Repository, in_cache, published, repository, shared_tokenizer, tensors_of
from galago.system.progress import Progress


def locate(name_or_path: str | Path, *, progress: Progress | None = None, offline: bool | None = None) -> ModelFiles:
    """The files of a model of the catalogue or a repository, downloaded where needed, or of a folder or weights file.

    A folder holds model.safetensors (or one other checkpoint, maybe in parts), tokenizer.json and what its family has
    of config.json and preprocessor_config.json or processor_config.json; a weights file has the others beside it, and a
    repository (owner/name or owner/name@revision) holds the same. A GGUF file has its projector beside it; one of
    several in a repository is named as owner/name:FILE, or by how it is stored (owner/name:Q4_K_M). Names of the
    catalogue come first, then paths: write ./name for a folder that is called as a model is. What is already in the
    cache is used without a look at the network. Downloads show a bar on a terminal unless `progress` is given;
    `offline` defaults to HF_HUB_OFFLINE.

    Raises ModelNotFound, CheckpointError (something lacks or cannot be read) or DownloadError.
    """
    path = Path(os.path.expanduser(name_or_path))
    try:
        entry = find(str(name_or_path))
    except ModelNotFound:
        # Unlike methods of Path these do not mind names that no file can have.
        if is_onnx(path):
            graphs = f"{path} holds ONNX graphs, which are loaded, served and measured"
            raise CheckpointError(f"{graphs}; for this take the checkpoint that they were made of") from None
        if whole := next((above for above in (path.parent, path.parent.parent) if is_onnx(above)), None):
            raise CheckpointError(f"{path} is a part of a model; name {whole}") from None
        if os.path.exists(path) and (pair := gguf.local_files(path)):
            return pair
        if os.path.isdir(path):
            return replace(_local(path, path.resolve().name, weights_in(path)), source=path.resolve())
        if os.path.isfile(path):
            name = path.resolve().parent.name if is_part(path) else path.stem
            return replace(_local(path.parent, name, weights_of(path)), source=path.resolve())
        named = remote(str(name_or_path))
        is_file = path.suffix in (*SUFFIXES, gguf.SUFFIX) and not (named and named.file)
        if is_file or str(name_or_path).startswith((".", "/", "~")):
            raise ModelNotFound(f"no folder or file {path}") from None
        if named:
            return files_of_repository(named, progress, offline)
        raise
    if isinstance(entry.source, Bundled):
        folder = bundled(entry.source)
        return _local(folder, entry.id, weights_in(folder), entry.revision)
    source = entry.source
    if isinstance(source, Hosted) and source.projector and entry.backend == gguf.GGUF:
        fetch(entry, progress, offline)
        weights = tuple(required(r) for r in source.weights)
        return ModelFiles(entry.id, gguf.GGUF, weights, weights[0], projector=required(source.projector))
    if isinstance(source, Published):
        return replace(files_of_repository(published(source), progress, offline), name=entry.id)
    if not isinstance(source, Hosted) or source.tokenizer is None:
        raise CheckpointError(f"{entry.id} is run by {entry.backend}: there is no checkpoint of it")
    fetch(entry, progress, offline)
    weights, tokenizer = tuple(required(r) for r in source.weights), required(source.tokenizer)
    with blaming(entry.id, None):
        config, preprocessor = (read_json(required(r)) if r else {} for r in (source.config, source.preprocessor))
    return ModelFiles(entry.id, entry.family, weights, tokenizer, config, entry.revision, preprocessor)


def check_models(names: Sequence[str | Path], routes: bool = False) -> None:
    """Raise ModelNotFound or CheckpointError unless each is a model (or a route) of the catalogue or a checkpoint.

    Whether the hub has a repository is not asked.
    """
    for name in names:
        found = lookup(str(name))
        if found is None and is_onnx(name):
            continue
        if (isinstance(found, Route) and not routes) or (found is None and not remote(str(name))):
            locate(name, offline=True)


def remote(name: str) -> Repository | None:
    """The repository that a name means which is neither the catalogue's nor a path's."""
    known = lookup(name) or is_unsupported(name) or os.path.exists(os.path.expanduser(name))
    return None if known else repository(name)


def fetch(entry: Entry, progress: Progress | None = None, offline: bool | None = None) -> None:
    """Download what is not here yet of a model of the catalogue, as for locate()."""
    if isinstance(entry.source, Published):
        files_of_repository(published(entry.source), progress, offline)
    if isinstance(entry.source, Hosted):
        lacking = [r for r in entry.source.files if not cached(r)]
        download(entry.id, lacking, progress, offline, whole=len(lacking) == len(entry.source.files))


def files_of_repository(
    found: Repository, progress: Progress | None = None, offline: bool | None = None, *, anew: bool = False
) -> ModelFiles:
    """The files of a repository, downloaded unless all of them are here.

    With `anew` the branch is looked up, and what it has now is used from then on. Raises as locate().
    """
    if not anew and (pair := found.gguf_pair):
        return pair
    folder = found.folder
    if anew or folder is None or not found.is_whole(folder, is_offline(offline)):
        folder = _fetch(found, progress, offline, anew)
        if pair := found.gguf_pair:
            return pair
    with blaming(found.name, None):
        weights = found.weights_in(folder)
        if (folder / TOKENIZER).is_file():
            return _local(folder, found.name, weights)
        config = read_json(folder / "config.json")
        shared = shared_tokenizer(_family(config, tensor_names(weights)), config.take("revision", TEXT, None))
    download(found.name, [] if cached(shared) else [shared], progress, offline)
    note = f"{found.repo} has no {TOKENIZER}: that of {shared.repo} is used"
    return replace(_local(folder, found.name, weights, tokenizer=required(shared)), notes=(note,))


def _fetch(found: Repository, progress: Progress | None, offline: bool | None, anew: bool) -> Path:
    """Download a repository at the commit that the hub has now: what is small first, as it tells whether to go on.

    A further GGUF file of one that is here is of the same commit, unless `anew`.
    """
    check_online(found.name, offline)
    if found.file and found.commit and not anew:
        _fetch(replace(found, revision=found.commit), progress, offline, anew=True)
        return found.snapshot
    with explained(found.name, found.repo, found.revision):
        commit, names = found.listed()
    if (pair := found.gguf_files(commit, names)) is not None:
        download(found.name, [r for r in pair if not cached(r)], progress, offline)
        found.pin(commit)
        return replace(found, revision=commit).snapshot
    beside, weights = found.wanted(commit, names)
    with explained(found.name, found.repo, commit, weights[0].file):
        tensors = tensors_of(weights)
    at = replace(found, revision=commit)
    download(found.name, [r for r in beside if not cached(r)], lambda done, total: None, offline)
    with blaming(found.name, None):
        config = read_json(at.snapshot / "config.json")
        family = _family(config, tensors)
        if family == FOREIGN:
            weights = [Remote(found.repo, commit, name) for name in BESIDE_FOREIGN if name in names] + weights
        elif tensors and not any(FAMILIES[family].tensor in name for name in tensors):
            raise CheckpointError(f"{min(tensors)} and its other tensors are none of a {family} that can be run here")
        if TOKENIZER not in names:
            shared_tokenizer(family, config.take("revision", TEXT, None))  # or raises
    download(found.name, [r for r in weights if not cached(r)], progress, offline)
    found.note_missing(at.snapshot, names)
    found.pin(commit)
    return at.snapshot


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
            here = [cached(r) for r in source.files]
            return tuple(p for p in here if p) if all(here) else None
        case Published() as source:
            found = published(source)
            if found.folder is None or not found.is_whole(found.folder, offline=True):
                return None
            return tuple(sorted(file for file in found.folder.iterdir() if file.is_file()))
        case Local(_, paths):
            return paths
        case Address():
            return ()


def repositories() -> dict[str, ModelFiles]:
    """Those in the hub's cache that hold all of a model that a family reads, by name; not what the catalogue has."""
    listed = {r.repo for e in entries() if isinstance(e.source, Hosted) for r in e.source.files}
    listed |= {published(e.source).repo for e in entries() if isinstance(e.source, Published)}
    found = {}
    for here in in_cache():
        if here.repo not in listed and here.folder:
            for one in here.gguf_models or [here]:
                with contextlib.suppress(CheckpointError, DownloadError):
                    found[one.name] = files_of_repository(one, offline=True)
    return found


def installed() -> dict[str, int]:
    """Bytes on disk by id, for the models of the catalogue whose files are all here."""
    found = {entry.id: files_of(entry) for entry in entries()}
    return {name: sum(f.stat().st_size for f in files) for name, files in found.items() if files is not None}


def remove(name: str) -> int:
    """Delete a downloaded model; the bytes freed. Files that another installed model needs stay.

    Raises ModelNotFound if there is none or it is not installed, InvalidRequest for a bundled model.
    """
    from huggingface_hub import constants, scan_cache_dir

    known = lookup(name)
    kept = isinstance(known, Entry) and isinstance(known.source, Published) and published(known.source)
    if found := kept or remote(name):
        if not found.commit or not found.is_here:
            raise ModelNotFound(f"{found.name} is not installed")
        if found.file and len(found.gguf_models) > 1 and (pair := found.gguf_pair):
            return delete(set(pair.weights))  # the projector may be another's too
        revision = scan_cache_dir(constants.HF_HUB_CACHE).delete_revisions(found.commit)
        revision.execute()
        return revision.expected_freed_size

    entry = find(name)
    if isinstance(entry.source, Bundled):
        raise InvalidRequest(f"{entry.id} is part of galago and cannot be removed", "model")
    if not isinstance(entry.source, Hosted):
        raise InvalidRequest(f"{entry.id} is not on this machine", "model")
    here = installed()
    others = [e for e in entries() if e.id != entry.id and e.id in here]
    needed = {r for e in others if isinstance(e.source, Hosted) for r in e.source.files}
    paths = {p for r in entry.source.files if r not in needed and (p := cached(r))}
    if not paths:
        raise ModelNotFound(f"{entry.id} is not installed")
    return delete(paths)


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


def _local(
    folder: Path, name: str, weights: tuple[Path, ...], revision: str | None = None, tokenizer: Path | None = None
) -> ModelFiles:
    tokenizer = tokenizer or folder / TOKENIZER
    if not tokenizer.is_file():
        raise CheckpointError(f"{folder}: tokenizer.json is missing; put the model's own beside its weights")
    with blaming(name, folder):
        config = read_json(folder / "config.json")
        family = _family(config, tensor_names(weights))
        stated = revision or config.take("revision", TEXT, None)
        images, videos = _processors(folder)
    return ModelFiles(name, family, weights, tokenizer, config, stated, preprocessor=images, video=videos)


def files_beside(folder: Path, family: str, weights: tuple[Path, ...], revision: str) -> ModelFiles:
    """The files of a folder whose family and weights are known. Raises CheckpointError."""
    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(f"{folder}: {TOKENIZER} is missing; copy all of the folder")
    with blaming(folder.name, folder):
        config, (images, videos) = read_json(folder / "config.json"), _processors(folder)
    tokenizer = folder / TOKENIZER
    return ModelFiles(folder.name, family, weights, tokenizer, config, revision, images, videos, source=folder)


def _family(config: Members, tensors: Iterable[str]) -> str:
    """The family of a checkpoint: by its config's model_type, or else by what its tensors are called.

    FOREIGN for a model of images that has another model_type than those of our families.
    """
    kinds = by_model_type()
    if is_foreign(config):
        check_installed(config)
        return FOREIGN
    if kind := config.take("model_type", one_of(*kinds), None):
        return kinds[kind]
    for name, listed in FAMILIES.items():
        if any(listed.tensor in tensor for tensor in tensors):
            return name
    if "text_config" in config:  # a library wrote it, and says what it is of
        return kinds[config.needed("model_type", one_of(*kinds))]
    return next(iter(FAMILIES))


def _processors(folder: Path) -> tuple[Members, Members]:
    """What a folder says of how images and videos are prepared: in one file, as transformers 5 saves it, or in each its
    own, as others do."""
    both = read_json(folder / "processor_config.json")
    images, videos = both.part("image_processor"), both.part("video_processor")
    own = (read_json(folder / f"{kind}preprocessor_config.json") for kind in ("", "video_"))
    return tuple(said or other for said, other in zip((images, videos), own, strict=True))  # type: ignore[return-value]


def check(files: ModelFiles) -> None:
    """Read downloaded weights again, which takes seconds for each gigabyte: are they what the hub has?

    The hub's cache calls a large file by its SHA-256. Raises CheckpointError.
    """
    for path in files.weights:
        digest = path.resolve().name
        if path.is_symlink() and len(digest) == 64 and not matches(path, digest):
            helps = f"run galago models remove {files.name}, and try again"
            raise CheckpointError(f"{path} is damaged: its checksum is not the hub's; {helps}")
