"""Make a full-size Moondream2 checkpoint of random weights: it proves shapes, speed and memory, not meaning.

    python benchmarks/random_checkpoint.py runs/moondream2-random
    python benchmarks/random_checkpoint.py runs/moondream-0.5b-random --config my-config.json

The result is several gigabytes: never commit it.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from galago.families.moondream.config import REVISIONS, make_config
from galago.families.moondream.weights import FLOAT32, shapes
from galago.hub import locate
from galago.precision import FLOATS

REVISION = "2025-06-21"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", type=Path, help="JSON of the nested model config; default: the 2B sizes")
    parser.add_argument("--dtype", choices=FLOATS, default="bfloat16", help="as stored")
    args = parser.parse_args()

    nested = json.loads(args.config.read_text()) if args.config else {}
    config = make_config(nested, REVISIONS[REVISION])
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes(config).items():
        dtype = torch.float32 if name in FLOAT32 else FLOATS[args.dtype]
        if len(shape) == 1:
            tensor = torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            tensor = torch.empty(shape).normal_(std=0.02, generator=generator)
        if name == "text.lm_head.bias":
            tensor[config.tokens.eos_id] = -1e4  # answers always reach their limit
        tensors[f"model.{name}"] = tensor.to(dtype)
    args.folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.folder / "model.safetensors", metadata={"format": "pt"})
    (args.folder / "config.json").write_text(json.dumps({"revision": REVISION, "config": nested}, indent=1) + "\n")
    # Which ids a text becomes does not matter here, only that they exist.
    shutil.copy(locate("scenes").tokenizer, args.folder / "tokenizer.json")
    print(f"{sum(t.numel() for t in tensors.values()):,} parameters in {args.folder}")


if __name__ == "__main__":
    main()
