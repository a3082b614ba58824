"""Train the `motion` model; goes on where its folder ended, as often as wanted.

python -m training.motion.train --run runs/motion --minutes 600
python -m training.motion.train --run runs/final --branch runs/motion --decay 30000  # to be bundled

The learning rate stays up for as long as the run goes. What is to be used comes from a branch in which it
falls to zero; the run itself can go on.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from galago.lab.eval.motion.score import MEASURES
from training import loop
from training.loop import Losses, Options
from training.motion.data import Batch, loader
from training.motion.heldout import score
from training.motion.objective import WEIGHTS, losses
from training.motion.recipe import FILES
from training.motion.state import fresh
from training.state import State


def _batches(options: Options, step: int) -> Iterable[Batch]:
    return loader(options.run, options.batch, options.rows, step, options.easy, options.workers)


def _losses(batch: Batch, state: State) -> Losses:
    return losses(batch, state.weights, state.config, state.heads)


RECIPE = loop.Recipe("clips", FILES, fresh, _batches, _losses, WEIGHTS, MEASURES, score)


def train(options: Options) -> State:
    """Train as loop.train does."""
    return loop.train(options, RECIPE)


def main(argv: Sequence[str] | None = None) -> None:
    easy = ("easy", "clips at the start that are short and small")
    parser = loop.parser(__doc__, Options(Path("runs/motion"), batch=16, rate=1.5e-3, easy=30_000), "clips", easy)
    train(Options(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
