"""Downloading single files into the cache of the hub's client, checked; errors say what helps."""

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from galago.errors import DownloadError
from galago.store.catalog import Remote
from galago.system.progress import Progress, progress_bar


def cached(remote: Remote) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(remote.repo, remote.file, revision=remote.revision)
    return Path(found) if isinstance(found, str) else None


def required(remote: Remote) -> Path:
    path = cached(remote)
    if path is None:
        raise DownloadError(f"{remote.file} of {remote.repo} vanished from the cache; try again")
    return path


def is_offline(offline: bool | None) -> bool:
    """Whether nothing may be fetched: as is said, or else by HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE if offline is None else offline


def check_online(name: str, offline: bool | None, lacks: str = "is not installed") -> None:
    """Raise DownloadError for a model that lacks files where none may be fetched."""
    if is_offline(offline):
        raise DownloadError(
            f"{name} {lacks}, and offline mode (HF_HUB_OFFLINE) forbids fetching it; "
            f"galago models pull {name} does, where there is a network"
        )


def download(
    name: str, remotes: Sequence[Remote], progress: Progress | None, offline: bool | None, *, whole: bool = False
) -> None:
    """Fetch files of a model, all that it has if `whole`. Raises DownloadError."""
    if not remotes:
        return
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    lacking = ", ".join(f"{r.file} of {r.repo}" for r in remotes)
    check_online(name, offline, "is not installed" if whole else f"lacks {lacking}")
    found = []
    for r in remotes:
        with explained(name, r.repo, r.revision, r.file):
            found.append((r, get_hf_file_metadata(hf_hub_url(r.repo, r.file, revision=r.revision))))
    total = sum(meta.size or 0 for _, meta in found)
    _check_space(name, total, Path(constants.HF_HUB_CACHE))
    bar = progress_bar(f"Downloading {name}", of_bytes=True, stays=True)
    with bar if progress is None else contextlib.nullcontext(progress) as tell:
        done = 0
        for r, meta in found:
            bar = _counter(tell, done, total)
            with explained(name, r.repo, r.revision, r.file):
                path = Path(hf_hub_download(r.repo, r.file, revision=r.revision, tqdm_class=bar))
                # Another process that fetched it at the same time may have found it damaged, and deleted it.
                right = matches(path, meta.etag)
            if not right:
                path.resolve().unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                raise DownloadError(f"{name}: {r.file} arrived damaged (its checksum differs); try again")
            done += meta.size or 0
            tell(done, total)


def delete(paths: set[Path]) -> int:
    """Delete these files of the hub's cache; the bytes freed."""
    from huggingface_hub import constants, scan_cache_dir

    cache = scan_cache_dir(constants.HF_HUB_CACHE)
    doomed = cache.delete_files(
        *(f for repo in cache.repos for rev in repo.revisions for f in rev.files if f.file_path in paths)
    )
    doomed.execute()
    return doomed.expected_freed_size


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


def matches(path: Path, etag: str | None) -> bool:
    """The hub's etag is the SHA-256 of a large file, git's blob SHA-1 of a small one, or says nothing."""
    if etag is None or len(etag) not in (40, 64):
        return True
    digest = hashlib.sha256() if len(etag) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == etag


@contextlib.contextmanager
def explained(name: str, repo: str, revision: str, file: str = "") -> Iterator[None]:
    """Turn whatever the hub client raises into one line that says what to do."""
    try:
        yield
    except Exception as error:
        raise DownloadError(f"{name}: {_reason(error, repo, revision, file)}") from error


def _reason(error: Exception, repo: str, revision: str, file: str) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError
    from huggingface_hub.errors import RepositoryNotFoundError as RepoNotFound
    from huggingface_hub.errors import RevisionNotFoundError as RevisionNotFound

    what = f"{file} of {repo} at {revision}" if file else f"{repo} at {revision}"
    match error:
        case GatedRepoError():
            return f"{repo} is gated: accept its terms on its page, then set HF_TOKEN to your access token"
        case RepoNotFound():
            return f"{constants.ENDPOINT} has no {repo}, or keeps it private: set HF_TOKEN if you may read it"
        case RevisionNotFound():
            return f"{repo} has no revision {revision}"
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
