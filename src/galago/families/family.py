"""The families of models that can be run: what the rest of Galago asks of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from galago.engine.step import StepModel
from galago.errors import ModelNotFound
from galago.media.timeline import FrameSampling
from galago.precision import Precision
from galago.request import Skill

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from galago.hub import Files

    Progress = Callable[[int, int], None] | None


class Loaded(StepModel, Protocol):
    """A model in memory."""

    @property
    def revision(self) -> str:
        """The published state whose behaviour it has."""
        ...

    @property
    def precision(self) -> Precision: ...
    @property
    def weights(self) -> Any:
        """A tree of dataclasses with its tensors."""
        ...

    @property
    def skills(self) -> frozenset[type[Skill]]: ...
    @property
    def video_sampling(self) -> FrameSampling | None:
        """Which frames of a video it was trained to look at; None where it looks at images only."""
        ...


class Load(Protocol):
    def __call__(
        self,
        files: "Files",
        *,
        precision: Precision,
        device: "torch.device",
        revision: str | None = None,
        variants: Path | None = None,
        progress: "Progress" = None,
    ) -> Loaded: ...


@dataclass(frozen=True)
class Outline:
    """What a checkpoint's files say without its weights."""

    revision: str
    shapes: Mapping[str, tuple[int, ...]]
    """of its tensors, by their names in a checkpoint"""
    head: str
    """the tensor with a row or a number for each token of the vocabulary, that decides of the next"""
    end: int
    """the token that ends an answer"""
    kv_values: int
    """numbers that a position has as keys and values"""
    context: int
    """positions that fit"""
    exact: frozenset[str] = frozenset()
    """tensors that stay float32"""


@dataclass(frozen=True)
class Family:
    """All raise CheckpointError for files that do not fit."""

    load: Load
    """read a checkpoint"""
    outline: "Callable[[Files], Outline]"
    pack: "Callable[[Files, int, Path, Progress], None]"
    """write the packed form (see precision/packed.py) of a checkpoint with so many bits"""


NAMES = ("moondream", "smolvlm")


def family(name: str) -> Family:
    """The family of this name. Raises ModelNotFound."""
    if name not in NAMES:
        raise ModelNotFound(f"models of the family {name} cannot be run by this version")
    found: Family = import_module(f"galago.families.{name}.model").FAMILY
    return found
