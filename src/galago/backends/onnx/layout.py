"""The folder that holds a model as ONNX graphs.

It is laid out as onnx-community and transformers.js lay them out: onnx/vision_encoder.onnx, onnx/embed_tokens.onnx and
onnx/decoder_model_merged.onnx, whose int8 forms end in _int8, beside config.json and tokenizer.json. MANIFEST says
which graphs there are and how they are put together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from galago.checkpoint.config_file import OBJECT, TEXT, one_of, read_json, whole
from galago.errors import CheckpointError
from galago.families import FAMILIES, ModelFiles
from galago.store.checkpoint_folder import ONNX_MANIFEST
from galago.store.hub import files_beside

FORMAT = 1
SUFFIXES = {"float32": "", "int8": "_int8"}
"""How the names of the graphs' files end, by precision."""
GRAPHS = {
    "moondream": (
        "vision_encoder",
        "vision_projection",
        "embed_tokens",
        "decoder_model_merged",
        "coordinate_encoder",
        "coordinate_decoder",
        "size_encoder",
        "size_decoder",
    ),
    "smolvlm": ("vision_encoder", "embed_tokens", "decoder_model_merged"),
}
"""The graphs of a model, by its family."""


@dataclass(frozen=True)
class Exported:
    """A folder with a model's graphs, and what its manifest says."""

    folder: Path
    family: str
    revision: str
    precision: str
    parameters: int
    graphs: Mapping[str, Path]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def files(self) -> ModelFiles:
        """The files, as loaders take them: the graphs stand for the weights."""
        return files_beside(self.folder, self.family, tuple(self.graphs.values()), self.revision)

    @property
    def all_files(self) -> tuple[Path, ...]:
        """All files with weights, those beside the graphs too."""
        return tuple(file for graph in self.graphs.values() for file in (graph, data_file(graph)) if file.is_file())


def file_name(graph: str, precision: str) -> str:
    return f"onnx/{graph}{SUFFIXES[precision]}.onnx"


def data_file(graph: Path) -> Path:
    """The file of a graph's weights, where they are not in its own: one file can hold 2 GB."""
    return graph.with_name(f"{graph.name}_data")


def read_folder(folder: Path) -> Exported:
    """Read an exported folder's manifest, and see that its files are there. Raises CheckpointError."""
    folder = folder.expanduser().resolve()
    given = read_json(folder / ONNX_MANIFEST)
    given.needed("format", one_of(FORMAT))
    family = given.needed("family", one_of(*FAMILIES))
    if family not in GRAPHS:
        raise CheckpointError(f"{folder}: models of the family {family} cannot be run as ONNX graphs")
    precision = given.needed("precision", one_of(*SUFFIXES))
    given.needed("graphs", OBJECT)
    listed = given.part("graphs")
    graphs = {name: folder / file_name(name, precision) for name in GRAPHS[family]}
    for name, file in graphs.items():
        members = listed.part(name)
        needed = [file, *([data_file(file)] if members.take("data", whole(0, 1 << 50), 0) else [])]
        for one in needed:
            if not one.is_file():
                raise CheckpointError(f"{one} is missing; copy all of the folder, or export the model anew")
        if file.stat().st_size != members.needed("bytes", whole(1, 1 << 50)):
            raise CheckpointError(f"{file} is not what was exported, or was copied in part; copy it anew")
    parameters = given.needed("parameters", whole(1, 1 << 50))
    return Exported(folder, family, given.needed("revision", TEXT), precision, parameters, graphs)
