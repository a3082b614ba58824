"""Seconds of each stage, tokens per second and peak memory of one caption.

    python benchmarks/moondream_stages.py runs/moondream2-random --precision bfloat16

Each precision wants a process of its own: the peak is the process's.
"""

import argparse
import json
import platform
import time

import numpy as np
import torch
from PIL import Image

import galago
from galago.nn.device import memory
from galago.request import Caption, Done, Request, Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--image", default="378x378", help="width x height of a noise image")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    width, height = (int(side) for side in args.image.split("x"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    begin = time.perf_counter()
    model = galago.load(args.model, precision=args.precision, threads=args.threads)
    load_s = time.perf_counter() - begin

    runs = []
    for _ in range(args.runs):
        request = Request(Caption("normal"), image, Sampling(max_tokens=args.tokens))
        done = next(event for event in model.submit(request) if isinstance(event, Done))
        times = done.timings
        runs.append(
            {
                "encode_s": times.encode_s,
                "prefill_s": times.prefill_s,
                "decode_s": times.decode_s,
                "decode_tokens_per_s": (done.usage.completion_tokens - 1) / times.decode_s,
                "total_s": times.total_s,
            }
        )
    peak = memory(torch.device(model.device)).peak
    model.close()
    result = {
        "model": model.name,
        "precision": args.precision,
        "device": str(model.device),
        "image": args.image,
        "tokens": args.tokens,
        "threads": torch.get_num_threads(),
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}",
        "load_s": round(load_s, 2),
        "peak_bytes": peak,
    }
    for key in runs[0]:
        values = sorted(run[key] for run in runs)
        best = values[-1] if key == "decode_tokens_per_s" else values[0]
        result[key] = {"best": round(best, 3), "median": round(values[len(values) // 2], 3)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
