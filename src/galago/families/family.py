"""The interface of a model family to the rest of Galago."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from galago.checkpoint.packed import TensorTable
from galago.engine.step import StepModel
from galago.errors import ModelNotFound
from galago.families import FAMILIES, ModelFiles
from galago.families.work import Work
from galago.media.timeline import FrameSampling
from galago.precision import Precision
from galago.request import Detail, Skill

if TYPE_CHECKING:
    import torch


class LoadedModel(StepModel, Protocol):
    """A model in memory."""

    @property
    def revision(self) -> str:
        """The published state whose behaviour it has."""
        ...

    @property
    def device(self) -> "torch.device": ...
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

    def work(self, size: tuple[int, int], frames: int, detail: Detail) -> Work | None:
        """The operations for an image of this width and height, or a clip of so many frames, and for an answer; None
        where they are not known."""
        ...


class Load(Protocol):
    def __call__(
        self,
        files: ModelFiles,
        *,
        precision: Precision,
        device: "torch.device",
        revision: str | None = None,
        variants: Path | None = None,
    ) -> LoadedModel: ...


@dataclass(frozen=True)
class Outline:
    """The properties of a checkpoint that its files give without its weights, and how to read those."""

    revision: str
    shapes: Mapping[str, tuple[int, ...]]
    """of its tensors, by their names in a checkpoint"""
    head: str
    """the tensor with a row or a number for each token of the vocabulary that the logits come from"""
    end: int
    """the token that ends an answer"""
    kv_values: int
    """numbers that a position has as keys and values"""
    context: int
    """positions that fit"""
    table: TensorTable
    """its tensors by our names"""
    read: Callable[[], Iterable[tuple[str, "torch.Tensor"]]]
    """gives them one by one, as they are stored"""
    exact: frozenset[str] = frozenset()
    """tensors of `shapes` that stay float32"""


@dataclass(frozen=True)
class Blueprint:
    """The model that a checkpoint of random weights is made for; `config` is a config.json, or empty for the family's
    sizes."""

    name: str
    config: Mapping[str, Any]
    tokenizer: Path
    family: str
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    """a preprocessor_config.json, or empty"""
    control: tuple[str, ...] = ()
    """control tokens that the tokenizer lacks"""


@dataclass(frozen=True)
class Family:
    """The functions of a model family. All raise CheckpointError for files that do not fit."""

    load: Load
    """read a checkpoint"""
    outline: Callable[[ModelFiles], Outline]
    blueprint: Callable[[str, ModelFiles], Blueprint] | None = None
    """of a model of the catalogue that is not here, with the tokenizer of one that is; None where none is listed"""


def family(name: str) -> Family:
    """The family of this name. Raises ModelNotFound."""
    if name not in FAMILIES:
        raise ModelNotFound(f"models of the family {name} cannot be run by this version")
    found: Family = import_module(FAMILIES[name].module).FAMILY
    return found
