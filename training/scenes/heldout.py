"""A quick score of a checkpoint on scenes that it was not trained on."""

from pathlib import Path

import galago
from galago.eval.scenes.score import ask, cases, judge, summarize
from training.scenes.recipe import RANGE

SEED = 20262


def score(folder: Path, scenes: int) -> dict[str, float]:
    """Percent of each measure, through the engine, as users get it."""
    marks = []
    with galago.load(str(folder)) as model:
        for scene, tasks in cases(SEED, scenes, RANGE):
            encoded = model.encode_image(scene.image)
            for task in tasks:
                marks += judge(scene, task, ask(model, encoded, task))
    return {name: round(100 * s.share, 1) for name, s in summarize(marks).items()}
