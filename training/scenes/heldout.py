"""A quick score of a checkpoint on scenes that it was not trained on."""

from pathlib import Path

import galago
from galago.lab.eval.report import score_run
from galago.lab.eval.run import answer_cases
from galago.lab.eval.tasks.scenes import TASK
from training.scenes.recipe import RANGE

SEED = 20262


def score(folder: Path, scenes: int) -> dict[str, float]:
    """Percent of each measure, through the engine, as users get it."""
    task = TASK.within(RANGE.version)
    with galago.load(str(folder)) as model:
        records = answer_cases(model, task.cases(Path(), scenes, SEED))
    return {name: round(100 * s.share, 1) for name, s in score_run(task, {}, records).scores.items()}
