"""What every peer shares: the command line, the noise image, and the report in one form.

A report is one JSON object on stdout: `engine`, `version`, `precision`, the settings, then `load_s`, `encode_s`
(vision and projection), `prefill_s` (image prefix and prompt), `ttft_s` (request to first token),
`decode_tokens_per_s`, `total_s`, each as `{"best": .., "median": ..}`, and `peak_rss_bytes`. A figure that a peer
cannot tell is left out.
"""

import argparse
import json
import resource
import statistics
import sys
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image

HIGHER_IS_BETTER = {"decode_tokens_per_s", "requests_per_minute"}
# The prompt of a caption: five tokens after the image, one before it, in every engine.
PROMPT_BEFORE, PROMPT_AFTER = 1, 5


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--checkpoint", type=Path, required=True, help="the folder that galago.lab.bench.random prints")
    made.add_argument("--image", default="378x378", help="width x height of a noise image")
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--runs", type=int, default=3)
    return made


def noise_image(size: str, seed: int = 0) -> Image.Image:
    width, height = (int(side) for side in size.split("x"))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def missing(what: str) -> NoReturn:
    """End with one line that says what is not installed; `run.py` shows it and goes on."""
    sys.exit(f"missing: {what}")


def peak_rss(pid: int | None = None) -> int | None:
    """Most bytes of memory that a process has held: this one, or another one where /proc tells.

    What getrusage says of a process on Linux includes what its parent held when it started it, so it comes second.
    """
    try:
        status = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:
        if pid is not None:
            return None
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), None)


def spread(name: str, values: list[float]) -> dict[str, float]:
    best = max(values) if name in HIGHER_IS_BETTER else min(values)
    return {"best": round(best, 4), "median": round(statistics.median(values), 4)}


def report(
    args: argparse.Namespace,
    *,
    engine: str,
    version: str,
    precision: str,
    load_s: float,
    runs: list[dict[str, float]],
    peak: int | None,
    note: str | None = None,
) -> None:
    """Print what the runs of one process gave; a key counts only if every run has it."""
    result: dict[str, Any] = {
        "engine": engine,
        "version": version,
        "precision": precision,
        "image": args.image,
        "tokens": args.tokens,
        "threads": args.threads,
        "runs": len(runs),
        "load_s": spread("load_s", [load_s]),
    }
    for key in runs[0]:
        if all(key in run for run in runs):
            result[key] = spread(key, [run[key] for run in runs])
    if peak is not None:
        result["peak_rss_bytes"] = peak
    if note is not None:
        result["note"] = note
    print(json.dumps(result, indent=1))
