"""Decoding alone through llama.cpp's `llama-bench`: tokens a second after a prompt of as many positions.

    python benchmarks/peers/llama_text.py --checkpoint runs/smolvlm2-500m-random --depth 1158 \\
        --bench llama.cpp/build/bin/llama-bench

Wants the GGUF file of `gguf_smolvlm.py` (or `gguf_checkpoint.py`) in the checkpoint's folder `gguf`.
"""

import json
import shutil
import subprocess

from common import missing, parser, report


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--precision", choices=("f16", "q8_0", "q4_0"), default="q8_0")
    made.add_argument("--bench", default="llama-bench", help="the binary")
    made.add_argument("--depth", type=int, default=1158, help="positions before the first token")
    args = made.parse_args()
    if shutil.which(args.bench) is None:
        missing(f"no llama-bench at {args.bench}; give --bench")
    model = args.checkpoint / "gguf" / f"text-{args.precision}.gguf"
    if not model.is_file():
        missing(f"{model}; gguf_smolvlm.py makes it")
    asked = ["-p", "0", "-n", args.tokens, "-d", args.depth, "-t", args.threads, "-r", args.runs, "-o", "json"]
    words = [str(word) for word in (args.bench, "-m", model, *asked)]
    (told,) = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    report(
        args,
        engine="llama.cpp, text only",
        version=f"llama.cpp {told['build_commit']}",
        precision=args.precision,
        load_s=0.0,
        runs=[{"decode_tokens_per_s": speed} for speed in told["samples_ts"]],
        peak=None,
        note=f"decoding after {args.depth} positions",
    )


if __name__ == "__main__":
    main()
