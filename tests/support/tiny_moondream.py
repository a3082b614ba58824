"""A Moondream2 of a few thousand random weights, written to a folder as a real checkpoint is."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from galago.backends.native import Native
from galago.families.moondream.config import REVISIONS, make_config
from galago.families.moondream.loading import load_moondream
from galago.families.moondream.model import Moondream
from galago.families.moondream.weights import shapes
from galago.model import Model
from galago.precision import pick_precision
from galago.store import hub

CONTROL = ["<|endoftext|>", *(f"<|md_reserved_{i}|>" for i in range(9))]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
EOS = {"starmie": 0, "legacy": len(ALPHABET)}
VOCAB = len(ALPHABET) + len(CONTROL)

NESTED: dict[str, Any] = {
    "text": {"dim": 64, "ff_dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": VOCAB, "max_context": 96},
    "vision": {
        "enc_dim": 16,
        "enc_n_layers": 1,
        "enc_n_heads": 2,
        "enc_ff_dim": 16,
        "crop_size": 42,
        "overlap_margin": 0,
        "max_crops": 4,
        "proj_inner_dim": 16,
    },
    "region": {"inner_dim": 16, "coord_feat_dim": 8, "size_feat_dim": 8, "coord_out_dim": 64, "size_out_dim": 128},
}
TEMPLATES = {
    "starmie": {
        "caption": {"short": [1, 20, 2, 21, 3], "normal": [1, 20, 2, 22, 3], "long": [1, 20, 2, 23, 3]},
        "query": {"prefix": [1, 24, 2], "suffix": [3]},
        "detect": {"prefix": [1, 25, 2], "suffix": [3]},
        "point": {"prefix": [1, 26, 2], "suffix": [3]},
    },
    "legacy": {
        "caption": {"short": [20, 21], "normal": [20, 22], "long": [20, 23]},
        "query": {"prefix": [24], "suffix": [25]},
        "detect": {"prefix": [26], "suffix": [27]},
        "point": {"prefix": [28], "suffix": [29]},
    },
}
WARM = {"temperature": 1.0, "seed": 7, "max_tokens": 40}
"""Settings under which the model writes different words; greedily it writes spaces."""
IMAGE = Image.effect_noise((100, 60), 50).convert("RGB")


CPU = torch.device("cpu")
CPU_FLOAT32 = pick_precision("float32", CPU)


def tokenizer(family: str = "starmie", flagged: bool = True) -> Tokenizer:
    """One token for each byte, and the family's control tokens; `flagged` as special or not."""
    words = [*CONTROL, *ALPHABET] if family == "starmie" else [*ALPHABET, CONTROL[0]]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    control = [AddedToken(word, special=flagged, normalized=False) for word in words if word in CONTROL]
    (made.add_special_tokens if flagged else made.add_tokens)(control)
    return made


def tensors(family: str = "starmie", seed: int = 0, eos_bias: float = -100.0) -> dict[str, Tensor]:
    """Random weights under the hub's names. By default the model never says that it is done."""
    revision = REVISIONS["2025-06-21" if family == "starmie" else "2025-01-09"]
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes(make_config(config(family)["config"], revision)).items():
        scale = 1.0 if len(shape) == 1 or "features" in name else 3.0 * shape[-1] ** -0.5
        if name == "text.lm_head.weight":
            scale /= 10
        made[f"model.{name}"] = torch.randn(shape, generator=generator) * scale
    bias = made["model.text.lm_head.bias"].zero_()
    bias[EOS[family]] = eos_bias
    # Spaces, so that text has words.
    bias[ALPHABET.index("Ġ") + (len(CONTROL) if family == "starmie" else 0)] = 4.0
    return made


def lora(rank: int = 2) -> dict[str, Tensor]:
    """A LoRA variant under its original names."""
    generator = torch.Generator().manual_seed(2)
    made = {}
    for i in range(2):
        for name, (n_out, n_in) in {
            "mixer.Wqkv": (192, 64),
            "mixer.out_proj": (64, 64),
            "mlp.fc1": (64, 64),
            "mlp.fc2": (64, 64),
        }.items():
            key = f"text_model.transformer.h.{i}.{name}.parametrizations.weight.0"
            made[f"{key}.A"] = torch.randn(rank, n_in, generator=generator)
            made[f"{key}.B"] = torch.randn(n_out, rank, generator=generator)
    return made


def config(family: str = "starmie", **text: Any) -> dict[str, Any]:
    tokens = {"bos_id": EOS[family], "eos_id": EOS[family], "templates": TEMPLATES[family]}
    nested = {**NESTED, "text": NESTED["text"] | text, "tokenizer": tokens}
    return {"model_type": "moondream1", "prompt_family": family, "config": nested}


def write(
    folder: Path,
    family: str = "starmie",
    *,
    weights: dict[str, Tensor] | None = None,
    members: dict[str, Any] | None = None,
) -> Path:
    """A checkpoint folder; `members` replaces config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    found = tensors(family) if weights is None else weights
    save_file({name: t.contiguous() for name, t in found.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(family) if members is None else members))
    tokenizer(family).save(str(folder / "tokenizer.json"))
    return folder


def load(folder: Path, **options: Any) -> Moondream:
    given = {"precision": CPU_FLOAT32, "device": CPU} | options
    return load_moondream(hub.locate(folder), **given)


def open_model(folder: Path, **options: Any) -> Model:
    return Model(Native(load(folder, **options)))
