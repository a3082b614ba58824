"""Whether Galago is right on a GPU, and how fast: one command of under eight minutes.

    python benchmarks/gpu_check.py                              # Moondream2 and SmolVLM2-500M, on CUDA
    python benchmarks/gpu_check.py --device mps --minutes 20
    python benchmarks/gpu_check.py --device cpu --models scenes --precisions float32 --at-once 1 4      # a try

Galago itself need not be installed, only what its models need: torch, numpy, pillow, safetensors, tokenizers,
llguidance and prometheus-client. Nothing is downloaded; random weights take 9 GB of disk, where GALAGO_CACHE says.

The parts (gpu_parts.py), each a process of its own, whose failure or crash is its own too:

    machine     the device and versions
    answers     of the bundled model on the device, beside those of the CPU in float32
    golden      what the device computes in float32, beside the golden vectors of tests/golden
    profile     the ten dearest operations of a request, of the first model in the first precision
    MODEL PRECISION     so many requests at once, each about a new picture: requests a second, median time, tokens a
                second, memory. Weights are random at the true shapes: they take as long, and answers mean nothing.

Each is written to --out once it is known. One that fails says why, the next goes on, and the exit code is 1. Once the
minutes are used the rest is skipped, and says so. At the end comes a table in Markdown, for benchmarks/results.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Nothing of torch or Galago is imported here: whatever becomes of a part, this lives, and writes down what is known.
ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 5.0
"""With less time left no part is begun."""
PUBLISHED = (("1", "41.9", "37"), ("64", "57", "-"))
"""Kestrel, Moondream2 on an H100, as its makers say: at once, requests a second, median in ms."""
Found = dict[str, Any]


def run_part(name: str, left: float) -> Found:
    """What a part found, in a process of its own, within so many seconds."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    begin, ended = time.monotonic(), {}
    try:
        command = [sys.executable, *sys.argv, "--part", name]
        done = subprocess.run(command, capture_output=True, timeout=left, env=env)
        said, trouble = done.stdout, done.stderr.decode(errors="replace").splitlines()
        if done.returncode:
            ended = {"failed": f"the process ended with code {done.returncode}: {''.join(trouble[-1:])}"}
    except subprocess.TimeoutExpired as stopped:
        said, trouble = stopped.stdout or b"", []
        ended = {"skipped": f"stopped after {left:.0f} s, when the minutes were used"}
    found: Found = {}
    for line in said.decode(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):  # a library may print too, and one that is stopped half a line
            found |= json.loads(line)
    found |= ended
    if "failed" in found:
        found["log"] = trouble[-20:]
    return found | {"took_s": round(time.monotonic() - begin, 1)}


def table(found: Found, speeds: list[str], args: argparse.Namespace) -> str:
    """The speeds in Markdown, beside Kestrel's."""
    rows = [("model", "precision", "at once", "requests/s", "P50 ms", "tokens/s", "peak GB"), ("---",) * 7]
    for name in speeds:
        for n in args.at_once:
            if row := found[name].get(f"at_once_{n}"):
                figures = (row[key] for key in ("requests_per_s", "p50_ms", "tokens_per_s", "peak_gb"))
                rows.append((*name.rsplit(" ", 1), str(n), *(f"{value:.3g}" for value in figures)))
    rows += [("moondream2 by Kestrel on an H100, as published", "-", *row, "-", "-") for row in PUBLISHED]
    machine = found["machine"]
    about = (
        f"{machine['device']}, torch {machine['torch']}, galago {machine['galago']}; random weights at the true shapes,"
    )
    about += f"\nnew pictures of 378x378, {args.tokens} tokens each. Kestrel's weights and requests were its own.\n"
    return "\n".join([about, *("| " + " | ".join(row) + " |" for row in rows)])


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["moondream2", "smolvlm2-500m"], metavar="MODEL")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "int8", "int4"], metavar="PRECISION")
    parser.add_argument("--at-once", nargs="+", type=int, default=[1, 16, 64], metavar="N")
    parser.add_argument("--tokens", type=int, default=16, help="of each answer")
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "golden" / "vectors", metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    args, begin = parsed(), time.monotonic()
    if args.part:
        from gpu_parts import carry_out

        carry_out(args)
        return 0
    # The first precision of every model before the others, in case the minutes do not do for all.
    speeds = [f"{model} {precision}" for precision in args.precisions for model in args.models]
    found: Found = {}
    for name in ("machine", "answers", "golden", "profile", *speeds):
        left = 60 * args.minutes - (time.monotonic() - begin)
        found[name] = run_part(name, left) if left >= LEAST_S else {"skipped": "the minutes are used"}
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        how = next((f"{key}: {found[name][key]}" for key in ("failed", "skipped") if key in found[name]), "done")
        print(f"{name}: {how}", flush=True)
        if "device" not in found["machine"]:
            return 1
    print(f"\n{table(found, speeds, args)}")
    return 1 if any("failed" in one for one in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
