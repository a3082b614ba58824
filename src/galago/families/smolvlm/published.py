"""The sizes of SmolVLM's published models, for checkpoints of random weights. Source: arXiv:2504.05299."""

from typing import Any

from galago.families import ModelFiles
from galago.families.family import Blueprint
from galago.families.tokenizer import load_tokenizer

SMALL_TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}
LARGE_TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
DECODERS = {
    "256m": (576, 1536, 30, 9, 3, 100_000),
    "500m": (960, 2560, 32, 15, 5, 100_000),
    "2.2b": (2048, 8192, 24, 32, 32, 130_000),
}
"""dim, inner width, layers, heads, kv heads, theta"""
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<global-img>", "<fake_token_around_image>", "<image>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<end_of_utterance>",
)
"""Control tokens of their tokenizers that a stand-in lacks."""


def blueprint(name: str, other: ModelFiles) -> Blueprint:
    """The blueprint of smolvlm2-500m and its like, whose control tokens follow the tokens of `other`."""
    vocabulary = load_tokenizer(other.tokenizer).backend.get_vocab_size()
    generation, size = name.split("-")
    tower = LARGE_TOWER if size == "2.2b" else SMALL_TOWER
    dim, ff_dim, layers, heads, kv_heads, theta = DECODERS[size]
    text = {
        "vocab_size": 49280,
        "hidden_size": dim,
        "intermediate_size": ff_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": theta,
        "max_position_embeddings": 8192,
    }
    side = tower["image_size"]
    preprocessor: dict[str, Any] = {
        "size": {"longest_edge": 4 * side},
        "max_image_size": {"longest_edge": side},
        "do_image_splitting": True,
    }
    if generation == "smolvlm2":
        preprocessor["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}
    config = {
        "model_type": "smolvlm" if generation == "smolvlm2" else "idefics3",
        "image_token_id": vocabulary + CONTROL.index("<image>"),
        "scale_factor": 3 if size == "2.2b" else 4,
        "tie_word_embeddings": False,
        "vision_config": tower,
        "text_config": text,
    }
    return Blueprint(name, config, other.tokenizer, "smolvlm", preprocessor, CONTROL)
