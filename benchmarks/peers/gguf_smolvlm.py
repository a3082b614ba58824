"""Write the text half of a SmolVLM checkpoint as the GGUF file that llama.cpp reads (`llama`).

    python benchmarks/peers/gguf_smolvlm.py runs/smolvlm2-500m-random --quantize llama.cpp/build/bin/llama-quantize

Makes `text-f16.gguf` in the checkpoint's folder `gguf`, then with `--quantize` also `text-q8_0.gguf` and
`text-q4_0.gguf`, and drops the first unless `--keep-f16`. As in `gguf_checkpoint.py`, the vocabulary is bytes and
fillers: this is for speed and memory.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
from gguf_checkpoint import Checkpoint, Part, add_vocabulary, main, write
from torch import Tensor

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TURNED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection in llama.cpp's order: it turns neighbours, the checkpoint halves of a head."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def parts(checkpoint: Checkpoint, config: dict[str, Any]) -> Iterator[Part]:
    def read(name: str, heads: int | None) -> Tensor:
        tensor = checkpoint[name]
        return interleaved(tensor, heads) if heads else tensor

    named = {"token_embd": "text_model.embed_tokens", "output_norm": "text_model.norm", "output": "lm_head"}
    named |= {
        f"blk.{i}.{theirs}": f"text_model.layers.{i}.{ours}"
        for i in range(config["num_hidden_layers"])
        for ours, theirs in NAMES.items()
    }
    for theirs, ours in named.items():
        heads = config.get(TURNED.get(theirs.rpartition(".")[2], ""))
        yield f"{theirs}.weight", lambda ours=ours, heads=heads: read(f"{ours}.weight", heads)


def write_text(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["text_config"]
    writer = gguf.GGUFWriter(out / "text-f16.gguf", "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_vocabulary(writer, config["vocab_size"])
    write(writer, list(parts(Checkpoint(folder / "model.safetensors"), config)))


if __name__ == "__main__":
    main(__doc__, write_text)
