"""Reading a checkpoint of the transformers library: its config, its weights and its processor, and no code of it."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as MODELS
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES as PROCESSORS
from transformers.processing_utils import ProcessorMixin

from galago.checkpoint.config_file import read_json
from galago.checkpoint.tensors import check_finite, read_tensors
from galago.errors import CheckpointError, quoted
from galago.families import ModelFiles

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

VERSION = transformers.__version__
BESIDE_THE_TABLE = {"BlipForQuestionAnswering"}
"""Classes that write text about an image, and that the library lists under another task."""
IMAGES_ALONE = {"vision-encoder-decoder"}
"""model_types without a processor of their own: an image processor and a tokenizer, each of any kind."""
MAX_PIXELS = 1280 * 28 * 28
"""Of an image, for models that see it in its own size: a photograph's sixteen thousand tokens fit in no context here,
and take minutes on a CPU. It is what Qwen2-VL's authors advise."""
LISTED = 3
"""Names of tensors that an error lists."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what the library raises of a file into a CheckpointError."""
    try:
        yield
    except ImportError as error:
        lacks = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{what}: {lacks}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


def read_config(folder: Path) -> PreTrainedConfig:
    """The config of a checkpoint, checked by the library. Raises CheckpointError for a model that it does not have."""
    raw = read_json(folder / "config.json")
    kind = raw.get("model_type")
    names = {*MODELS.values(), *BESIDE_THE_TABLE}
    if kind not in MODELS or not names & {*raw.get("architectures", ()), MODELS[kind]}:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {quoted(kind)}, of which transformers "
            f"{VERSION} has no model that writes text about images"
        )
    if kind == "florence2" and raw.part("vision_config").get("model_type") == "davit":
        raise CheckpointError(
            "this is Florence-2 as its authors published it, which needs code of theirs; take the same weights in the "
            "layout of transformers (florence-community/Florence-2-base or -large)"
        )
    if isinstance(scheme := raw.get("quantization_config"), Mapping):
        method = quoted(scheme.get("quant_method"))
        raise CheckpointError(f"the weights are quantised by {method}; take the checkpoint that they were made of")
    with explained(str(folder / "config.json")):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class that its config names, or else the one that writes text for its model_type."""
    named = next((name for name in config.architectures or () if name in {*MODELS.values(), *BESIDE_THE_TABLE}), None)
    found: type[PreTrainedModel] = getattr(transformers, named or MODELS[config.model_type])
    return found


def parameters_of(files: ModelFiles) -> int:
    """The parameters of a checkpoint, as the headers of its files tell. Raises CheckpointError, for pickles too."""
    if pickled := next((file.name for file in files.weights if file.suffix != ".safetensors"), None):
        raise CheckpointError(f"{pickled} is not read: models that transformers runs are read from .safetensors alone")
    return sum(tensor.numel() for _, tensor in read_tensors(files.weights))


def check_weights(model: PreTrainedModel) -> None:
    """Raise CheckpointError, naming the tensor, where a weight is no number. Reads all of them."""
    for name, tensor in model.named_parameters():
        check_finite(name, tensor)


def load_model(
    files: ModelFiles, config: PreTrainedConfig, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, list[str]]:
    """The model in this type (None: as it is stored), on the CPU, and the names of tensors that nothing reads.

    As they are stored, weights stay in the files until they are used. Raises CheckpointError, naming tensors, where
    some are missing or of other shapes.
    """
    tensors = dict(read_tensors(files.weights))
    if dtype is None:
        dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32)
    with explained(files.name):
        model, report = model_class(config).from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
        if (files.tokenizer.parent / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(files.tokenizer.parent, local_files_only=True)
    if missing := sorted(report["missing_keys"]):
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise CheckpointError(f"tensors are missing: {', '.join(missing[:LISTED])}{more}")
    for name, given, wanted in report["mismatched_keys"]:
        raise CheckpointError(f"tensor {name} has shape {tuple(given)}, the config asks for {tuple(wanted)}")
    return model.eval(), sorted(report["unexpected_keys"])


@dataclass(frozen=True)
class ImageProcessor:
    """What makes tensors of images, for models that read no text, and the tokenizer of what they write."""

    image_processor: Any
    tokenizer: Any

    def __call__(self, images: Any, return_tensors: str) -> Any:
        return self.image_processor(images, return_tensors=return_tensors)


def load_processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin | ImageProcessor:
    """What makes tensors of images and texts. Its part for videos, which needs torchvision, is left out."""
    named: Mapping[str, Any] = next(
        (
            read
            for name in ("processor_config", "preprocessor_config", "tokenizer_config")
            if "processor_class" in (read := read_json(folder / f"{name}.json"))
        ),
        {},
    )
    if config.model_type in IMAGES_ALONE:
        with explained(f"{folder}: its processor"):
            return ImageProcessor(_part("image_processor", folder), _part("tokenizer", folder))
    kind: Any = getattr(transformers, str(named.get("processor_class") or PROCESSORS.get(config.model_type)), None)
    if not is_processor(kind):
        raise CheckpointError(f"{folder}: transformers has no processor for the model_type {config.model_type}")
    with explained(f"{folder}: its processor"):
        names = kind.get_attributes()
        if "video_processor" not in names:
            made = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        else:
            parts = [_part(name, folder) for name in names]
            settings, _ = kind.get_processor_dict(folder, local_files_only=True)
            made = _without_videos(kind).from_args_and_dict(parts, settings)
        size = getattr(made.image_processor, "size", None) or {}
        if (size.get("longest_edge") or 0) > MAX_PIXELS:  # of those that count pixels, not the side's
            size["longest_edge"] = MAX_PIXELS
        return made


def is_processor(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, ProcessorMixin)


def _part(name: str, folder: Path) -> Any:
    if name == "video_processor":
        return None
    auto = AutoTokenizer if "tokenizer" in name else AutoImageProcessor
    return auto.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _without_videos(kind: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The same processor, which minds no missing part for videos."""

    def check(self: ProcessorMixin, name: str, part: Any) -> Any:
        return None if part is None else kind.check_argument_for_proper_class(self, name, part)

    return type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__init__": kind.__init__})
