"""Any repository of the hub as a model: which of its files are one, and the commit at which they stay.

A branch or tag is looked up when it is first used, or pulled again; from then on its commit is, without the network.
"""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from galago.checkpoint.config_file import read_json
from galago.errors import CheckpointError, quoted
from galago.families import ModelFiles
from galago.store import gguf
from galago.store.catalog import Hosted, Published, Remote, entries
from galago.store.checkpoint_folder import weights_among
from galago.store.foreign import BESIDE as BESIDE_FOREIGN
from galago.store.foreign import is_foreign

NAME = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w./-]*))?"
    r"(?::(?P<file>\w[\w./-]*\.gguf|(?:I?Q\d\w*|BF16|F16|F32)))?",
    re.ASCII | re.I,
)
COMMIT = re.compile(r"[0-9a-f]{40}")
TOKENIZER = "tokenizer.json"
BESIDE = (
    TOKENIZER,
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)
"""What is read beside weights, where it is there."""
PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Repository:
    """A repository and the branch, tag or commit that is meant, and of several GGUF files which."""

    repo: str
    revision: str = "main"
    file: str | None = None
    """its name, or how its weights are stored: Q4_K_M"""

    @property
    def name(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"{self.repo}{at}{f':{self.file}' if self.file else ''}"

    @property
    def commit(self) -> str | None:
        """The commit that is used, once it was looked up."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        with contextlib.suppress(OSError):
            return self._ref.read_text().strip()
        return None

    def pin(self, commit: str) -> None:
        """Use this commit from now on. Where the cache keeps it is that of the hub's client."""
        if commit != self.revision:
            self._ref.parent.mkdir(parents=True, exist_ok=True)
            self._ref.write_text(commit)

    @property
    def folder(self) -> Path | None:
        """The folder of what is here of that commit; None where nothing is."""
        return self.snapshot if self.commit and self.snapshot.is_dir() else None

    @property
    def snapshot(self) -> Path:
        """Where the client of the hub keeps what it has of that commit."""
        return self._storage / "snapshots" / str(self.commit)

    @property
    def is_here(self) -> bool:
        """Whether something is here of what is meant, so that nothing is downloaded to tell of it."""
        return self.folder is not None if self.file is None else self.gguf_pair is not None

    @property
    def gguf_pair(self) -> ModelFiles | None:
        """The GGUF model with its projector, if both are here."""
        folder = self.folder
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf")] if folder else []
        if folder is None or not (self.file or gguf.holds_model(os.listdir(folder))):
            return None
        with contextlib.suppress(CheckpointError):
            return gguf.files_of_pair(folder, gguf.named_model(self.file, names, self.name), names, self.name, None)
        return None

    @property
    def gguf_models(self) -> "list[Repository]":
        """Each of the GGUF models that are here."""
        names = [f.relative_to(self.folder).as_posix() for f in self.folder.rglob("*.gguf")] if self.folder else []
        return [replace(self, file=name) for name in gguf.models_among(names)]

    def gguf_files(self, commit: str, names: list[str]) -> list[Remote] | None:
        """Of these names the files of the GGUF model; None of a repository of other weights. Raises CheckpointError."""
        if not (self.file or gguf.holds_model(names)):
            return None
        try:
            model = gguf.named_model(self.file, names, self.name)
            wanted = [*gguf.parts_of(model, names), gguf.projector_among(model, names)]
        except CheckpointError as error:
            told = str(error)
            raise CheckpointError(told if told.startswith(self.name) else f"{self.name}: {told}") from None
        return [Remote(self.repo, commit, name) for name in wanted]

    def listed(self) -> tuple[str, list[str]]:
        """The commit that the hub has now, and the names of its files. Raises what the hub's client raises."""
        from huggingface_hub import HfApi

        found = HfApi().model_info(self.repo, revision=self.revision)
        return str(found.sha), [file.rfilename for file in found.siblings or ()]

    def wanted(self, commit: str, names: list[str]) -> tuple[list[Remote], list[Remote]]:
        """Of these names what is read before the weights, and the weights. Raises CheckpointError."""
        files = [Path(self.name, name) for name in names if "/" not in name]
        pickled = next((file.name for file in files if file.suffix in PICKLES), None)
        weights = [file for file in files if file.suffix == ".safetensors"]
        if not weights and pickled:
            raise CheckpointError(
                f"{self.name}: {pickled} is a pickle, which can run code when it is read, and there is no "
                ".safetensors: ask its author for one, or download it yourself and name its folder"
            )
        chosen = weights_among(Path(self.name), weights, names)
        return (
            [Remote(self.repo, commit, name) for name in BESIDE if name in names],
            [Remote(self.repo, commit, file.name) for file in chosen],
        )

    def weights_in(self, folder: Path) -> tuple[Path, ...]:
        """The weights in a folder of the cache, of .safetensors alone. Raises CheckpointError."""
        names = [file.name for file in folder.iterdir()]
        return weights_among(folder, sorted(folder.glob("*.safetensors")), names)

    def is_whole(self, folder: Path, offline: bool) -> bool:
        """Whether all is there that there is; `offline` leaves open what nobody has looked for."""
        with contextlib.suppress(CheckpointError):
            self.weights_in(folder)
            looked = beside(read_json(folder / "config.json"))
            return offline or all((folder / name).is_file() or self._missing(folder, name).exists() for name in looked)
        return False

    def note_missing(self, folder: Path, names: list[str]) -> None:
        """Remember, as the hub's client does, which files the repository does not have."""
        for name in beside(read_json(folder / "config.json")):
            if name not in names:
                self._missing(folder, name).parent.mkdir(parents=True, exist_ok=True)
                self._missing(folder, name).touch()

    def _missing(self, folder: Path, name: str) -> Path:
        return self._storage / ".no_exist" / folder.name / name

    @property
    def _storage(self) -> Path:
        from huggingface_hub import constants

        return Path(constants.HF_HUB_CACHE, f"models--{self.repo.replace('/', '--')}")

    @property
    def _ref(self) -> Path:
        return self._storage / "refs" / self.revision


def beside(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What is read beside the weights of a checkpoint with this config, where it is there."""
    return (*BESIDE, *BESIDE_FOREIGN) if is_foreign(config) else BESIDE


def tensors_of(weights: Iterable[Remote]) -> frozenset[str]:
    """The names of tensors in files on the hub, of which only the beginnings are fetched; none if they are damaged.

    Raises what the hub's client raises.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    names: set[str] = set()
    with contextlib.suppress(SafetensorsParsingError):  # told by who reads the whole
        for r in weights:
            names |= HfApi().parse_safetensors_file_metadata(r.repo, r.file, revision=r.revision).tensors.keys()
    return frozenset(names)


def published(source: Published) -> Repository:
    """The repository of a model of the catalogue."""
    found = repository(source.repository)
    assert found, f"{source.repository} is no name of a repository"
    return found


def repository(name: str) -> Repository | None:
    """What owner/name or owner/name@revision means, or either with :FILE; None for any other name."""
    found = NAME.fullmatch(name)
    return Repository(found["repo"], found["revision"] or "main", found["file"]) if found else None


def shared_tokenizer(family: str, revision: str | None) -> Remote:
    """That of a family's published model, whose repositories have none that is theirs. Raises CheckpointError."""
    for entry in entries():
        match entry.source:
            case Hosted(weights, tokenizer) if (
                tokenizer and entry.family == family and revision in (None, entry.revision)
            ):
                if tokenizer.repo != weights[0].repo:
                    return tokenizer
    raise CheckpointError(f"{TOKENIZER} is missing, and models of the family {quoted(family)} share none")


def in_cache() -> Iterator[Repository]:
    """All that a branch or tag names in the hub's cache, models or not."""
    from huggingface_hub import constants

    for refs in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/refs")):
        repo = refs.parent.name.removeprefix("models--").replace("--", "/", 1)
        for ref in sorted(refs.rglob("*")):
            if ref.is_file() and (found := repository(f"{repo}@{ref.relative_to(refs).as_posix()}")):
                yield found
