"""What is wrong with a command is found without PyTorch, which takes seconds to import."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

CASES: dict[str, tuple[str, str]] = {
    # command: exit code 2 and these words
    "serve no-such-model --port 0": ("no-such-model", "known are"),
    "serve moondrem2 --port 0": ("did you mean moondream2?", ""),
    "serve scenes moondream9 --port 0": ("moondream9", ""),
    "serve ./nowhere --port 0": ("no folder or file", ""),
    "serve scenes --precision int3": ("--precision must be", "int8"),
    "serve scenes --profile fast": ("--profile must be", ""),
    "serve scenes --device abacus": ("--device must be", ""),
    "serve scenes --revision 1999 --port 0": ("unknown revision '1999'", ""),
    "serve scenes --threads 0": ("--threads must be", ""),
    "serve scenes --port 99999": ("--port must be", ""),
    "serve --config none.toml": ("none.toml", ""),
    "worker moondrem2": ("did you mean moondream2?", ""),
    "worker scenes --jobs-keep-s -1": ("--jobs-keep-s must be", ""),
    "worker scenes --revision 1999": ("unknown revision '1999'", ""),
    "caption a.png -m moondrem2": ("did you mean moondream2?", ""),
    "caption a.png -m smolvlm-hybrid": ("is a route", ""),
    "caption a.png --precision int3": ("unknown precision 'int3'", "int8"),
    "caption a.png --profile fast": ("unknown profile 'fast'", "optimized"),
    "caption a.png --device abacus": ("unknown device 'abacus'", "cuda"),
    "caption a.png --threads 0": ("threads must be at least 1", ""),
    "caption a.png --revision 1999": ("unknown revision '1999'", "2025-06-21"),
    "caption a.png --variant none.safetensors": ("none.safetensors", "--variant"),
    "caption a.png --temperature -1": ("temperature", ""),
    "caption a.png --detail coarse": ("detail must be low or high", ""),
    "caption a.png --fps 0": ("fps", ""),
    "caption none.png": ("none.png", "No such file"),
    "caption broken.png": ("broken.png", ""),
    "caption a.png --length huge": ("huge", ""),
    "caption": ("IMAGE", ""),
    "query a.png what? -m moondrem2": ("did you mean moondream2?", ""),
    "query what? -m moondrem2": ("did you mean moondream2?", ""),
    "query what? --device abacus": ("abacus", ""),
    "query a.png what? --ref 0.5": ("--ref", ""),
    "query none.png what?": ("none.png", ""),
    "detect a.png cat -m moondrem2": ("did you mean moondream2?", ""),
    "detect none.png cat": ("none.png", ""),
    "detect a.png cat --max-objects 0": ("max_objects", ""),
    "detect a.png cat --draw a.png": ("never overwritten", ""),
    "point a.png cat --precision int3": ("int3", ""),
    "gaze a.png --eye here": ("--eye", ""),
    "gaze none.png --eye 0.5,0.5": ("none.png", ""),
    "watch none.mp4 what?": ("none.mp4", ""),
    "watch a.png what? -m moondrem2": ("did you mean moondream2?", ""),
    "bench moondream9": ("moondream9", ""),
    "bench --random moondream9": ("moondream9", ""),
    "bench --precision int3": ("int3", "float32"),
    "bench --device abacus": ("abacus", ""),
    "bench --image big": ("--image", ""),
    "bench --compare none.json": ("none.json", ""),
    "bench --save a.png": ("--force", ""),
    "eval nothing": ("no task 'nothing'", ""),
    "eval scenes -m moondream9": ("moondream9", ""),
    "eval scenes --precision int3": ("int3", ""),
    "eval scenes --min nothing=3": ("nothing", ""),
    "eval scenes --compare moondream9 scenes": ("moondream9", ""),
    "eval pope": ("--data", ""),
    "eval pope --data none": ("none", ""),
    "quantize moondream9 --to int8": ("moondream9", ""),
    "quantize scenes --to int3": ("int8 or int4", ""),
    "quantize scenes --to int8 --out a.png": ("not a folder", ""),
    "show moondream9": ("moondream9", ""),
    "show scenes --device abacus": ("abacus", ""),
    "models pull moondream9": ("moondream9", ""),
    "models remove scenes": ("part of galago", ""),
    "jobs list --status lost": ("--status must be", "cancelled"),
    "jobs retry": ("--failed", ""),
    "jobs --jobs-db none.db": ("no job database none.db", ""),
    "paint a.png": ("paint", ""),
}
TRAPPED = """
import contextlib, io, json, sys

class Trap:
    def find_spec(self, name, *_):
        if name == "torch":
            raise RuntimeError("torch is imported")

sys.meta_path.insert(0, Trap())
from galago.cli.app import main

for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(line.split())
        except RuntimeError as error:
            code = str(error)
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, str]]:
    """Exit code and standard error of each command, all in one process for which importing PyTorch is an error."""
    folder = tmp_path_factory.mktemp("wrong")
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nonsense")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "GALAGO_CACHE": str(folder / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", TRAPPED],
        input="\n".join(CASES),
        capture_output=True,
        text=True,
        cwd=folder,
        env=env,
        check=True,
    )
    return dict(zip(CASES, map(json.loads, ran.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("command", CASES)
def test_it_is_found_without_torch(told: dict[str, tuple[object, str]], command: str) -> None:
    code, said = told[command]
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1, (code, said)
    assert all(words in said for words in CASES[command])


def test_a_fine_command_would_import_it(tmp_path: Path) -> None:
    """The trap is one."""
    ran = subprocess.run([sys.executable, "-c", TRAPPED], input="query what?", capture_output=True, text=True)
    assert json.loads(ran.stdout)[0] == "torch is imported"
