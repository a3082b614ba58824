"""Whatever the OpenAPI document allows or forbids, the server answers as the document says."""

import base64
import io
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from serving import serving

from galago.pool import ModelPool
from galago.server.app import create_app

pytest.importorskip("schemathesis")
EXAMPLES = 20
"""of each operation; without --phases there are 4,000 requests more, in minutes"""
# What a schema of JSON cannot say: whether a text is an image, that a conversation ends with something to answer,
# and that a gaze needs an eye or a face. Such requests are refused with 400, which the check would call a mistake.
UNSAID = "positive_data_acceptance"
CONFIG = """
[checks.not_a_server_error]
# Segmentation is offered by no model, and a time limit may be as short as the client likes.
expected-statuses = ["2xx", "4xx", 501, 504]
"""
IMAGES = """
import schemathesis
from hypothesis import strategies as st
schemathesis.openapi.format("image-url", st.sampled_from({urls}))
"""


def picture(size: tuple[int, int], kind: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", size, "red").save(out, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


def test_every_route_keeps_to_its_description(tmp_path: Path) -> None:
    urls = [picture((8, 8), "PNG"), picture((90, 30), "JPEG"), picture((1, 1), "GIF")]
    (tmp_path / "images.py").write_text(IMAGES.format(urls=urls))
    (tmp_path / "schemathesis.toml").write_text('hooks = "images.py"\n' + CONFIG)
    with serving(create_app(ModelPool(keep_alive=None, options={"device": "cpu"}))) as url:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--checks", "all"]
        command += [
            "--phases",
            "fuzzing",
            "--exclude-checks",
            UNSAID,
            "--max-examples",
            str(EXAMPLES),
            "--seed",
            "1",
            "--no-color",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
