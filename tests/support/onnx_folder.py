"""Exporting a model as ONNX graphs, and running programs that have no PyTorch."""

import os
from pathlib import Path
from typing import Any

from galago.cli.app import main

WITHOUT_TORCH = """
import sys


class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name="torch")


sys.meta_path.insert(0, NoTorch)
"""
"""A module of the start of a program: afterwards it is as if PyTorch had never been installed."""


def export(model: Path | str, precision: str = "float32", out: Path | None = None) -> Path:
    """The folder with the graphs of a model."""
    made = out or Path(model).with_name(f"{Path(model).name}-{precision}-onnx")
    assert main(["export", str(model), "--to", "onnx", "--precision", precision, "--out", str(made)]) == 0
    return made


def environment_without_torch(folder: Path) -> dict[str, str]:
    """The environment of programs without PyTorch; `folder` is for a module that they begin with."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WITHOUT_TORCH)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def events_of(model: Any, request: Any) -> list[str]:
    """All that a model says to a request but how long it took."""
    *events, done = model.submit(request)
    return [*map(repr, events), repr((done.finish_reason, done.usage))]
