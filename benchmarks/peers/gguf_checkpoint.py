"""Write a Moondream2 checkpoint as the GGUF pair that llama.cpp reads: text model (`phi2`) and projector (`clip`).

    python benchmarks/peers/gguf_checkpoint.py runs/moondream2-random --quantize llama.cpp/build/bin/llama-quantize

Makes `text-f16.gguf` and `mmproj-f16.gguf` in the checkpoint's folder `gguf`, then with `--quantize` also
`text-q8_0.gguf` and `text-q4_0.gguf`, and drops the large `text-f16.gguf` unless `--keep-f16`.

Needs `torch`, `safetensors` and `gguf`. Meant for speed and memory: the vocabulary is 256 bytes and fillers, so
one character is one token. The projector is given the global view twice, which is all that llama.cpp computes: it
has no crops, so both halves of its first layer are added up beforehand.
"""

import argparse
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

Part = tuple[str, Callable[[], Tensor]]  # a GGUF tensor's name and what reads it

VISION_HEADS, PATCH, CROP = 16, 14, 378
HEAD_DIM, ROTARY_DIM, CONTEXT, FIRST_FILLER = 64, 32, 2048, 256
QUANTIZED = ("q8_0", "q4_0")

TEXT_NAMES = {
    "ln": "attn_norm",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_output",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
VISION_NAMES = {"ln1": "ln1", "attn.proj": "attn_out", "ln2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down"}


class Checkpoint:
    """Tensors of one safetensors file by name, read when asked for; names without the prefix `model.`."""

    def __init__(self, file: Path):
        self.file = safe_open(file, framework="pt")
        self.names = {name.removeprefix("model."): name for name in self.file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self.file.get_tensor(self.names[name])

    def shape(self, name: str) -> list[int]:
        return list(self.file.get_slice(self.names[name]).get_shape())

    def blocks(self, part: str) -> int:
        return 1 + max(int(name.split(".")[2]) for name in self.names if name.startswith(f"{part}.blocks."))


def both(theirs: str, ours: str, checkpoint: Checkpoint) -> Iterator[Part]:
    """A layer's weight and bias."""
    for kind in ("weight", "bias"):
        yield f"{theirs}.{kind}", lambda kind=kind: checkpoint[f"{ours}.{kind}"]


def text_parts(checkpoint: Checkpoint) -> Iterator[Part]:
    yield "token_embd.weight", lambda: checkpoint["text.wte"]
    for i in range(checkpoint.blocks("text")):
        for ours, theirs in TEXT_NAMES.items():
            yield from both(f"blk.{i}.{theirs}", f"text.blocks.{i}.{ours}", checkpoint)
    yield from both("output_norm", "text.post_ln", checkpoint)
    yield from both("output", "text.lm_head", checkpoint)


def vision_parts(checkpoint: Checkpoint) -> Iterator[Part]:
    width = checkpoint.shape("vision.pos_emb")[-1]
    patches = checkpoint["vision.patch_emb.weight"].reshape(width, -1, PATCH, PATCH)
    yield "v.patch_embd.weight", lambda: patches
    yield "v.patch_embd.bias", lambda: checkpoint["vision.patch_emb.bias"]
    yield "v.position_embd.weight", lambda: checkpoint["vision.pos_emb"][0].float()
    for i in range(checkpoint.blocks("vision")):
        for ours, theirs in VISION_NAMES.items():
            yield from both(f"v.blk.{i}.{theirs}", f"vision.blocks.{i}.{ours}", checkpoint)
        for j, theirs in enumerate(("attn_q", "attn_k", "attn_v")):
            for kind in ("weight", "bias"):
                name = f"vision.blocks.{i}.attn.qkv.{kind}"
                yield f"v.blk.{i}.{theirs}.{kind}", lambda name=name, j=j: checkpoint[name].chunk(3)[j]
    yield from both("v.post_ln", "vision.post_ln", checkpoint)
    twice = checkpoint["vision.proj_mlp.fc1.weight"].float()
    yield "mm.0.weight", lambda: (twice[:, :width] + twice[:, width:]).half()
    yield "mm.0.bias", lambda: checkpoint["vision.proj_mlp.fc1.bias"]
    yield from both("mm.2", "vision.proj_mlp.fc2", checkpoint)


def stored(tensor: Tensor) -> np.ndarray:
    """float16 for matrices, float32 for vectors and for what came as float32."""
    keep = tensor.ndim == 1 or tensor.dtype == torch.float32
    return tensor.to(torch.float32 if keep else torch.float16).contiguous().numpy()


def write(writer: gguf.GGUFWriter, parts: list[Part]) -> None:
    """Write the header, then tensor by tensor, so that only one is in memory at a time."""
    for name, read in parts:
        array = stored(read())
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, read in parts:
        writer.write_tensor_data(stored(read()))
    writer.close()


def byte_symbols() -> list[str]:
    """The characters that byte-level BPE shows for the bytes 0 to 255: printable ones stand for themselves."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in plain else next(spare)) for byte in range(256)]


def add_vocabulary(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    """A tokenizer of the 256 bytes, an end token and fillers."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    symbols = byte_symbols()
    writer.add_token_list(symbols + [f"<filler {i}>" for i in range(FIRST_FILLER, vocabulary)])
    control = [gguf.TokenType.CONTROL]
    fillers = [gguf.TokenType.UNUSED] * (vocabulary - FIRST_FILLER - 1)
    writer.add_token_types([gguf.TokenType.NORMAL] * FIRST_FILLER + control + fillers)
    writer.add_token_merges([f"{symbols[0]} {symbols[0]}"])  # the list may not be empty; no text contains this pair
    writer.add_bos_token_id(FIRST_FILLER)
    writer.add_eos_token_id(FIRST_FILLER)
    writer.add_add_bos_token(False)


def write_text(checkpoint: Checkpoint, file: Path) -> None:
    vocabulary, width = checkpoint.shape("text.wte")
    inner = checkpoint.shape("text.blocks.0.mlp.fc1.weight")[0]
    writer = gguf.GGUFWriter(file, "phi2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_block_count(checkpoint.blocks("text"))
    writer.add_head_count(width // HEAD_DIM)
    writer.add_head_count_kv(width // HEAD_DIM)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(ROTARY_DIM)
    add_vocabulary(writer, vocabulary)
    write(writer, list(text_parts(checkpoint)))


def write_projector(checkpoint: Checkpoint, file: Path) -> None:
    blocks = checkpoint.blocks("vision")
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(True)
    writer.add_vision_image_size(CROP)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(checkpoint.shape("vision.pos_emb")[-1])
    writer.add_vision_feed_forward_length(checkpoint.shape("vision.blocks.0.mlp.fc1.weight")[0])
    writer.add_vision_projection_dim(checkpoint.shape("vision.proj_mlp.fc2.weight")[0])
    writer.add_vision_block_count(blocks)
    # By default a projector of this type leaves the last block out; asking for its output makes all of them run.
    writer.add_array("clip.vision.feature_layer", [blocks])
    writer.add_vision_head_count(VISION_HEADS)
    writer.add_vision_attention_layernorm_eps(1e-5)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    write(writer, list(vision_parts(checkpoint)))


def write_both(folder: Path, out: Path) -> None:
    checkpoint = Checkpoint(folder / "model.safetensors")
    write_projector(checkpoint, out / "mmproj-f16.gguf")
    write_text(checkpoint, out / "text-f16.gguf")


def main(about: str | None, write_files: Callable[[Path, Path], None]) -> None:
    """The command: the files of a checkpoint's folder in another, then the text model's lower precisions."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a folder with model.safetensors")
    parser.add_argument("--out", type=Path, help="default: the folder gguf in the checkpoint's")
    parser.add_argument("--quantize", type=Path, help="llama.cpp's llama-quantize: makes the 8- and 4-bit text models")
    parser.add_argument("--keep-f16", action="store_true", help="keep the text model as float16, too")
    args = parser.parse_args()

    out = args.out or args.checkpoint / "gguf"
    out.mkdir(parents=True, exist_ok=True)
    write_files(args.checkpoint, out)
    text = out / "text-f16.gguf"
    if args.quantize:
        for kind in QUANTIZED:
            subprocess.run([args.quantize, text, out / f"text-{kind}.gguf", kind.upper()], check=True)
        if not args.keep_f16:
            text.unlink()
    for file in sorted(out.glob("*.gguf")):
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(__doc__, write_both)
