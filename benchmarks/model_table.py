"""The table that articles about small vision-language models show: parameters, memory, detection, VQAv2.

    python benchmarks/model_table.py moondream2-int4 florence-2-base llava-7b --coco ~/coco --vqav2 ~/vqav2 --count 500

A model that lacks a skill has a dash there. All is of the precision that is named, or else of the one that takes least
memory; that is the catalogue's (~ where it is counted, not measured). The models have to be downloaded
(`galago models pull`), and the data sets to lie there: `galago eval list` says which files. Each model and task is a
process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

GALAGO = [sys.executable, "-c", "from galago.cli.app import run; run()"]
UNSUPPORTED = "this model does not"


def told(*arguments: str) -> Any:
    """What a command of galago prints as JSON; None where the model lacks a skill for it. Ends for other errors."""
    said = subprocess.run([*GALAGO, *arguments, "--json"], capture_output=True, text=True)
    if said.returncode == 0:
        return json.loads(said.stdout)
    if UNSUPPORTED in said.stderr:
        return None
    sys.exit(said.stderr.strip())


def score(task: str, measure: str, model: str, precision: str, data: Path | None, count: int | None) -> str:
    if data is None:
        return "-"
    few = ["--count", str(count)] if count else []
    found = told("eval", task, "-m", model, "--precision", precision, "--data", str(data), *few)
    if found is None:
        return "-"
    one = found["measures"][measure]
    return f"{100 * one['share']:.1f} ({100 * one['low']:.1f} to {100 * one['high']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--coco", type=Path, metavar="FOLDER")
    parser.add_argument("--vqav2", type=Path, metavar="FOLDER")
    parser.add_argument("--count", type=int, help="so many images or questions; else all")
    given = parser.parse_args()
    print("| model | parameters | memory | COCO, AP | VQAv2, % |\n|---|--:|--:|--:|--:|")
    for model in given.models:
        shown = told("show", model)
        precisions = shown["precisions"]
        named = next((name for name in precisions if model.endswith(f"-{name}")), None)
        precision = named or min(precisions, key=lambda name: precisions[name]["memory"])
        takes = precisions[precision]
        memory = f"{'' if takes['measured'] else '~'}{takes['memory'] / 1e9:.1f} GB ({precision})"
        found = score("coco", "map", model, precision, given.coco, given.count)
        answered = score("vqav2", "accuracy", model, precision, given.vqav2, given.count)
        print(f"| {model} | {shown['parameters'] / 1e6:,.0f} M | {memory} | {found} | {answered} |", flush=True)


if __name__ == "__main__":
    main()
