"""In int8 and int4 the bundled model says what it says in float32, whatever outliers it has, on every kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from instruction_sets import HERE
from outliers import write_with_outliers
from PIL import Image

from galago.families import ModelFiles
from galago.families.moondream.loading import load_moondream
from galago.families.moondream.model import Moondream
from galago.lab.eval.drift import Divergence, ReferenceAnswer, divergence, reference_answers, replay_logits
from galago.lab.eval.scenes.draw import scene_at
from galago.lab.eval.scenes.ranges import V1
from galago.lab.eval.scenes.score import scene_questions, skill_of
from galago.precision import pick_precision
from galago.store import hub

EXAMPLE = Path(__file__).parents[2] / "examples" / "scene.png"
CPU = torch.device("cpu")
SCENES = 12
COLOR = next(thing.color for thing in scene_at(7, 1396, V1).things if thing.name == "circle")
"""In the example, which is that scene."""
Told = list[tuple[Image.Image, list[ReferenceAnswer], list[torch.Tensor]]]
"""Of each scene its image, the reference's answers and its logits over tokens."""


def opened(files: ModelFiles, precision: str) -> Moondream:
    return load_moondream(files, precision=pick_precision(precision, CPU), device=CPU)


@pytest.fixture(scope="module")
def told() -> Told:
    m = opened(hub.locate("scenes"), "float32")
    found = []
    for scene, tasks in scene_questions(31, SCENES):
        answers = reference_answers(m, m.encode_image(scene.image), map(skill_of, tasks))
        found.append((scene.image, answers, replay_logits(m, scene.image, answers)["logits"]))
    return found


@pytest.fixture(scope="module", params=[1, 30, pytest.param(100, marks=pytest.mark.slow)])
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """The bundled checkpoint with its channels as they are, or some so many times as large."""
    files = hub.locate("scenes")
    if request.param == 1:
        return files
    return hub.locate(write_with_outliers(files, tmp_path_factory.mktemp("outliers"), request.param))


def compared(told: Told, m: Moondream) -> Divergence:
    pairs = [(wanted, replay_logits(m, image, answers)["logits"]) for image, answers, wanted in told]
    return divergence(*([x for part in side for x in part] for side in zip(*pairs, strict=True)))


@pytest.mark.parametrize(("precision", "least", "most"), [("int8", 0.985, 1e-3), ("int4", 0.96, 2e-2)])
def test_says_what_float32_says(told: Told, files: ModelFiles, precision: str, least: float, most: float) -> None:
    found = compared(told, opened(files, precision))
    assert found.count > 500
    assert found.agreed > least and found.mean < most, found


def test_outliers_change_nothing_in_float32(told: Told, files: ModelFiles) -> None:
    found = compared(told[:2], opened(files, "float32"))
    assert found.agreed == 1 and found.largest < 1e-6, found


@pytest.mark.parametrize("kernels", ["none", *HERE])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_answers_on_every_kernel(kernels: str, precision: str) -> None:
    code = (
        "import galago\n"
        f"with galago.load(precision={precision!r}, threads=1) as model:\n"
        f"    image = model.encode_image({str(EXAMPLE)!r})\n"
        "    print(model.kernels)\n"
        "    print(model.query(image, 'What color is the circle?')['answer'].strip())\n"
        "    print(len(model.detect(image, 'circle')['objects']), len(model.point(image, 'circle')['points']))\n"
    )
    environment = os.environ | {"GALAGO_KERNELS": kernels}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    used = "torch int8" if kernels == "none" else f"galago {kernels}"
    assert run.stdout.split("\n")[:3] == [used, COLOR, "1 1"]
