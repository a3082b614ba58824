"""Models of the catalogue that are installed: files in the hub's cache, as its client keeps them."""

from pathlib import Path

from huggingface_hub import constants

from galago.store.catalog import Hosted, find


def install(name: str, folder: Path | None = None) -> None:
    """Put a model's files into the cache: those of a folder, or empty ones where only their being there counts."""
    source = find(name).source
    assert isinstance(source, Hosted)
    for remote in source.files:
        repo = Path(constants.HF_HUB_CACHE, f"models--{remote.repo.replace('/', '--')}")
        commit = remote.revision.encode().hex().ljust(40, "0")[:40]
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / remote.revision).write_text(commit)
        file = repo / "snapshots" / commit / remote.file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((folder / remote.file).read_bytes() if folder else b"")
