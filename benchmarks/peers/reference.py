"""One caption through the reference implementation (`moondream/torch` of vikhyat/moondream, June 2025).

    git clone https://github.com/vikhyat/moondream moondream-reference   # then check out a commit of June 2025
    python benchmarks/peers/reference.py --checkpoint runs/moondream2-random --reference moondream-reference
    python benchmarks/peers/reference.py --checkpoint runs/moondream2-random --reference moondream-reference --compile

Nothing in the clone is changed: its tokenizer, which it would download, is replaced while running by the
checkpoint's, and its methods are timed from outside. Needs `torch`, `tokenizers`, `safetensors` and `pillow`.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import missing, noise_image, parser, peak_rss, report
from tokenizers import Tokenizer


class Stopwatch:
    """Seconds spent in methods of an object, and when each call ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.ended: dict[str, list[float]] = {}

    def clear(self) -> None:
        self.seconds.clear()
        self.ended.clear()

    def watch(self, owner: Any, name: str) -> None:
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                end = time.perf_counter()
                self.seconds[name] = self.seconds.get(name, 0.0) + end - begin
                self.ended.setdefault(name, []).append(end)

        setattr(owner, name, timed)


def load(args: argparse.Namespace) -> Any:
    """The reference's model with the checkpoint's weights and tokenizer."""
    if not (args.reference / "moondream/torch/moondream.py").is_file():
        missing(f"no moondream/torch in {args.reference}; give --reference a clone of vikhyat/moondream")
    sys.path.insert(0, str(args.reference))
    code = importlib.import_module("moondream.torch.moondream")
    weights = importlib.import_module("moondream.torch.weights")

    class LocalTokenizer:
        @staticmethod
        def from_pretrained(*_args: Any, **_kwargs: Any) -> Tokenizer:
            return Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))

    code.Tokenizer = LocalTokenizer
    model = code.MoondreamModel(code.MoondreamConfig(), dtype=getattr(torch, args.precision))
    weights.load_weights_into_model(str(args.checkpoint / "model.safetensors"), model)
    if args.compile:
        model.compile()
    return model


def caption(model: Any, args: argparse.Namespace, watch: Stopwatch) -> dict[str, float]:
    image = noise_image(args.image)
    watch.clear()
    begin = time.perf_counter()
    encoded = model.encode_image(image)
    prefix_s = time.perf_counter() - begin
    stream = model.caption(encoded, "normal", stream=True, settings={"max_tokens": args.tokens, "temperature": 0})
    for _ in stream["caption"]:
        pass
    end = time.perf_counter()
    encode_s = watch.seconds["_run_vision_encoder"]
    first = watch.ended["_prefill_prompt"][0]
    steps = len(watch.ended["_decode_one_tok"])
    if steps < args.tokens - 1:
        sys.exit(f"the answer ended after {steps} tokens; use a checkpoint of `python -m galago.lab.bench.random`")
    return {
        "encode_s": encode_s,
        "prefill_s": prefix_s - encode_s + watch.seconds["_prefill_prompt"],
        "ttft_s": first - begin,
        "decode_tokens_per_s": steps / (end - first),
        "total_s": end - begin,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--reference", type=Path, required=True, help="a clone of vikhyat/moondream")
    made.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    made.add_argument("--compile", action="store_true", help="with torch.compile; one more run, not counted, compiles")
    args = made.parse_args()

    torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    model = load(args)
    load_s = time.perf_counter() - begin
    watch = Stopwatch()
    for name in ("_run_vision_encoder", "_prefill_prompt", "_decode_one_tok"):
        watch.watch(model, name)
    if args.compile:
        caption(model, args, watch)
    report(
        args,
        engine="reference" + (" compiled" if args.compile else ""),
        version=f"torch {torch.__version__}",
        precision=args.precision,
        load_s=load_s,
        runs=[caption(model, args, watch) for _ in range(args.runs)],
        peak=peak_rss(),
    )


if __name__ == "__main__":
    main()
