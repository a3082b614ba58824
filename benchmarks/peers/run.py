"""Run engines in turn on the same work, and write what they gave as JSON and as a Markdown table.

    python benchmarks/peers/run.py --checkpoint runs/moondream2-random --rounds 3 --out runs/peers \\
        --engines galago:int8 galago:bfloat16 llama:q4_0 llama:q8_0 reference:bfloat16 \\
        --images 378x378 1024x768 --llama-server llama.cpp/build/bin/llama-server --reference moondream-reference \\
        --baseline reference:bfloat16 llama:q4_0

An engine is `name:precision`: `galago`, `galago-low` (one view of any image, as `llama` has), `llama`, `reference`
(also `reference-compiled`), `phi`; for SmolVLM2, of whose images `8x512x512` is a clip of eight frames, `galago`,
`galago-low`, `smolvlm` and `smolvlm-low` (transformers) and `llama-text` (decoding alone). Each gets a process of its
own; with several rounds they take turns, so that a machine which slows down for a while hits all of them. Best is over
all runs of all rounds; median is the median of the rounds' medians. Weights are read into the system's cache before
each process. An engine that is not there is named with the reason, and skipped. Everything beside ours is started with
`--peer-python`, which may be of another environment than this one.

Writes `OUT.json` and `OUT.md`.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import HIGHER_IS_BETTER

HERE = Path(__file__).resolve().parent
ENGINES = (
    "galago",
    "galago-low",
    "llama",
    "llama-text",
    "reference",
    "reference-compiled",
    "phi",
    "smolvlm",
    "smolvlm-low",
)
RATIOS = ("encode_s", "prefill_s", "ttft_s", "decode_tokens_per_s", "total_s")
HEADINGS = {
    "load_s": "load s",
    "encode_s": "encode s",
    "prefill_s": "prefill s",
    "ttft_s": "first token s",
    "again_s": "asked again s",
    "decode_tokens_per_s": "decode tok/s",
    "total_s": "total s",
}
GALAGO = "import sys; from galago.cli.app import main; sys.exit(main())"
Result = dict[str, Any]


def command(engine: str, image: str, args: argparse.Namespace) -> list[str]:
    name, _, precision = engine.partition(":")
    settings = ["--image", image, "--tokens", args.tokens, "--threads", args.threads, "--runs", args.runs]
    made: list[Any]
    if name in ("galago", "galago-low"):
        made = [sys.executable, "-c", GALAGO, "bench", args.checkpoint, "--json", "--no-ceilings", *settings]
        made += ["--precision", precision] if precision else []
        made += ["--detail", "low"] if name == "galago-low" else []
    else:
        script, extra = {
            "llama": ("llama_server.py", ["--server", args.llama_server]),
            "llama-text": ("llama_text.py", ["--bench", args.llama_bench, "--depth", args.depth]),
            "reference": ("reference.py", ["--reference", args.reference]),
            "reference-compiled": ("reference.py", ["--reference", args.reference, "--compile"]),
            "phi": ("phi.py", []),
            "smolvlm": ("smolvlm.py", []),
            "smolvlm-low": ("smolvlm.py", ["--low"]),
        }[name]
        made = [args.peer_python, HERE / script, "--checkpoint", args.checkpoint, *settings, *extra]
        made += ["--precision", precision] if precision and name != "phi" else []
    return [str(word) for word in made]


def read_weights(engine: str, checkpoint: Path) -> None:
    """Read a peer's files into the system's cache: a process of many gigabytes may have driven them out.

    `galago bench` does so itself.
    """
    if not engine.startswith("galago"):
        for file in checkpoint.glob("gguf/*.gguf" if engine.startswith("llama") else "*.safetensors"):
            with file.open("rb") as source, open(os.devnull, "wb") as nothing:
                shutil.copyfileobj(source, nothing, 1 << 20)


def attempt(engine: str, image: str, args: argparse.Namespace) -> Result:
    """One process: its report, or `{"error": the last line it said}`."""
    read_weights(engine, args.checkpoint)
    load = round(os.getloadavg()[0], 2)
    try:
        done = subprocess.run(command(engine, image, args), capture_output=True, text=True, timeout=args.limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {args.limit} s"}
    except OSError as error:
        return {"error": str(error)}
    said = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode != 0:
        return {"error": said[-1] if said else f"ended with code {done.returncode}"}
    try:
        return {**json.loads(done.stdout), "asked": engine, "load_average_before": load}
    except json.JSONDecodeError:
        return {"error": f"gave no JSON but {done.stdout[:80]!r}"}


def both(value: Any) -> tuple[float, float] | None:
    """Best and median of a figure, which may also be one plain number; None if it is not known."""
    pair = (value["best"], value["median"]) if isinstance(value, dict) else (value, value)
    return None if None in pair else pair


def combined(reports: list[Result]) -> Result:
    """The rounds of one engine and image as one."""
    out: Result = {}
    for key in HEADINGS:
        found = [pair for report in reports if (pair := both(report.get(key)))]
        if found:
            choose = max if key in HIGHER_IS_BETTER else min
            out[key] = {
                "best": choose(best for best, _ in found),
                "median": statistics.median(median for _, median in found),
            }
    peaks = [
        pair for report in reports if (pair := both(report.get("peak_of_all_bytes", report.get("peak_rss_bytes"))))
    ]
    if peaks:
        out["peak_rss_bytes"] = max(max(pair) for pair in peaks)
    return out


def ratio(one: Result, base: Result, key: str, kind: str) -> float | None:
    """How many times faster `one` is than `base`."""
    if key not in one or key not in base:
        return None
    ours, theirs = one[key][kind], base[key][kind]
    return ours / theirs if key in HIGHER_IS_BETTER else theirs / ours


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def figures(summary: dict[str, Result]) -> list[str]:
    """A table of best / median of every engine."""
    lines = [row(["engine", *HEADINGS.values(), "peak GB"]), "|---" * (len(HEADINGS) + 2) + "|"]
    for engine, result in summary.items():
        cells = [
            f"{result[key]['best']:.2f} / {result[key]['median']:.2f}" if key in result else "-" for key in HEADINGS
        ]
        peak = f"{result['peak_rss_bytes'] / 1e9:.2f}" if "peak_rss_bytes" in result else "-"
        lines.append(row([engine, *cells, peak]))
    return lines


def ratios(summary: dict[str, Result], base: str) -> list[str]:
    """A table of how many times faster each engine is than one of them."""
    names = [HEADINGS[key].removesuffix(" s") for key in RATIOS]
    lines = [row([f"times as fast as {base}", *names]), "|---" * (len(RATIOS) + 1) + "|"]
    for engine, result in summary.items():
        found = [ratio(result, summary[base], key, "best") for key in RATIOS]
        lines.append(row([engine, *("-" if times is None else f"{times:.2f}" for times in found)]))
    return lines


def machine() -> dict[str, Any]:
    """What the figures depend on, as far as the system tells."""
    out: dict[str, Any] = {"platform": platform.platform(), "python": platform.python_version()}
    out["cores"] = os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        out["cpu"] = fields.get("model name")
        flags = fields.get("flags", "").split()
        out["flags"] = [flag for flag in flags if flag.startswith(("avx", "amx", "fma"))]
    if hasattr(os, "sysconf"):
        out["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return out


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--checkpoint", type=Path, required=True, help="the folder that galago.lab.bench.random prints")
    made.add_argument("--engines", nargs="+", required=True, help="name:precision, in the order to run them")
    made.add_argument("--images", nargs="+", default=["378x378"], help="width x height")
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--runs", type=int, default=3, help="requests of one process")
    made.add_argument("--rounds", type=int, default=1, help="processes of each engine")
    made.add_argument("--limit", type=int, default=1800, help="seconds that one process may take")
    made.add_argument("--baseline", nargs="*", default=[], help="engines to give ratios against")
    made.add_argument("--llama-server", default="llama-server", help="the binary")
    made.add_argument("--llama-bench", default="llama-bench", help="the binary")
    made.add_argument("--depth", type=int, default=1158, help="positions before what llama-text decodes")
    made.add_argument(
        "--reference", type=Path, default=Path("moondream-reference"), help="a clone of vikhyat/moondream"
    )
    made.add_argument("--peer-python", default=sys.executable, help="the interpreter with what the peers need")
    made.add_argument("--out", type=Path, default=Path("runs/peers"), help="where to write, without the suffix")
    args = made.parse_args()

    unknown = [engine for engine in args.engines if engine.partition(":")[0] not in ENGINES]
    if unknown:
        made.error(f"unknown engine {unknown[0]}; known: {', '.join(ENGINES)}")

    reports: dict[str, dict[str, list[Result]]] = {image: {} for image in args.images}
    skipped: dict[str, str] = {}
    for number in range(1, args.rounds + 1):
        for image in args.images:
            for engine in args.engines:
                if engine in skipped:
                    continue
                print(f"round {number} of {args.rounds}, {image}: {engine}", file=sys.stderr, flush=True)
                result = attempt(engine, image, args)
                if "error" in result:
                    skipped[engine] = result["error"]
                    print(f"  skipped: {result['error']}", file=sys.stderr, flush=True)
                    continue
                reports[image].setdefault(engine, []).append(result)

    summary = {image: {e: combined(found) for e, found in engines.items()} for image, engines in reports.items()}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    line = shlex.join(["python", *sys.argv])
    document = {
        "date": date,
        "command": line,
        "machine": machine(),
        "skipped": skipped,
        "summary": summary,
        "results": reports,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")

    words = [f"{date}, {args.tokens} tokens, {args.threads} threads, {args.rounds} rounds of {args.runs} runs.", ""]
    words += ["Best / median; the ratios are of the best figures, above 1 is faster.", ""]
    for image, engines in summary.items():
        words += [f"## {image}", "", *figures(engines), ""]
        for base in args.baseline:
            words += [*ratios(engines, base), ""] if base in engines else []
    words += [f"Skipped: {engine} ({why})." for engine, why in skipped.items()]
    text = "\n".join(words).rstrip() + "\n"
    args.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
