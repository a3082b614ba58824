"""Train the `scenes` model; goes on where its folder ended, as often as wanted.

python -m training.scenes.train --run runs/scenes --start src/galago/assets/scenes --minutes 60
python -m training.scenes.train --run runs/scenes --minutes 600
python -m training.scenes.train --run runs/final --branch runs/scenes --decay 30000  # to be bundled

The learning rate stays up for as long as the run goes. What is to be used comes from a branch in which it
falls to zero; the run itself can go on.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from training import loop
from training.loop import Losses, Options
from training.scenes.data import Batch, loader
from training.scenes.heldout import score
from training.scenes.objective import WEIGHTS, losses
from training.scenes.pack import KINDS
from training.scenes.state import fresh
from training.state import State


def _batches(options: Options, step: int) -> Iterable[Batch]:
    return loader(options.run, options.batch, options.rows, step, options.easy, options.workers)


def _losses(batch: Batch, state: State) -> Losses:
    return losses(batch, state.weights, state.config, state.heads)


RECIPE = loop.Recipe("scenes", ("config.json", "tokenizer.json"), fresh, _batches, _losses, WEIGHTS, KINDS, score)


def train(options: Options) -> State:
    """Train as loop.train does."""
    return loop.train(options, RECIPE)


def main(argv: Sequence[str] | None = None) -> None:
    easy = ("single", "scenes at the start that fit in one view")
    parser = loop.parser(__doc__, Options(Path("runs/scenes"), rate=1.5e-3), "scenes", easy)
    train(Options(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
