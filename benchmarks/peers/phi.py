"""The text half alone through transformers: a Phi model of the same shape, fed as many vectors as a caption has.

    python benchmarks/peers/phi.py --checkpoint runs/moondream2-random

Vision is left out and the prompt is noise, so `total_s` is comparable with nothing but prefill and decoding of the
others. Needs `torch`, `transformers` and `safetensors`.
"""

import argparse
import importlib.util
import time
from typing import Any

import torch
from common import PROMPT_AFTER, PROMPT_BEFORE, missing, parser, peak_rss, report
from safetensors import safe_open
from torch import Tensor

IMAGE_TOKENS = 729
LAYER_NAMES = {
    "ln": "input_layernorm",
    "attn.proj": "self_attn.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def phi_names(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A tensor of the checkpoint's text part by the names that Phi gives it: one, or three for q, k and v."""
    if name == "wte":
        return {"model.embed_tokens.weight": tensor}
    stem, _, kind = name.rpartition(".")
    if stem == "post_ln":
        return {f"model.final_layernorm.{kind}": tensor}
    if stem == "lm_head":
        return {f"lm_head.{kind}": tensor}
    _, layer, part = stem.split(".", 2)
    prefix = f"model.layers.{layer}"
    if part == "attn.qkv":
        thirds = tensor.chunk(3)
        return {f"{prefix}.self_attn.{x}_proj.{kind}": t for x, t in zip("qkv", thirds, strict=True)}
    return {f"{prefix}.{LAYER_NAMES[part]}.{kind}": tensor}


def load(args: argparse.Namespace) -> Any:
    from transformers import PhiConfig, PhiForCausalLM

    state: dict[str, Tensor] = {}
    with safe_open(args.checkpoint / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.startswith("model.text."):
                state |= phi_names(name.removeprefix("model.text."), file.get_tensor(name))
    vocabulary, width = state["model.embed_tokens.weight"].shape
    config = PhiConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=state["model.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=1 + max(int(name.split(".")[2]) for name in state if name.startswith("model.layers.")),
        num_attention_heads=width // 64,
        max_position_embeddings=2048,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        partial_rotary_factor=0.5,
    )
    # Straight from the state: what it keeps are the tensors themselves, not copies of them.
    loaded = PhiForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=torch.bfloat16)
    return loaded.eval()


@torch.inference_mode()
def answer(model: Any, prompt: Tensor, tokens: int) -> dict[str, float]:
    begin = time.perf_counter()
    out = model(inputs_embeds=prompt, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    first = time.perf_counter()
    for _ in range(tokens - 1):
        out = model(input_ids=token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
    end = time.perf_counter()
    return {
        "prefill_s": first - begin,
        "ttft_s": first - begin,
        "decode_tokens_per_s": (tokens - 1) / (end - first),
        "total_s": end - begin,
    }


def main() -> None:
    args = parser(__doc__).parse_args()
    if importlib.util.find_spec("transformers") is None:
        missing("transformers is not installed here: pip install transformers")
    import transformers

    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    model = load(args)
    load_s = time.perf_counter() - begin
    length = PROMPT_BEFORE + IMAGE_TOKENS + PROMPT_AFTER
    prompt = torch.randn(1, length, model.config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    report(
        args,
        engine="transformers, text only",
        version=f"transformers {transformers.__version__}, torch {torch.__version__}",
        precision="bfloat16",
        load_s=load_s,
        runs=[answer(model, prompt, args.tokens) for _ in range(args.runs)],
        peak=peak_rss(),
        note="no vision: total is prefill and decoding",
    )


if __name__ == "__main__":
    main()
