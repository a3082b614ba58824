"""What a program that uses galago sees: its names, and their types."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import galago

with galago.load("scenes") as model:
    run = model.submit(galago.Request(galago.Query("What?"), sampling=galago.Sampling(max_tokens=3)))
    for event in run:
        if isinstance(event, galago.TextDelta):
            text: str = event.text
    again: galago.Run = galago.load("scenes").submit(galago.Request(galago.Caption("short")))
    wrong = galago.Request(galago.Caption(7))  # type: ignore[arg-type]
    also_wrong: int = galago.Sampling().temperature  # type: ignore[assignment]


async def main() -> None:
    async with await galago.aio.load("scenes") as together:
        result: dict[str, object] = await together.caption("photo.jpg")
        async for event in galago.aio.events(together.model, galago.Request(galago.Caption())):
            known: galago.Event = event
            unknown: int = event  # type: ignore[assignment]
"""
SETTINGS = """
[mypy]
strict = True
[mypy-torch.*,numpy.*,PIL.*,safetensors.*,tokenizers.*,huggingface_hub.*,llguidance.*,prometheus_client.*]
follow_imports = skip
follow_imports_for_stubs = True
"""
"""The packages behind it would take mypy a minute."""


def printed(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_requests_are_made_without_torch() -> None:
    made = "galago.Request(galago.Query('What?'), sampling=galago.Sampling(seed=1)), galago.Message('user', 'x')"
    assert printed(f"import sys, galago; {made}; print({{'torch', 'numpy', 'PIL'}} & {{*sys.modules}})") == "set()\n"


def test_all_that_is_public_is_there() -> None:
    missing = "{*galago.__all__} - ({*globals()} & {*dir(galago)})"
    assert printed(f"from galago import *; import galago; print({missing})") == "set()\n"
    assert printed("import galago; print(galago.aio.events.__module__)") == "galago.aio\n"


def test_a_users_program_is_checked_against_galagos_types(tmp_path: Path) -> None:
    """`type: ignore` stands where mypy is to find an error; one that is not needed is an error itself."""
    pytest.importorskip("mypy")
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    checked = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    done = subprocess.run(checked, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
