"""Where PyTorch is not installed, a model of ONNX graphs is loaded, asked and served."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from onnx_folder import environment_without_torch
from server_program import server_program

GALAGO = [sys.executable, "-m", "galago.cli.app"]
PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    return environment_without_torch(tmp_path / "start")


def ran(bare: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GALAGO, *map(str, words)], env=bare, capture_output=True, text=True, timeout=120)


def test_commands_answer(scenes: Path, bare: dict[str, str]) -> None:
    caption = ran(bare, "caption", PICTURE, "--model", scenes)
    assert (caption.returncode, caption.stderr) == (0, "") and "a blue circle" in caption.stdout
    found = ran(bare, "detect", PICTURE, "circle", "--model", scenes, "--json")
    assert len(json.loads(found.stdout)["objects"]) == 1
    shown = ran(bare, "show", scenes, "--json")
    assert json.loads(shown.stdout)["backend"] == "onnx"


def test_other_models_say_what_they_need(bare: dict[str, str]) -> None:
    refused = ran(bare, "caption", PICTURE, "--model", "scenes")
    assert refused.returncode == 2
    assert "needs PyTorch: pip install torch; a folder of `galago export` runs without it" in refused.stderr


def test_an_export_says_what_it_needs(bare: dict[str, str], tmp_path: Path) -> None:
    refused = ran(bare, "export", "scenes", "--to", "onnx", "--out", tmp_path / "out")
    assert refused.returncode == 2 and not (tmp_path / "out").exists()
    assert "an export needs torch: pip install 'galago[onnx]'" in refused.stderr


def test_a_server_answers(scenes: Path, bare: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", bare["PYTHONPATH"])
    picture = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    with server_program(str(scenes)) as (_, address):
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": "What does the word say?"},
        ]
        pieces = client.chat.completions.create(
            model=scenes.name,
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            stream=True,
        )
        said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert "YES" in said.upper()
        found = httpx.post(f"{address}/v1/detect", json={"image_url": picture, "object": "circle"}).json()
        assert len(found["objects"]) == 1
        for path in ("/health", "/v1/models", "/v1/stats", "/metrics", "/"):
            assert httpx.get(address + path).status_code == 200
