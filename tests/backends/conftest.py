"""Checkpoints of random weights, and the ONNX graphs that were made of them."""

from pathlib import Path

import pytest
import tiny_moondream
import tiny_smolvlm
from onnx_folder import export


@pytest.fixture(scope="session")
def moondream(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a checkpoint and of its graphs."""
    folder = tiny_moondream.write(tmp_path_factory.mktemp("moondream") / "eyes")
    return folder, export(folder)


@pytest.fixture(scope="session")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tiny_smolvlm.write(tmp_path_factory.mktemp("smolvlm") / "talk")
    return folder, export(folder)


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of the bundled model."""
    return export("scenes", out=tmp_path_factory.mktemp("scenes") / "scenes-onnx")
