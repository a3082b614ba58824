"""`galago bench` with each set of kernels that this processor can run, in turn.

    python benchmarks/sets.py --precision int8 --precision int4 --out benchmarks/results/sets

Writes OUT.json, the results as `galago bench --save` does with the set's name in place of the engine's, and OUT.svg.
What follows `--` goes to `galago bench`: `python benchmarks/sets.py -- --image 1024x768`. Sets take turns, `--rounds`
times; of each the round whose whole request was quickest is kept, since a shared machine is slower at times.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from galago.kernels import load
from galago.lab.bench.plot import plot_results
from galago.lab.bench.results import FIGURES, BenchResult, figure_value, label, read_results, save_results
from galago.system.machine import SETS

WHOLE = next(figure for figure in FIGURES if figure.key == "total_s")


def bench(kernels: str, options: list[str]) -> list[BenchResult]:
    """The results of `galago bench` with this set, named after it."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder, "results.json")
        command = [sys.executable, "-m", "galago.cli.app", "bench", *options, "--save", str(saved)]
        subprocess.run(command, env=os.environ | {"GALAGO_KERNELS": kernels}, check=True, stdout=sys.stderr)
        return [found | {"engine": kernels} for found in read_results(saved)]


def quicker(one: BenchResult, other: BenchResult | None) -> BenchResult:
    return one if other is None or (figure_value(one, WHOLE) or 0) < (figure_value(other, WHOLE) or 0) else other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="moondream2")
    parser.add_argument("--precision", action="append", help="may be given again; by default int8")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="without .json and .svg")
    parser.add_argument("bench", nargs="*", help="further options of galago bench, after --")
    given = parser.parse_args()
    precisions = [word for name in given.precision or ["int8"] for word in ("--precision", name)]
    options = [given.model, "--random", *precisions, *given.bench]
    best: dict[str, BenchResult] = {}
    here = [name for name in SETS if load(name)]
    for _ in range(given.rounds):
        for kernels in here:
            for result in bench(kernels, options):
                best[label(result)] = quicker(result, best.get(label(result)))
    results = [best[name] for name in sorted(best, key=lambda name: name.split()[-1])]
    save_results(results, given.out.with_suffix(".json"))
    given.out.with_suffix(".svg").write_text(plot_results(results), encoding="utf-8")


if __name__ == "__main__":
    main()
