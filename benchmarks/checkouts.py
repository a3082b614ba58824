"""How fast one state of Galago is beside another, in turns on one machine.

    python benchmarks/checkouts.py ../before/.venv/bin/python .venv/bin/python --model scenes --precision int8
    python benchmarks/checkouts.py ../before/.venv/bin/python .venv/bin/python --model ~/checkpoint --rounds 3 --runs 3

Each interpreter has its own state installed, kernels included. A round starts a process of each, which loads the model,
encodes images that it has not seen, asks a question of one token and has a caption written; with `--objects`, and a
model of random weights, which always finds as many, sixteen detections of so many run together instead. Prints, for
each figure, the least of all rounds and the ratio of the second state to the first. `--model` takes what `galago.load`
does; what is packed before the first round counts as loading there, so the least of several is a load from the packed
copy.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

FIGURES = ("load_s", "encode_ms", "query_ms", "caption_ms", "detections_ms")
TOGETHER = 16


def least(work: Callable[[], object], times: int) -> float:
    """Milliseconds of the quickest quarter's last, which other programs' bursts do not move."""
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return sorted(found)[times // 4] * 1e3


def measured(name: str, precision: str, runs: int, tokens: int, objects: int) -> dict[str, float]:
    import random

    from PIL import Image

    import galago
    from galago.request import Detect, ObjectFound, Request

    folder = Path(name).expanduser()
    begin = time.perf_counter()
    with galago.load(folder if folder.is_dir() else name, precision=precision) as model:
        load = time.perf_counter() - begin
        if objects:
            shown = model.encode_image(Path(__file__).parent.parent / "examples" / "scene.png")

            def detections() -> None:
                asked = [Request(Detect(f"thing {i}", objects), shown) for i in range(TOGETHER)]
                for run in [model.submit(request) for request in asked]:
                    found = sum(isinstance(event, ObjectFound) for event in run)
                    assert found == objects, f"{found} of {objects} found: are these random weights?"

            return {"load_s": load, "detections_ms": least(detections, runs)}
        noise = random.Random(0)
        encode = least(
            lambda: model.encode_image(Image.frombytes("RGB", (378, 378), noise.randbytes(378 * 378 * 3))), runs
        )
        shown = model.encode_image(Path(__file__).parent.parent / "examples" / "scene.png")

        def caption() -> None:
            model.caption(shown, length="long", settings={"max_tokens": tokens})

        def question() -> None:
            model.query(shown, "What color is the circle?", settings={"max_tokens": 1})

        question()
        caption()
        return {
            "load_s": load,
            "encode_ms": encode,
            "query_ms": least(question, 4 * runs),
            "caption_ms": least(caption, runs),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs=2, help="interpreters of the two states")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20, help="of each figure in a round")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument(
        "--objects", type=int, default=0, help="of each of 16 detections, which are all that is measured"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.model, args.precision, args.runs, args.tokens, args.objects)))
        return
    best: list[dict[str, float]] = [{}, {}]
    for _ in range(args.rounds):
        for python, kept in zip(args.python, best, strict=True):
            command = [python, __file__, *args.python, "--one", "--model", args.model, "--precision", args.precision]
            command += ["--runs", str(args.runs), "--tokens", str(args.tokens), "--objects", str(args.objects)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)
            for figure, value in json.loads(done.stdout.splitlines()[-1]).items():
                kept[figure] = min(value, kept.get(figure, value))
    if args.json:
        print(json.dumps({"model": args.model, "precision": args.precision, "first": best[0], "second": best[1]}))
        return
    print(f"{args.model} {args.precision}: least of {args.rounds} rounds")
    for figure in (figure for figure in FIGURES if figure in best[0]):
        first, second = (kept[figure] for kept in best)
        print(f"  {figure:10} {first:10.4f} {second:10.4f}   {second / first:.3f}")


if __name__ == "__main__":
    main()
