"""What `galago batch` does with many images, and whether it loses any.

python benchmarks/batch.py kills --count 2000 --kills 5
python benchmarks/batch.py rate --model scenes --count 400
python benchmarks/batch.py rate --random moondream2 --precision int8 --tokens 64 --count 16
python benchmarks/batch.py memory --count 20000
python benchmarks/batch.py broken --count 400

kills   drawn scenes are asked about by the command, which is killed at random moments and started again, once for
        JSON lines, Parquet and WebDataset each; its rows have to be those of a run that was left alone
rate    images a minute of a batch beside a loop of single calls on the same model, in turn, and the share of
        what the machine could do: encoding and prefill at the speed of products, as `galago bench` measures it, and
        decode as quick as that of 16 images that are encoded already
memory  resident memory of the command every so many images
broken  one file in twenty is broken in one of ten ways: all have to be named, and no other lost
"""

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import galago
from galago.batch.inputs import InputOptions, read_inputs
from galago.batch.job import Job
from galago.batch.opened import Roots
from galago.batch.outputs import NoOutput
from galago.batch.questions import make_questions
from galago.batch.run import Counts
from galago.lab.bench.ceilings import measure_ceilings
from galago.lab.bench.random import ensure_random_checkpoint
from galago.lab.eval.scenes.draw import scene_at
from galago.media.timeline import FrameSampling
from galago.request import Caption, Done, Request, Sampling
from galago.system.machine import describe_machine

COMMAND = [sys.executable, "-m", "galago.cli.app", "batch"]
ASKED = ["--caption", "short", "--detect", "circle"]
SEED = 20300


def draw(folder: Path, count: int, size: tuple[int, int] | None = None) -> Path:
    """So many drawn scenes as files, if need be all of one size: a model's tiles depend on it."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        path = folder / f"{n:06}.png"
        if not path.exists():
            image = scene_at(SEED, n).image
            (image.resize(size) if size else image).save(path)
    return folder


# --- kills -------------------------------------------------------------------------------------


def read_rows(out: Path) -> list[dict[str, Any]]:
    if out.is_file():
        return [json.loads(line) for line in out.read_bytes().splitlines()]
    rows = []
    for part in sorted(out.iterdir()):
        if part.suffix == ".parquet":
            import pyarrow.parquet

            rows += pyarrow.parquet.read_table(part).to_pylist()
        elif part.suffix == ".tar":
            with tarfile.open(part) as tar:
                rows += [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return rows


def kills(args: argparse.Namespace, folder: Path) -> None:
    photos = draw(folder / "photos", args.count)
    chosen = random.Random(args.seed)
    outputs = {"jsonl": "out.jsonl", "parquet": "parquet", "webdataset": "webdataset"}
    for kind, name in outputs.items():
        options = [] if "." in name else ["--format", kind, "--shard-rows", "300"]
        whole, out = folder / f"whole-{name}", folder / name
        command = [*COMMAND, str(photos), *ASKED, "--model", args.model or "scenes", *options]
        begin = time.monotonic()
        subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
        alone = time.monotonic() - begin
        killed = 0
        for _ in range(args.kills):
            process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
            try:
                process.wait(chosen.uniform(0.05, 0.3) * alone)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                killed += 1
                process.wait()
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
        found, wanted = read_rows(out), read_rows(whole)
        once = set(Counter(row["image"] for row in found).values()) == {1} and len(found) == args.count
        same = "equal" if found == wanted else "NOT EQUAL"
        print(
            f"{kind}: {killed} kills, {len(found)} rows, each image once: {once}, rows {same}; unbroken {alone:.0f} s"
        )


# --- rate --------------------------------------------------------------------------------------


def rate(args: argparse.Namespace, folder: Path) -> None:
    """In turn: a loop of single calls over some images, and a batch over some others of the same kind."""
    photos = sorted(draw(folder / "photos", args.count * (args.rounds + 1), (args.side, args.side)).iterdir())
    name = str(ensure_random_checkpoint(args.random)) if args.random else args.model or "scenes"
    settings = {"max_tokens": args.tokens, "detail": args.detail}
    ratios, shares = [], []
    with galago.load(name, precision=args.precision) as model:
        model.caption(photos[-1], settings=settings)
        for turn in range(args.rounds):
            files = photos[turn * args.count : (turn + 1) * args.count]
            singles = files[: max(2, args.count // args.fewer)]
            alone = 60 / per_image(lambda: [model.caption(f, settings=settings) for f in singles], len(singles))  # noqa: B023
            model.trim()
            together = 60 / per_image(lambda: batch(model, files, settings), len(files))  # noqa: B023
            limit = 60 / seconds_at_the_limit(model, files[0], args) if args.random else 0.0
            ratios.append(together / alone)
            shares.append(together / limit if limit else 0.0)
            print(
                f"images a minute: loop {alone:.2f}, batch {together:.2f} ({ratios[-1]:.2f} times)"
                + (f", the machine's own limit {limit:.2f} ({shares[-1]:.0%})" if limit else ""),
                flush=True,
            )
        print(
            f"{model.name} {model.precision}, {model.kernels}, {args.tokens} tokens: "
            f"{statistics.median(ratios):.2f} times"
        )
    print(describe_machine())


def per_image(work: Callable[[], object], count: int) -> float:
    begin = time.monotonic()
    work()
    return (time.monotonic() - begin) / count


def batch(model: galago.Model, files: list[Path], settings: dict[str, Any]) -> None:
    questions = make_questions(captions=["normal"], settings=settings)
    job = Job(read_inputs([str(file) for file in files], InputOptions()), questions, Roots.of([]))
    job.run(model.backend, NoOutput(), counts := Counts(), FrameSampling(), lambda: None)
    assert counts.done == len(files) and not counts.failed, counts


def seconds_at_the_limit(model: galago.Model, file: Path, args: argparse.Namespace) -> float:
    """Seconds an image of encoding and prefill at the speed of products, and a sixteenth of sixteen decoded at once."""
    image = galago.media.image.load_image(file)
    work = model.backend.model.work(image.size, 0, args.detail)  # type: ignore[attr-defined]
    product = max(v for n, v in measure_ceilings(None, None)["matmul_tflop_per_s"].items() if n == model.precision)

    def ask(tokens: int, count: int) -> tuple[float, int]:
        request = Request(Caption("normal"), image, Sampling(max_tokens=tokens), priority="batch", detail=args.detail)
        begin = time.monotonic()
        runs = [model.submit(request) for _ in range(count)]
        ends = [event for run in runs for event in run if isinstance(event, Done)]
        return time.monotonic() - begin, ends[0].usage.prompt_tokens

    _, prompt = ask(1, 1)
    first, _ = ask(1, 16)
    whole, _ = ask(args.tokens, 16)
    decode = (whole - first) / 16
    return (work.encode + work.prefill * prompt) / (product * 1e12) + decode


# --- memory and broken files -------------------------------------------------------------------


def memory(args: argparse.Namespace, folder: Path) -> None:
    """The same hundred scenes, over and over, as a list: what grows is what is held of rows."""
    photos = sorted(draw(folder / "photos", 100).iterdir())
    listed = folder / "list.txt"
    listed.write_text("".join(f"{photos[n % 100]}\n" for n in range(args.count)))
    out = folder / "out.jsonl"
    command = [*COMMAND, str(listed), "--caption", "short", "--max-tokens", "2", "--model", args.model or "scenes"]
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    wanted = args.count // 10
    while process.poll() is None:
        time.sleep(0.5)
        rows = sum(1 for _ in out.open("rb")) if out.exists() else 0
        if rows >= wanted:
            status = Path(f"/proc/{process.pid}/status").read_text()
            rss = next((line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")), "0")
            print(f"{rows} rows: {int(rss) / 1024:.0f} MiB", flush=True)
            wanted += args.count // 10
    print(f"exit code {process.returncode}, {sum(1 for _ in out.open('rb'))} rows")


def broken(args: argparse.Namespace, folder: Path) -> None:
    photos = draw(folder / "photos", args.count)
    whole = (photos / "000000.png").read_bytes()
    ways: list[Callable[[Path], object]] = [
        lambda p: p.write_bytes(b""),
        lambda p: p.write_bytes(whole[:20]),
        lambda p: p.write_bytes(whole[: len(whole) // 2]),
        lambda p: p.write_text("<html>404</html>"),
        lambda p: p.write_bytes(b"\0" * 5000),
        lambda p: p.write_bytes(whole[:8] + bytes(reversed(whole[8:]))),
        lambda p: p.write_bytes(b"\xff\xd8\xff\xe0" + b"x" * 100),
        lambda p: (p.unlink(), p.symlink_to("nowhere.png")),
        lambda p: p.write_bytes(whole[:16] + b"\xff\xff\xff\xff" + whole[20:]),
        lambda p: p.write_bytes(b"GIF89a" + b"\1" * 40),
    ]
    chosen = sorted(photos.iterdir())[::20]
    for n, path in enumerate(chosen):
        ways[n % len(ways)](path)
    out = folder / "out.jsonl"
    ran = subprocess.run(
        [*COMMAND, str(photos), "--caption", "short", "--model", args.model or "scenes", "--out", str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    rows = read_rows(out)
    failed = {Path(row["image"]) for row in rows if "error" in row}
    print(
        f"exit code {ran.returncode}; {len(rows)} rows of {args.count}; "
        f"{len(failed)} with an error of {len(chosen)} broken"
    )
    print(f"exactly those that are broken: {failed == set(chosen)}")
    for message in sorted({row["error"]["message"].partition("png ")[2] for row in rows if "error" in row}):
        print(f"  {message}")


PARTS = {"kills": kills, "rate": rate, "memory": memory, "broken": broken}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("part", choices=PARTS)
    made.add_argument("--count", type=int, default=400, help="images")
    made.add_argument("--model")
    made.add_argument("--random", help="a model at full size with random weights, as moondream2")
    made.add_argument("--precision")
    made.add_argument("--tokens", type=int, default=64)
    made.add_argument("--detail", choices=["low", "high"], default="high")
    made.add_argument("--side", type=int, default=378, help="pixels of the images whose rate is measured, each way")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--fewer", type=int, default=4, help="the loop asks about a part of the images")
    made.add_argument("--kills", type=int, default=5)
    made.add_argument("--seed", type=int, default=1)
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        PARTS[args.part](args, Path(folder))


if __name__ == "__main__":
    main()
