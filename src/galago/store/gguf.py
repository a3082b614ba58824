"""GGUF files: the weights of llama.cpp, and beside them the projector that lets them see."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from galago.errors import CheckpointError
from galago.families import ModelFiles

GGUF = "llama_server"
"""Stands for a family in the files of such a model: the backend that runs it."""
SUFFIX = ".gguf"
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.I)
"""One of several files that weights are divided into; llama.cpp is given the first."""
QUANT = re.compile(r"(?:^|[-._])((?:I?Q\d\w*?|B?F16|F32))(?=[-.]|$)", re.I)
"""How weights are stored, as names of files say it."""


def is_gguf(name: str | Path) -> bool:
    return str(name).lower().endswith(SUFFIX)


def is_projector(name: str) -> bool:
    return "mmproj" in name.rpartition("/")[2].lower()


def models_among(names: Iterable[str]) -> list[str]:
    """Of names of files those that are models by themselves: no projectors, and of models in parts the first."""
    found = sorted(name for name in names if is_gguf(name) and not is_projector(name))
    return [name for name in found if (part := PART.fullmatch(name)) is None or int(part["number"]) == 1]


def parts_of(model: str, names: Iterable[str]) -> list[str]:
    """All files of a model. Raises CheckpointError where one is missing."""
    part, there = PART.fullmatch(model), set(names)
    if part is None:
        return [model]
    wanted = [f"{part['stem']}-{i:05d}-of-{part['count']}{SUFFIX}" for i in range(1, int(part["count"]) + 1)]
    if missing := [name for name in wanted if name not in there]:
        raise CheckpointError(f"{missing[0]} is missing, one of {len(wanted)} parts of the model")
    return wanted


def projector_among(model: str, names: Iterable[str]) -> str:
    """The projector for a model, the most alike in its name where there are several. Raises CheckpointError."""
    found = sorted(name for name in names if is_gguf(name) and is_projector(name))
    if not found:
        raise CheckpointError(
            f"{model} has no projector beside it (mmproj*.gguf), and sees no images without: "
            "put the one that was published with it into the same folder"
        )
    own, stem = _quant(model), _stem(model)
    # One for this very model before those for others, then one that is stored as it is, then the finest.
    return min(found, key=lambda name: (_stem(name) != stem, _quant(name) != own, "F16" not in name.upper(), name))


def local_files(path: Path) -> ModelFiles | None:
    """The files of a folder with GGUF files, or of one such file; None for what holds other weights.

    Raises CheckpointError.
    """
    folder = path if path.is_dir() else path.parent
    try:
        names = [file.name for file in folder.iterdir() if file.is_file()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    if path.is_dir():
        if not holds_model(names):
            return None
        model, name = only_model(names, str(path)), path.resolve().name
    elif is_gguf(path):
        model, name = path.name, path.stem
    else:
        return None
    if is_projector(model):
        raise CheckpointError(f"{path} is a projector; name the model that it is for")
    return files_of_pair(folder, model, names, name, path.resolve())


def holds_model(names: Iterable[str]) -> bool:
    """Whether names of files are those of GGUF files, and of no other weights."""
    there = list(names)
    return any(map(is_gguf, there)) and not any(name.endswith(".safetensors") for name in there)


def named_model(file: str | None, names: Sequence[str], where: str) -> str:
    """The model of this name among names of files, or the one that is stored so (Q4_K_M), or else the only one.

    Raises CheckpointError, naming what there is.
    """
    if file is None:
        return only_model(names, where)
    found = models_among(names)
    chosen = [name for name in found if name == file or (not is_gguf(file) and _quant(name) == file.upper())]
    if len(chosen) != 1:
        many = "has several of that" if chosen else "is not there"
        raise CheckpointError(f"{where} {many}; there are {_shown(chosen or found)}")
    return chosen[0]


def only_model(names: Sequence[str], where: str) -> str:
    """The one model among names of files. Raises CheckpointError, naming all, where there is none or are several."""
    found = models_among(names)
    if not found:
        raise CheckpointError(f"{where} has no GGUF file but a projector, and no model that it is for")
    if len(found) > 1:
        raise CheckpointError(f"{where} holds several models; name one of {_shown(found)}")
    return found[0]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "none"


def files_of_pair(folder: Path, model: str, names: Sequence[str], name: str, source: Path | None) -> ModelFiles:
    """The files of a model and its projector. Raises CheckpointError."""
    projector = folder / projector_among(model, names)
    weights = tuple(folder / part for part in parts_of(model, names))
    return ModelFiles(name, GGUF, weights, weights[0], source=source, projector=projector)


def _quant(name: str) -> str:
    found = QUANT.findall(name.rpartition("/")[2])
    return found[-1].upper() if found else ""


def _stem(name: str) -> str:
    """The name of a model without what differs between its files."""
    name = re.sub(r"mmproj|model", "", name.rpartition("/")[2], flags=re.I).removesuffix(SUFFIX)
    return QUANT.sub("", name).strip("-._").lower()
