"""What lower precisions cost in answers: the scores of drawn scenes against those of float32, paired.

    python benchmarks/precision_quality.py --out benchmarks/results/precision-quality

writes OUT.json and OUT.md. With `--outliers 30 100` the precisions are measured again on copies of the model
in which a few channels are that many times as large, at no change of function (see outliers.py).
`--keep FOLDER` keeps the marks of each run there, and runs only what is not there.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from outliers import write_with_outliers

import galago
from galago.lab.eval.paired import Difference, compare_marks
from galago.lab.eval.report import marks_by_picture
from galago.lab.eval.run import answer_cases
from galago.lab.eval.score import Mark, summarize
from galago.lab.eval.tasks.scenes import TASK
from galago.store import hub

REFERENCE = "float32"
BOUND = {"int8": 1.0, "int4": 3.0}
"""Points that a precision may lose."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "int8", "int4"])
    parser.add_argument("--outliers", nargs="*", type=int, default=[], metavar="FACTOR")
    parser.add_argument("--count", type=int, default=500, help="number of scenes")
    parser.add_argument("--seed", type=int, default=20261, help="of the series of scenes")
    parser.add_argument("--out", type=Path, help="files to write, without their endings")
    parser.add_argument("--keep", type=Path, help="folder of the marks of each run")
    args = parser.parse_args()

    # Integers are what outliers harm; of the floating types they only move the exponent.
    runs = [(REFERENCE, 1), *((p, 1) for p in args.precisions)]
    runs += [(p, factor) for factor in args.outliers for p in args.precisions if p in BOUND]
    marks = {}
    for precision, factor in runs:
        marks[label(precision, factor)] = kept_or_measured(args, precision, factor)
    reference = marks.pop(REFERENCE)
    differences = {name: compare_marks(reference, found, TASK.measures) for name, found in marks.items()}
    table = markdown(reference, differences, args.count, args.seed)
    print(table)
    if args.out:
        report = {
            "model": args.model,
            "count": args.count,
            "seed": args.seed,
            REFERENCE: {name: asdict(score) for name, score in summarize(reference, TASK.measures).items()},
            **{run: {name: asdict(d) for name, d in found.items()} for run, found in differences.items()},
        }
        args.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        args.out.with_suffix(".md").write_text(table + "\n")


def label(precision: str, factor: int) -> str:
    return precision if factor == 1 else f"{precision} x{factor}"


def kept_or_measured(args: argparse.Namespace, precision: str, factor: int) -> list[list[Mark]]:
    """The marks of one run by scene, from the folder of kept ones where they are there."""
    name = f"{label(precision, factor).replace(' ', '-')}-{args.count}-{args.seed}.json"
    file = args.keep / name if args.keep else None
    if file and file.is_file():
        return [[Mark(*mark) for mark in scene] for scene in json.loads(file.read_text())]
    marks = measured(args.model, precision, factor, args.count, args.seed)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([[(m.measure, m.hits, m.total) for m in scene] for scene in marks]))
    return marks


def measured(model: str, precision: str, factor: int, count: int, seed: int) -> list[list[Mark]]:
    with tempfile.TemporaryDirectory() as folder:
        source: str | Path = model
        if factor != 1:
            source = write_with_outliers(hub.locate(model), Path(folder), factor)
        begin = time.perf_counter()
        with galago.load(source, precision=precision) as loaded:
            records = answer_cases(loaded, TASK.cases(Path(), count, seed))
        print(f"{label(precision, factor)}: {time.perf_counter() - begin:.0f} s", flush=True)
    return marks_by_picture(records)


def markdown(
    reference: Sequence[Sequence[Mark]], found: Mapping[str, Mapping[str, Difference]], count: int, seed: int
) -> str:
    lines = [
        f"{count} scenes of seed {seed}. Points that each run scores above or below {REFERENCE}; in brackets half the",
        "width of the paired 95 % interval, and answers lost and won. **Bold**: beyond the bound of "
        + " and ".join(f"{bound:g} for {p}" for p, bound in BOUND.items())
        + "; *: unlikely by chance (p < 0.05",
        "of a sign test over answers lost and won, McNemar's where they are right or wrong; of as many cells as here,",
        "one in twenty is so by chance).",
        "",
        f"| measure | n | {REFERENCE} % | " + " | ".join(found) + " |",
        "|---|--:|--:|" + "--:|" * len(found),
    ]
    for name, score in summarize(reference, TASK.measures).items():
        cells = [cell(run, differences[name]) for run, differences in found.items()]
        lines.append(f"| {name} | {score.tasks} | {100 * score.share:.1f} | " + " | ".join(cells) + " |")
    worst = [f"{100 * min(d.change for d in differences.values()):+.1f}" for differences in found.values()]
    mean = [f"{100 * sum(d.change for d in ds.values()) / len(ds):+.2f}" for ds in found.values()]
    lines += [f"| worst | | | {' | '.join(worst)} |", f"| mean | | | {' | '.join(mean)} |"]
    return "\n".join(lines)


def cell(run: str, d: Difference) -> str:
    text = f"{100 * d.change:+.1f} (±{100 * d.spread:.1f}, {d.lost}/{d.won}){'*' if d.p < 0.05 else ''}"
    bound = BOUND.get(run.split()[0])
    return f"**{text}**" if bound and 100 * d.change < -bound else text


if __name__ == "__main__":
    main()
