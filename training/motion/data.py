"""Endless batches of drawn clips, ready for one training step."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from galago.lab.eval.motion.draw import draw_clip
from galago.lab.eval.motion.questions import ClipQuestion, questions_for
from galago.lab.eval.motion.score import MEASURES
from galago.lab.eval.motion.things import FRAMES, SIDES
from galago.media.clip import Clip
from training.motion.pack import Block, Packed, block, pack
from training.motion.recipe import Prepared, prepare
from training.motion.truth import Lying, Moving, lying, moving
from training.scenes.data import undisturbed

SEED = 1
"""Clips of this seed are for training: evaluate on any other."""
ROUNDS = 2
"""Of questions about one clip."""
EASY_FRAMES = (FRAMES[0], 8)
EASY_SIDES = (SIDES[0], 112)
"""At the start, and of most clips: a model sees larger ones as small, and they take long to draw."""


@dataclass
class Batch:
    """B clips of n frames: as many in each, so that their prompts are the same up to the last frame.

    T patches and K tokens of a frame; R rows of questions.
    """

    pixels: Tensor  # uint8 [B, n, side, side, 3]
    prefix: Tensor  # int64 [P]: what comes before the question
    patch_kind: Tensor  # int64 [B, n, T, 2], as in Lying
    patch_offset: Tensor  # float32 [B, n, T, 2]
    token_kind: Tensor  # int64 [B, n, K, 2]
    token_offset: Tensor  # float32 [B, n, K, 2]
    before: Tensor  # int64 [B, n, K, 2], as in Moving
    step: Tensor  # float32 [B, n, K, 2]
    state: Tensor  # int64 [B, n, K]
    block: Tensor  # int64 [B, R, ROW], as in Packed
    position: Tensor
    tokens: Tensor
    next_token: Tensor
    kind: Tensor


class Clips(IterableDataset):
    """Batches number `first`, `first + 1`, … : the same for the same numbers, however many workers.

    The first `easy` clips are short and small. After them one of four may be as large as any.
    """

    def __init__(self, folder: Path, batch: int, rows: int, first: int, easy: int) -> None:
        self.folder, self.batch, self.rows, self.first, self.easy = folder, batch, rows, first, easy

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        number, step = self.first + (info.id if info else 0), info.num_workers if info else 1
        prepared = prepare(self.folder)
        while True:
            begin = number * self.batch
            low, high = EASY_FRAMES if begin < self.easy else FRAMES
            # Two in a row are as long, so that cores that work side by side end together.
            frames = int(np.random.default_rng([SEED, number // 2, 2]).integers(low, high + 1))
            yield self._drawn(range(begin, begin + self.batch), frames, prepared)
            number += step

    def _drawn(self, numbers: range, frames: int, p: Prepared) -> Batch:
        v = p.config.vision
        pixels, patches, tokens, times, packed = [], [], [], [], []
        for i in numbers:
            sides = SIDES if i >= self.easy and i % 4 == 0 else EASY_SIDES
            # What leaves is learnt last of all, so one clip of four is to tell of it.
            rng, story = np.random.default_rng([SEED, i]), "change" if i % 4 == 1 else None
            drawn = draw_clip(rng, sides=sides, frames=(frames, frames), story=story)
            tasks = questions_for(drawn, np.random.default_rng([SEED, i, 1]), rounds=ROUNDS)
            pixels.append(p.pixels(drawn.clip))
            patches.append(lying(drawn, v.grid, 3)[0])
            there, top = lying(drawn, v.grid // v.scale, 6)
            tokens.append(there)
            times.append(moving(drawn, there, top))
            prefix, blocks = blocks_of(drawn.clip, tasks, p)
            packed.append(pack(blocks, self.rows))
        return Batch(
            pixels=torch.from_numpy(np.stack(pixels)),
            prefix=torch.tensor(prefix),
            **{f"patch_{f.name}": _stacked(patches, f.name) for f in fields(Lying)},
            **{f"token_{f.name}": _stacked(tokens, f.name) for f in fields(Lying)},
            **{f.name: _stacked(times, f.name) for f in fields(Moving)},
            **{f.name: _stacked(packed, f.name) for f in fields(Packed)},
        )


def blocks_of(clip: Clip, tasks: list[ClipQuestion], p: Prepared) -> tuple[list[int], list[Block]]:
    """The tokens up to the last of the frames, and what follows them for each task."""
    prefix: list[int] = []
    blocks = []
    for task in tasks:
        prefix, question = p.prompt(clip, task.question)
        answer = p.tokenizer.encode(f" {task.text}")
        blocks.append(block(question, answer, p.end, MEASURES.index(task.kind)))
    return prefix, blocks


def _stacked(parts: list, name: str) -> Tensor:
    return torch.from_numpy(np.stack([getattr(part, name) for part in parts]))


def loader(folder: Path, batch: int, rows: int, first: int, easy: int, workers: int) -> DataLoader:
    """A loader whose workers draw ahead; batches come in order."""
    clips = Clips(folder, batch, rows, first, easy)
    return DataLoader(
        clips,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=undisturbed,
    )
