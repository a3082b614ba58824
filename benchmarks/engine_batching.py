"""What batching is worth, in ratios within one run, and how it compares with llama.cpp's server.

    python benchmarks/engine_batching.py --precision int8 --runs 3 --out runs/batching \\
        --llama-server llama.cpp/build/bin/llama-server --peer-python peers/bin/python

The parts (batching_parts.py), of which `--parts` names some:

    decode      tokens a second of 1, 2, 4 and 8 captions at once
    repeated    8 questions on one image, sent anew each time, against 8 questions on 8 images
    questions   4 questions at once on one image, beside llama-server with as many slots
    gaps        gaps between the tokens of a running request while other images arrive
    overhead    what a step of 16 requests costs of a model of the bundled one's size

All on random weights, which always reach the limit of tokens: those of `--model`, made at the first use, or a folder
that galago.lab.bench.random printed. Writes `OUT.json` and `OUT.md`.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batching_parts import EDGES_MS, Figures, Images, decode, figures, gaps, overhead, questions_at_once, repeated

import galago
from galago.errors import GalagoError
from galago.lab.bench.case import parse_image_size
from galago.lab.bench.random import ensure_random_checkpoint
from galago.lab.bench.table import format_number
from galago.system.machine import describe_machine

PARTS = ("decode", "repeated", "questions", "gaps", "overhead")
QUESTIONS = 4
LLAMA = Path(__file__).resolve().parent / "peers" / "llama_server.py"


# --- measuring ---------------------------------------------------------------------------------


def measured(checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What each part gave, and which model did it."""
    found: dict[str, Any] = {}
    images = Images(parse_image_size(args.image))
    with galago.load(checkpoint, precision=args.precision, device=args.device, threads=args.threads) as model:
        found["about"] = {"model": model.name, "precision": model.precision, "kernels": model.kernels}
        model.query(images.new(), "Is it warm?", settings={"max_tokens": 4})
        for part in args.parts:
            print(part, file=sys.stderr, flush=True)
            if part == "decode":
                found[part] = decode(model, images, args.tokens, args.runs)
            elif part == "repeated":
                found[part] = repeated(model, images, args.runs)
            elif part == "questions":
                found[part] = questions(model, images, checkpoint, args)
            elif part == "gaps":
                found[part] = gaps(model, images, 2 * args.tokens)
    if "overhead" in args.parts:
        bundled = ensure_random_checkpoint("scenes")
        with galago.load(bundled, precision=args.precision, device=args.device, threads=args.threads) as model:
            found["overhead"] = overhead(model, Images((112, 112)), args.tokens)
    return found


def questions(model: galago.Model, images: Images, checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Ours and llama-server in turns, so that whatever else the machine does hits both."""
    ours, theirs = [], []
    skipped = None if args.llama_server else "no --llama-server given"
    for _ in range(args.runs):
        ours.append(questions_at_once(model, images, args.tokens, QUESTIONS))
        if skipped is None:
            told = llama(checkpoint, args)
            if "error" in told:
                skipped = told["error"]
            else:
                theirs.append({key: told[key]["best"] for key in ("requests_per_minute", "total_s")})
    made: dict[str, Any] = {"galago": figures(ours)}
    if theirs:
        made[f"llama.cpp {args.llama_precision}"] = figures(theirs)
    return {**made, "skipped": skipped}


def llama(checkpoint: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A run of the same through llama-server: its report, or {"error": the last line it said}."""
    command = [args.peer_python, LLAMA, "--checkpoint", checkpoint, "--server", args.llama_server]
    command += ["--precision", args.llama_precision, "--at-once", QUESTIONS, "--image", args.image]
    command += ["--tokens", args.tokens, "--runs", 1, *(["--threads", args.threads] if args.threads else [])]
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=args.limit)
        if done.returncode == 0:
            report: dict[str, Any] = json.loads(done.stdout)
            return report
    except (subprocess.TimeoutExpired, OSError, ValueError) as error:
        return {"error": str(error)}
    said = [line for line in done.stderr.splitlines() if line.strip()]
    return {"error": said[-1] if said else f"ended with code {done.returncode}"}


# --- telling -----------------------------------------------------------------------------------


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [row(head), "|---" * len(head) + "|", *map(row, rows), ""]


def pair(figure: dict[str, float | None]) -> str:
    """Best / median."""
    return " / ".join("-" if v is None else format_number(v) for v in (figure["best"], figure["median"]))


def times(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value and base else "-"


def decode_lines(found: Figures) -> list[str]:
    base = found["1"]["tokens_per_s"]["best"]
    rows = [
        [n, pair(one["tokens_per_s"]), times(one["tokens_per_s"]["best"], base), pair(one["total_s"])]
        for n, one in found.items()
    ]
    return ["## Captions at once", "", *table(["captions", "tokens/s in all", "times one alone", "all of it s"], rows)]


def repeated_lines(found: Figures) -> list[str]:
    heads = {"computed_s": "computed before first tokens s", "all_s": "until first tokens, sum s"}
    heads |= {"later_ttft_s": "first token of the later ones s"}
    rows = [[name, *(pair(one[key]) for key in heads)] for name, one in found.items()]
    same, other = found.values()
    rows.append(["times as much for different ones", *(times(other[k]["best"], same[k]["best"]) for k in heads)])
    return ["## Eight questions, one after another", "", *table(["on", *heads.values()], rows)]


def question_lines(found: Figures) -> list[str]:
    engines = {name: one for name, one in found.items() if name != "skipped"}
    base = engines["galago"]["requests_per_minute"]["best"]
    rows = [
        [
            name,
            pair(one["requests_per_minute"]),
            times(base, one["requests_per_minute"]["best"]),
            pair(one["total_s"]),
        ]
        for name, one in engines.items()
    ]
    lines = [f"## {QUESTIONS} questions at once on one image", ""]
    lines += table(["engine", "requests/min", "galago is times as fast", "all of it s"], rows)
    return lines + ([f"llama-server skipped: {found['skipped']}.", ""] if found["skipped"] else [])


def gap_lines(found: Figures) -> list[str]:
    cases = {name: found[name] for name in ("alone", "while images arrive")}
    edges = [*(f"below {edge:g} ms" for edge in EDGES_MS), f"{EDGES_MS[-1]:g} ms and more"]
    rows = [
        [name, *(str(case["counts"][i]) for case in cases.values())]
        for i, name in enumerate(edges)
        if any(case["counts"][i] for case in cases.values())
    ]
    for key, name in (("median_s", "median ms"), ("p99_s", "99th percentile ms"), ("largest_s", "largest ms")):
        rows.append([name, *(format_number(1e3 * case[key]) for case in cases.values())])
    lines = ["## Gaps between two points (two tokens each)", "", *table(["gap", *cases], rows)]
    alone, busy = cases.values()
    lines.append(f"{busy['images']} images arrived.")
    lines.append(f"The largest gap is {times(busy['largest_s'], alone['median_s'])} times the median alone.")
    lines.append(
        f"The longest piece of work on an image or a prompt took {format_number(1e3 * found['longest_piece_s'])} ms."
    )
    return [*lines, ""]


def overhead_lines(found: Figures) -> list[str]:
    lines = [f"## {found['requests']} requests at once on a model of the bundled one's size", ""]
    lines.append(f"{found['tokens']} tokens in {found['seconds']:.3g} s.")
    lines.append(
        f"{found['steps']} steps, {1e3 * found['step_s']:.3g} ms each, of which the scheduler takes"
        f" {1e3 * found['scheduler_per_step_s']:.3g} ms, and the skills {1e3 * found['skills_per_step_s']:.3g} ms."
    )
    return [*lines, ""]


LINES = {
    "decode": decode_lines,
    "repeated": repeated_lines,
    "questions": question_lines,
    "gaps": gap_lines,
    "overhead": overhead_lines,
}


def main() -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", default="moondream2", help="a model of the catalogue, to make random weights for")
    made.add_argument("--checkpoint", type=Path, help="a folder of random weights instead")
    made.add_argument("--precision", default="int8")
    made.add_argument("--device")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    made.add_argument("--image", default="378x378", help="width x height")
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--runs", type=int, default=3)
    made.add_argument("--llama-server", help="the binary; without it there is no comparison")
    made.add_argument("--llama-precision", default="q8_0", help="of its text model")
    made.add_argument("--peer-python", default=sys.executable, help="the interpreter with what the peers need")
    made.add_argument("--limit", type=int, default=1800, help="seconds that one run of llama-server may take")
    made.add_argument("--out", type=Path, default=Path("runs/batching"), help="where to write, without the suffix")
    args = made.parse_args()
    if args.tokens < 2:
        made.error("--tokens must be at least 2")

    try:
        found = measured(args.checkpoint or ensure_random_checkpoint(args.model), args)
    except GalagoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    about, date = found.pop("about"), datetime.now(UTC).date().isoformat()
    document = {
        "date": date,
        "command": shlex.join(["python", *sys.argv]),
        "machine": describe_machine(),
        **about,
        **{key: getattr(args, key) for key in ("image", "tokens", "threads", "runs")},
        "parts": found,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    words = [f"{date}, {about['model']} {about['precision']} ({about['kernels']}), random weights, {args.image},"]
    words += [f"{args.tokens} tokens, {args.threads} threads, {args.runs} runs; best / median.", ""]
    for part, result in found.items():
        words += LINES[part](result)
    text = "\n".join(words).rstrip() + "\n"
    args.out.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
