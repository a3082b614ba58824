"""Endless batches of drawn scenes, ready for one training step."""

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from galago.families.moondream.config import VisionConfig
from galago.families.moondream.image import Crops, make_crops
from galago.lab.eval.scenes import wide
from galago.lab.eval.scenes.captions import LENGTHS, PLACES, caption_order, phrase_of, place_of
from galago.lab.eval.scenes.draw import SINGLE_VIEW, Scene, draw_scene
from galago.lab.eval.scenes.question_mix import SceneQuestion, caption_of, questions_for
from galago.lab.eval.scenes.ranges import SHADES, SIZES, TEXTURES
from galago.lab.eval.scenes.things import SceneObject
from training.scenes.pack import Packed, pack, write_block
from training.scenes.recipe import RANGE, prepare

SEED = 1_000_003
"""Scenes of this seed are for training: evaluate on any other."""

TASKS = 5
"""Tasks of one scene for each row; more scenes teach more than more questions about one."""

ALONE = 3
"""Scenes without tasks for each with; what lies in them costs a sixth as much."""

COLOR_CLASSES = ("", *RANGE.colors)
NAME_CLASSES = ("", *RANGE.shapes, "face", "word")
GLYPHS = "abcdefghijklmnopqrstuvwxyz0123456789"
FINISHES = (("", *SHADES), ("", *TEXTURES))
TOLD = (*[RANGE.most + 1] * 5, len(PLACES), len(SIZES))
"""How many classes has each of what captions say of a thing, see _told."""
NO_GLYPH = -100
"""Ignored by the cross-entropy."""


@dataclass
class Batch:
    """B images that are asked about, and after them ALONE times as many of which nothing is asked: N images in all.

    Crops of all images stand in one row.
    """

    pixels: Tensor  # uint8 [C, crop, crop, 3]
    tilings: list[tuple[int, int]]  # N
    starts: list[int]  # N: where each image's crops begin
    patch_class: Tensor  # int64 [C, T, 2]: colour, name under each patch (0: nothing)
    patch_shape: Tensor  # float32 [C, T, 6]: offset to centre (2), log size (2), offset of gaze (2); NaN: none
    patch_finish: Tensor  # int64 [C, T, 2]: shade and texture of the shape under each patch; NO_GLYPH: none
    patch_glyph: Tensor  # int64 [C, T, 2]: letter under each patch, its place in the word; NO_GLYPH: none
    patch_look: Tensor  # float32 [C, T, 3]: of faces where they look (cosine, sine); of others, whether seen; NaN: none
    patch_told: Tensor  # int64 [C, T, len(TOLD)], of whole images: see _told; NO_GLYPH: none
    block: Tensor  # int64 [B, R, ROW]
    position: Tensor  # int64 [B, R, ROW]
    tokens: Tensor  # int64 [B, R, ROW]
    fed: Tensor  # float32 [B, R, ROW, 2]
    next_token: Tensor  # int64 [B, R, ROW]
    next_value: Tensor  # float32 [B, R, ROW, 2]
    kind: Tensor  # int64 [B, R, ROW]
    weight: Tensor  # float32 [B, R, ROW]


@dataclass
class Truth:
    """What lies under each patch of each crop of one image, as in Batch."""

    patch_class: np.ndarray
    patch_shape: np.ndarray
    patch_finish: np.ndarray
    patch_glyph: np.ndarray
    patch_look: np.ndarray
    patch_told: np.ndarray


def patch_truth(scene: Scene, crops: Crops, c: VisionConfig) -> Truth:
    """What lies under each patch of each crop, in that crop's own measure (1 = one patch)."""
    grid, margins = c.grid, 2 * c.overlap_margin * c.enc_patch_size
    window = c.crop_size - margins
    rows, cols = crops.tiling
    height, width = scene.ids.shape
    # Where each crop begins and how large it is, relative to the image.
    boxes = [(0.0, 0.0, 1.0, 1.0)]
    if crops.tiling != (1, 1):
        whole_h, whole_w = rows * window + margins, cols * window + margins
        boxes += [
            (j * window / whole_w, i * window / whole_h, c.crop_size / whole_w, c.crop_size / whole_h)
            for i in range(rows)
            for j in range(cols)
        ]
    classes = np.zeros((len(boxes), grid * grid, 2), np.int64)
    shape = np.full((len(boxes), grid * grid, 6), np.nan, np.float32)
    finish, glyph = np.full((2, len(boxes), grid * grid, 2), NO_GLYPH, np.int64)
    look = np.full((len(boxes), grid * grid, 3), np.nan, np.float32)
    telling = np.full((len(boxes), grid * grid, len(TOLD)), NO_GLYPH, np.int64)
    n = len(scene.things)
    if n == 0:
        return Truth(classes, shape, finish, glyph, look, telling)
    looks, tellings = _looks(scene), _told(scene)
    kinds = np.array([(COLOR_CLASSES.index(t.color), NAME_CLASSES.index(t.name)) for t in scene.things])
    finishes = np.array([_finish(t) for t in scene.things])
    things = np.array([(*t.center, t.box[2] - t.box[0], t.box[3] - t.box[1]) for t in scene.things])
    gazes = np.array([t.gaze or (np.nan, np.nan) for t in scene.things])
    centers = (np.arange(grid) + 0.5) / grid
    probes = (np.arange(3 * grid) + 0.5) / (3 * grid)
    for k, (x0, y0, w, h) in enumerate(boxes):
        ys = np.minimum(((y0 + probes * h) * height).astype(int), height - 1)
        xs = np.minimum(((x0 + probes * w) * width).astype(int), width - 1)
        seen = scene.ids[np.ix_(ys, xs)].reshape(grid, 3, grid, 3).transpose(0, 2, 1, 3).reshape(grid * grid, 9)
        votes = np.stack([(seen == i).sum(1) for i in range(n + 1)], 1)
        votes[:, 0] = np.minimum(votes[:, 0], 1) * 0.5  # anything beats the background
        top = votes.argmax(1)
        on = top > 0
        thing = top[on] - 1
        px, py = np.tile(centers, grid)[on], np.repeat(centers, grid)[on]
        cx, cy = (things[thing, 0] - x0) / w, (things[thing, 1] - y0) / h
        classes[k, on] = kinds[thing]
        finish[k, on] = finishes[thing]
        inside = (cx >= -0.2) & (cx <= 1.2) & (cy >= -0.2) & (cy <= 1.2)
        around = np.stack(
            [
                (cx - px) * grid,
                (cy - py) * grid,
                np.log(things[thing, 2] / w * grid),
                np.log(things[thing, 3] / h * grid),
                ((gazes[thing, 0] - x0) / w - px) * grid,
                ((gazes[thing, 1] - y0) / h - py) * grid,
            ],
            1,
        )
        around[~inside, :4] = np.nan
        if k > 0:
            around[:, 4:] = np.nan  # the target is rarely in the same tile
        shape[k, on] = around
        look[k, on] = looks[thing]
        if k > 0:
            look[k, :, 2] = np.nan
        else:
            telling[k, on] = tellings[thing]
        for patch, number, x in zip(np.flatnonzero(on), thing, x0 + px * w, strict=True):
            glyph[k, patch] = _glyph(scene.things[number], float(x))
    return Truth(classes, shape, finish, glyph, look, telling)


def _told(scene: Scene) -> np.ndarray:
    """What captions say of each thing, int64 [things, len(TOLD)].

    How many things they group with it, share its colour, share its name; the group's place, and the thing's own in its
    group; of nine parts of the image the one that it lies in, and its size (NO_GLYPH: of what is no shape).
    """
    places: dict[object, int] = {}
    members: dict[int, list[SceneObject]] = {}
    for t in caption_order(scene.things):
        # Each word is told by itself.
        place = places.setdefault(t.box if t.kind == "word" else phrase_of(t), len(places))
        members.setdefault(place, []).append(t)
    rows = {
        t.box: (
            len(group),
            sum(other.color == t.color for other in scene.things),
            sum(other.name == t.name for other in scene.things),
            place,
            i,
            PLACES.index(place_of(t)),
            list(SIZES).index(t.size) if t.kind == "shape" else NO_GLYPH,
        )
        for place, group in members.items()
        for i, t in enumerate(group)
    }
    return np.array([rows[t.box] for t in scene.things])


def _looks(scene: Scene) -> np.ndarray:
    """[things, 3], see Batch.patch_look. A face that looks at the viewer looks nowhere, (0, 0)."""
    width, height = scene.image.size
    targets = [t.gaze for t in scene.things if t.gaze]
    out = np.full((len(scene.things), 3), np.nan, np.float32)
    for i, t in enumerate(scene.things):
        if t.eye is None:
            # Only where somebody looks: elsewhere it is trivial, and would drown the rest.
            out[i, 2] = t.center in targets if targets else np.nan
        elif t.gaze is None:
            out[i, :2] = 0
        else:
            dx, dy = (t.gaze[0] - t.eye[0]) * width, (t.gaze[1] - t.eye[1]) * height
            out[i, :2] = np.array((dx, dy)) / math.hypot(dx, dy)
    return out


def _finish(thing: SceneObject) -> tuple[int, int]:
    """The classes of a shape's shade and texture."""
    if thing.kind != "shape":
        return NO_GLYPH, NO_GLYPH
    return FINISHES[0].index(thing.shade), FINISHES[1].index(thing.texture)


def _glyph(thing: SceneObject, x: float) -> tuple[int, int]:
    """The letter of a word at the image's x, and its place."""
    if not thing.ends:
        return NO_GLYPH, NO_GLYPH
    share = (x - thing.box[0]) / (thing.box[2] - thing.box[0])
    place = min(int(np.searchsorted(thing.ends, share)), len(thing.text) - 1)
    return GLYPHS.index(thing.text[place].lower()), place


class Scenes(IterableDataset):
    """Batches number `first`, `first + 1`, … : the same for the same numbers, however many workers.

    The first `single` scenes are small enough for one view: cheap steps while little is known. After them every other
    scene still is, since tiles cost much and teach mostly the same. ALONE times as many have no tasks: what lies under
    their patches and which of it goes together costs little, and letters, looks, small shapes and groups want to be
    seen often. With no rows no scene has tasks.
    """

    def __init__(self, folder: Path, batch: int, rows: int, first: int, single: int) -> None:
        self.folder, self.batch, self.rows, self.first, self.single = folder, batch, rows, first, single

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        number, step = self.first + (info.id if info else 0), info.num_workers if info else 1
        config, tokenizer = prepare(self.folder)
        while True:
            drawn, alone = [], []
            for i in range(number * self.batch, (number + 1) * self.batch):
                rng = np.random.default_rng([SEED, i])
                small = i < self.single or i % 2 == 0
                sides = (64, SINGLE_VIEW) if small else RANGE.sides
                scene = _to_ask(rng, sides, i) if self.rows else _seen_alone(rng, sides, i)
                tasks = _tasks(scene, i, self.rows) if self.rows else []
                packed = pack([write_block(t, config, tokenizer) for t in tasks], self.rows)
                drawn.append((*_seen(scene, config.vision), packed))
                for k in range(ALONE if self.rows else 0):
                    other = _seen_alone(np.random.default_rng([SEED, i, 2 + k]), (64, SINGLE_VIEW), k)
                    alone.append(_seen(other, config.vision))
            yield _collate(drawn, alone)
            number += step


def _seen(scene: Scene, c: VisionConfig) -> tuple[Crops, Truth]:
    crops = make_crops(scene.image, c)
    return crops, patch_truth(scene, crops, c)


def _tasks(scene: Scene, i: int, rows: int) -> list[SceneQuestion]:
    tasks = questions_for(scene, np.random.default_rng([SEED, i, 1]), count=TASKS * rows)
    # Captions of the other lengths too: they are the longest answers and learn last.
    lengths = [length for length in LENGTHS if length != tasks[0].length]
    return [
        *tasks,
        *(SceneQuestion("caption", "caption", length=length, text=caption_of(scene, length)) for length in lengths),
    ]


def _to_ask(rng: np.random.Generator, sides: tuple[int, int], i: int) -> Scene:
    """A scene with tasks: in three of them one with a word or a face, and one with things that captions tell together,
    since what is rare is learnt last.
    """
    if i % 3 == 0:
        return _special(rng, sides)
    return draw_scene(rng, sides=sides, of=RANGE, plans=wide.group_plans if i % 3 == 1 else None)


def _seen_alone(rng: np.random.Generator, sides: tuple[int, int], i: int) -> Scene:
    """A scene without tasks: with words and faces, with a crowd of small shapes, or with things told together."""
    if i % 3 == 0:
        return _special(rng, sides)
    return draw_scene(rng, sides=sides, of=RANGE, plans=wide.crowd_plans if i % 3 == 1 else wide.group_plans)


def _special(rng: np.random.Generator, sides: tuple[int, int]) -> Scene:
    """A scene that nearly always has a word or a face."""
    scene = draw_scene(rng, sides=sides, of=RANGE)
    for _ in range(3):
        if any(t.kind != "shape" for t in scene.things):
            break
        scene = draw_scene(rng, sides=sides, of=RANGE)
    return scene


def _collate(drawn: list[tuple[Crops, Truth, Packed]], alone: list[tuple[Crops, Truth]]) -> Batch:
    seen = [(crops, truth) for crops, truth, _ in drawn] + alone
    counts = [len(crops.pixels) for crops, _ in seen]

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(packed, name) for _, _, packed in drawn]))

    def row(arrays: list[np.ndarray]) -> Tensor:
        # Blank crops up to a round number: kernels are made anew for each size that they meet.
        whole = np.concatenate(arrays)
        spare = -len(whole) % 16 if len(whole) > len(seen) else 0
        return torch.from_numpy(np.concatenate([whole, np.zeros_like(whole[:spare])]))

    return Batch(
        pixels=row([crops.pixels for crops, _ in seen]),
        tilings=[crops.tiling for crops, _ in seen],
        starts=[int(v) for v in np.cumsum([0, *counts])[:-1]],
        **{f.name: row([getattr(truth, f.name) for _, truth in seen]) for f in fields(Truth)},
        **{f.name: stack(f.name) for f in fields(Packed)},
    )


def loader(folder: Path, batch: int, rows: int, first: int, single: int, workers: int) -> DataLoader:
    """A loader whose workers draw ahead; batches come in order."""
    scenes = Scenes(folder, batch, rows, first, single)
    return DataLoader(
        scenes,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=undisturbed,
    )


def undisturbed(_: int) -> None:
    """On one thread. Ctrl-C reaches workers too; the trainer ends them once its state is kept."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
