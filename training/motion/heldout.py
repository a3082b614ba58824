"""A quick score of a checkpoint on clips that it was not trained on."""

from pathlib import Path

import galago
from galago.lab.eval.report import score_run
from galago.lab.eval.run import answer_cases
from galago.lab.eval.tasks.motion import TASK

SEED = 20262


def score(folder: Path, clips: int) -> dict[str, float]:
    """Percent of each measure, through the engine, as users get it."""
    with galago.load(str(folder)) as model:
        records = answer_cases(model, TASK.cases(Path(), clips, SEED))
    return {name: round(100 * s.share, 1) for name, s in score_run(TASK, {}, records).scores.items()}
