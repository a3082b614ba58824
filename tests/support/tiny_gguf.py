"""A tiny model of random weights as llama.cpp's pair of files: a phi2 that writes text, and a projector (clip)."""

from pathlib import Path

import gguf
import numpy as np

WIDTH, INNER, LAYERS, HEADS, CONTEXT, VOCABULARY = 64, 128, 2, 2, 2048, 320
SIDE, PATCH, VISION_WIDTH, VISION_INNER, VISION_LAYERS = 56, 14, 32, 64, 2
END = 256
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}\n{% endfor %}assistant:"
)


def write(
    folder: Path,
    name: str = "tiny-F16.gguf",
    projector: str | None = "mmproj-tiny-F16.gguf",
    architecture: str = "phi2",
) -> Path:
    """The folder, with both files in it; without the projector where its name is None."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    _write_text(folder / name, rng, architecture)
    if projector:
        _write_projector(folder / projector, rng)
    return folder


def _symbols() -> list[str]:
    """The characters by which byte-level BPE writes the bytes 0 to 255."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def _write_text(path: Path, rng: np.random.Generator, architecture: str) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    symbols = _symbols()
    fillers = [f"<filler {i}>" for i in range(END + 1, VOCABULARY)]
    writer.add_token_list([*symbols, "<|end|>", *fillers])
    types = [gguf.TokenType.NORMAL] * END + [gguf.TokenType.CONTROL] + [gguf.TokenType.UNUSED] * len(fillers)
    writer.add_token_types(types)
    writer.add_token_merges([f"{symbols[0]} {symbols[0]}"])  # may not be empty
    writer.add_bos_token_id(END)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCABULARY, WIDTH)}
    for i in range(LAYERS):
        for part, (rows, columns) in {
            "attn_qkv": (3 * WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():  # fmt: skip
            shapes |= {f"blk.{i}.{part}.weight": (rows, columns), f"blk.{i}.{part}.bias": (rows,)}
        shapes |= {f"blk.{i}.attn_norm.weight": (WIDTH,), f"blk.{i}.attn_norm.bias": (WIDTH,)}
    shapes |= {"output_norm.weight": (WIDTH,), "output_norm.bias": (WIDTH,)}
    shapes |= {"output.weight": (VOCABULARY, WIDTH), "output.bias": (VOCABULARY,)}
    _write_tensors(writer, shapes, rng)


def _write_projector(path: Path, rng: np.random.Generator) -> None:
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(SIDE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(VISION_WIDTH)
    writer.add_vision_feed_forward_length(VISION_INNER)
    writer.add_vision_projection_dim(WIDTH)
    writer.add_vision_block_count(VISION_LAYERS)
    writer.add_array("clip.vision.feature_layer", [VISION_LAYERS])
    writer.add_vision_head_count(2)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    w, n = VISION_WIDTH, VISION_INNER
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (w, 3, PATCH, PATCH), "v.patch_embd.bias": (w,),
        "v.position_embd.weight": ((SIDE // PATCH) ** 2, w),
        "v.post_ln.weight": (w,), "v.post_ln.bias": (w,),
        "mm.0.weight": (n, w), "mm.0.bias": (n,), "mm.2.weight": (WIDTH, n), "mm.2.bias": (WIDTH,),
    }  # fmt: skip
    for i in range(VISION_LAYERS):
        parts = {"attn_q": (w, w), "attn_k": (w, w), "attn_v": (w, w), "attn_out": (w, w)}
        for part, (rows, columns) in (parts | {"ffn_up": (n, w), "ffn_down": (w, n)}).items():
            shapes |= {f"v.blk.{i}.{part}.weight": (rows, columns), f"v.blk.{i}.{part}.bias": (rows,)}
        for part in ("ln1", "ln2"):
            shapes |= {f"v.blk.{i}.{part}.weight": (w,), f"v.blk.{i}.{part}.bias": (w,)}
    _write_tensors(writer, shapes, rng)


def _write_tensors(writer: gguf.GGUFWriter, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    for name, shape in shapes.items():
        values = rng.normal(0, 0.2, shape)
        if name.endswith(("norm.weight", "ln1.weight", "ln2.weight", "ln.weight")):
            values += 1
        keep = len(shape) == 1 or "position" in name
        writer.add_tensor(name, values.astype(np.float32 if keep else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
