"""Galago on Windows, as far as another system can show it: without what Windows lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"
PROGRAM = Path(__file__).parents[1] / "support" / "like_windows.py"


def test_every_module_is_imported_and_a_question_answered_without_what_windows_lacks() -> None:
    environment = {**os.environ, "GALAGO_KERNELS": "none"}
    done = subprocess.run([sys.executable, PROGRAM, PICTURE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert {"galago.aio", "galago.cli.serve", "galago.server.guard.stopping", "galago.lab.bench.child"} <= {
        *told["modules"]
    }
    assert told["answer"].strip() == "blue"
    assert told["stopping"] == ["SIGINT", "SIGTERM"]
    assert (told["free"], told["used"]) == (3 << 30, [1 << 30, 2 << 30])
