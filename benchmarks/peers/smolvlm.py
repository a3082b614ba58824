"""One caption by SmolVLM2 through transformers: an image in tiles, as a whole (`--low`), or a clip of frames.

    python -m galago.lab.bench.random smolvlm2-500m    # prints the folder that this takes
    python benchmarks/peers/smolvlm.py --checkpoint runs/smolvlm2-500m-random --image 512x512 --low
    python benchmarks/peers/smolvlm.py --checkpoint runs/smolvlm2-500m-random --image 8x512x512

The frames are noise and made beforehand, so that cutting an image into tiles is not counted (it is in ours). The
prompt has as many positions as the chat template gives. Needs `torch` and `transformers`.
"""

import argparse
import json
import math
import time
from typing import Any

import torch
from common import missing, parser, peak_rss, report

AROUND_FRAME, AROUND_TIMED, AROUND_ALL = 2, 15, 20
"""Positions of text that come with each frame of an image, with each of a clip, and once."""


def tiles(width: int, height: int, edge: int, tile: int) -> int:
    """Frames of an image: its longest edge becomes `edge`, then it becomes whole tiles; and all of it."""
    ratio = max(width, height) / min(width, height)
    return math.ceil(edge / tile) * math.ceil(math.trunc(edge / ratio) / tile) + 1


def request(args: argparse.Namespace, folder_config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Pixels [1, frames, 3, side, side] and ids [1, positions] of what `--image` says."""
    *frames, width, height = (int(n) for n in args.image.split("x"))
    config, vision = folder_config["config"], folder_config["config"]["vision_config"]
    side, edge = vision["image_size"], folder_config["preprocessor"]["size"]["longest_edge"]
    count = frames[0] if frames else 1 if args.low else tiles(width, height, edge, side)
    seen = (side // vision["patch_size"] // config["scale_factor"]) ** 2
    words = AROUND_TIMED if frames else AROUND_FRAME
    ids = ([7] * words + [config["image_token_id"]] * seen) * count + [7] * AROUND_ALL
    return {
        "pixel_values": torch.rand(1, count, 3, side, side).mul(2).sub(1).to(getattr(torch, args.precision)),
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.int64),
    }


class Clock:
    """A streamer of transformers: it is told the prompt and then each token, and keeps the times."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def caption(model: Any, given: dict[str, torch.Tensor], args: argparse.Namespace) -> dict[str, float]:
    spent = {"encode_s": 0.0}
    begun: list[float] = []
    parts = (model.model.vision_model, model.model.connector)
    hooks = [part.register_forward_pre_hook(lambda *_: begun.append(time.perf_counter())) for part in parts]

    def ended(*_: Any) -> None:
        spent["encode_s"] += time.perf_counter() - begun.pop()

    hooks += [part.register_forward_hook(ended) for part in parts]
    clock, begin = Clock(), time.perf_counter()
    with torch.inference_mode():
        model.generate(**given, max_new_tokens=args.tokens, min_new_tokens=args.tokens, do_sample=False, streamer=clock)
    end = time.perf_counter()
    for hook in hooks:
        hook.remove()
    _, first, *_, last = clock.times
    return {
        **spent,
        "prefill_s": first - begin - spent["encode_s"],
        "ttft_s": first - begin,
        "decode_tokens_per_s": (args.tokens - 1) / (last - first),
        "total_s": end - begin,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    made.add_argument("--low", action="store_true", help="the image as a whole alone")
    args = made.parse_args()
    if args.tokens < 2:
        made.error("--tokens must be 2 or more")
    try:
        import transformers
    except ImportError:
        missing("transformers")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    names = {"config": "config.json", "preprocessor": "preprocessor_config.json"}
    given = request(args, {key: json.loads((args.checkpoint / name).read_text()) for key, name in names.items()})
    begin = time.perf_counter()
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        str(args.checkpoint), dtype=getattr(torch, args.precision), local_files_only=True
    ).eval()
    load_s = time.perf_counter() - begin
    report(
        args,
        engine="transformers",
        version=f"transformers {transformers.__version__}, torch {torch.__version__}",
        precision=args.precision,
        load_s=load_s,
        runs=[caption(model, given, args) for _ in range(args.runs)],
        peak=peak_rss(),
    )


if __name__ == "__main__":
    main()
