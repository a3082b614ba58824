"""A SmolVLM2 of a few thousand random weights, written to a folder as a real checkpoint is."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from galago.backends.native import Native
from galago.families.smolvlm.config import make_config
from galago.families.smolvlm.loading import load_smolvlm
from galago.families.smolvlm.model import SmolVLM
from galago.families.smolvlm.weights import checkpoint_tensors
from galago.model import Model
from galago.precision import pick_precision
from galago.store import hub

CONTROL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<global-img>", "<fake_token_around_image>", "<image>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
    "<end_of_utterance>",
]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCAB = len(ALPHABET) + len(CONTROL)
IMAGE_ID = len(ALPHABET) + CONTROL.index("<image>")
END_ID = VOCAB - 1
TOKENS = 4
"""of a frame"""
CPU = torch.device("cpu")
WARM = {"temperature": 1.0, "seed": 7, "max_tokens": 12}

CONFIG: dict[str, Any] = {
    "model_type": "smolvlm",
    "image_token_id": IMAGE_ID,
    "scale_factor": 2,
    "pad_token_id": 128002,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "text_config": {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "max_position_embeddings": 1024,
    },
}
PREPROCESSOR: dict[str, Any] = {
    "size": {"longest_edge": 128},
    "max_image_size": {"longest_edge": 32},
    "do_image_splitting": True,
    "video_sampling": {"fps": 1, "max_frames": 8},
}


def tokenizer() -> Tokenizer:
    """One token for each byte, and the control tokens."""
    made = Tokenizer(models.BPE({word: i for i, word in enumerate([*ALPHABET, *CONTROL])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in CONTROL])
    return made


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the hub's names, which never say that they are done."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for source in checkpoint_tensors(make_config(CONFIG, PREPROCESSOR)):
        scale = 1.0 if len(source.shape) == 1 else 2.0 * source.shape[-1] ** -0.5
        made[source.name] = torch.randn(source.shape, generator=generator) * scale
    made["lm_head.weight"][END_ID] = 0
    return made


def write(
    folder: Path,
    *,
    weights: dict[str, Tensor] | None = None,
    config: dict[str, Any] | None = None,
    preprocessor: dict[str, Any] | None = None,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in (weights or tensors()).items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR if preprocessor is None else preprocessor))
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def load(folder: Path, precision: str = "float32") -> SmolVLM:
    return load_smolvlm(hub.locate(folder), precision=pick_precision(precision, CPU), device=CPU)


def open_model(folder: Path, precision: str = "float32") -> Model:
    return Model(Native(load(folder, precision)))


def picture(seed: int = 0, size: tuple[int, int] = (64, 32)) -> Image.Image:
    made = Image.new("RGB", size)
    generator = torch.Generator().manual_seed(seed)
    made.frombytes(bytes(torch.randint(0, 256, (size[0] * size[1] * 3,), generator=generator).tolist()))
    return made
