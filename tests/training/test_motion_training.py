"""The trainer of drawn clips: it learns, goes on exactly where it ended, and what it is taught is true."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_motion
import torch

from galago.checkpoint.tensors import read_tensors
from galago.families.smolvlm.weights import read
from galago.lab.eval.motion.draw import clip_at, draw_clip
from galago.lab.eval.motion.questions import questions_for
from galago.lab.eval.motion.score import MEASURES
from training import loop
from training.loop import Options
from training.motion import recipe, train
from training.motion.data import Batch, Clips, blocks_of
from training.motion.pack import NONE, ROW, pack
from training.motion.truth import COLOR_CLASSES, ELSEWHERE, GONE, NAME_CLASSES, STEP, UNKNOWN, lying, moving


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model, without weights."""
    return tiny_motion.make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def options(tiny: Path, tmp_path: Path) -> Options:
    return Options(_copy(tiny, tmp_path / "run"), batch=2, workers=0, rows=1, easy=100, log_steps=1, device="cpu")


def _copy(tiny: Path, folder: Path) -> Path:
    shutil.copytree(tiny, folder)
    return folder


def _with(options: Options, **fields: object) -> Options:
    return Options(**{**vars(options), **fields})


def _log(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_losses_fall(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "WARM", 5)
    train.train(_with(options, batch=4, rows=2, seen=4 * 40))
    log = _log(options.run)
    assert [line["step"] for line in log] == list(range(1, 41))
    for name in ("token", "patch", "token_patch", "before"):
        first, last = (np.mean([line[name] for line in part]) for part in (log[:5], log[-5:]))
        assert last < 0.8 * first, (name, first, last)


def test_a_run_goes_on_exactly_where_it_ended(options: Options, tiny: Path, tmp_path: Path) -> None:
    whole = train.train(_with(options, seen=8))
    parted = _with(options, run=_copy(tiny, tmp_path / "parted"))
    for clips in (4, 8):
        train.train(_with(parted, seen=clips))
    one, other = (torch.load(run / "state.pt", weights_only=True) for run in (options.run, parted.run))
    assert one["step"] == other["step"] == whole.step == 4
    for part in ("params", "average", "heads"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    assert [line["clips"] for line in _log(parted.run)] == [2, 4, 6, 8]


@pytest.mark.slow
def test_a_run_is_scored_through_the_engine(options: Options) -> None:
    train.train(_with(options, seen=2, score_minutes=0, score_count=2))
    [line] = [json.loads(line) for line in (options.run / "scores.jsonl").read_text().splitlines()]
    assert line["step"] == 1 and line.keys() - {"step", "clips"} <= set(MEASURES)
    assert all(0 <= line[name] <= 100 for name in line.keys() - {"step", "clips"})


def test_the_checkpoint_is_the_average_under_the_names_of_the_hub(options: Options) -> None:
    state = train.train(_with(options, seen=4))
    stored = dict(read_tensors([options.run / "model.safetensors"]))
    assert {t.dtype for t in stored.values()} == {torch.float16}
    assert "model.text_model.layers.0.self_attn.k_proj.weight" in stored and "lm_head.weight" in stored
    back = dict(read([options.run / "model.safetensors"], state.config))
    assert back.keys() == state.average.keys()
    assert all(torch.equal(back[n], t.to(torch.float16)) for n, t in state.average.items())


def test_the_bundled_sizes_fit() -> None:
    """At most 12 MB of float16."""
    v, t = recipe.VISION, recipe.TEXT
    block = 4 * v["hidden_size"] ** 2 + 2 * v["hidden_size"] * v["intermediate_size"]
    kv = t["num_key_value_heads"] * t["head_dim"]
    layer = t["hidden_size"] * (2 * t["hidden_size"] + 2 * kv + 3 * t["intermediate_size"])
    joined = t["hidden_size"] * v["hidden_size"] * recipe.SCALE**2
    patches = v["hidden_size"] * (3 * recipe.PATCH**2 + (recipe.SIDE // recipe.PATCH) ** 2)
    words = 2 * recipe.VOCAB * t["hidden_size"]
    count = v["num_hidden_layers"] * block + t["num_hidden_layers"] * layer + joined + patches + words
    assert 9e6 < 2 * count < 11.9e6


# --- what it is fed ---------------------------------------------------------------------------


def test_a_batch_has_clips_of_one_length(tiny: Path) -> None:
    c = recipe.prepare(tiny).config
    batches = iter(Clips(tiny, 3, 2, 0, 6))
    seen = set()
    for _ in range(4):
        batch: Batch = next(batches)
        n = batch.pixels.shape[1]
        assert batch.pixels.shape == (3, n, c.vision.image_size, c.vision.image_size, 3)
        assert int((batch.prefix == c.image_id).sum()) == n * c.vision.n_tokens
        assert batch.patch_kind.shape == (3, n, c.vision.grid**2, 2)
        assert batch.state.shape == batch.step.shape[:-1] == (3, n, c.vision.n_tokens)
        assert batch.tokens.shape == (3, 2, ROW)
        seen.add(n)
    again = next(iter(Clips(tiny, 3, 2, 3, 6)))
    assert torch.equal(again.pixels, batch.pixels) and torch.equal(again.tokens, batch.tokens)
    assert len(seen) > 1


def test_questions_are_put_as_users_put_them(tiny: Path) -> None:
    p = recipe.prepare(tiny)
    drawn = clip_at(1, 0)
    tasks = questions_for(drawn, np.random.default_rng(0))
    prefix, blocks = blocks_of(drawn.clip, tasks, p)
    assert len(blocks) == len(tasks)
    backend = p.tokenizer.backend
    for task, block in zip(tasks, blocks, strict=True):
        said = [after for after in block.next_token if after != NONE]
        text = backend.decode(prefix + block.tokens, skip_special_tokens=False)
        assert text.startswith("<|im_start|>User: You are provided the following series of ")
        assert f"{task.question}<end_of_utterance>\nAssistant: {task.text}" in text
        assert backend.decode(said, skip_special_tokens=False) == f" {task.text}<end_of_utterance>"
        assert MEASURES[block.kind] == task.kind


def test_blocks_stay_in_their_rows(tiny: Path) -> None:
    p = recipe.prepare(tiny)
    drawn = clip_at(1, 3)
    _, blocks = blocks_of(drawn.clip, questions_for(drawn, np.random.default_rng(0), rounds=3), p)
    packed = pack(blocks, 4)
    for number in set(packed.block.flatten()) - {NONE}:
        rows = {r for r in range(4) if (packed.block[r] == number).any()}
        [row] = rows
        at = packed.block[row] == number
        assert list(packed.position[row, at]) == list(range(at.sum()))
        assert any(list(packed.tokens[row, at]) == block.tokens for block in blocks)


# --- what it is taught ------------------------------------------------------------------------


def test_cells_are_told_what_lies_there_and_how_it_moves() -> None:
    moved = rested = came = gone = 0
    for index in range(40):
        drawn = draw_clip(np.random.default_rng([7, index]), sides=(96, 128))
        there, top = lying(drawn, 4, 6)
        over_time = moving(drawn, there, top)
        assert (over_time.before[0] == UNKNOWN).all() and np.array_equal(over_time.before[1:], there.kind[:-1])
        assert np.isnan(over_time.step[0]).all()
        assert np.array_equal(top == 0, (there.kind == 0).all(-1))
        assert (over_time.state[top > 0] < ELSEWHERE).all()
        for frame, cell in zip(*np.nonzero(top == 0), strict=True):
            left = top[frame - 1, cell] if frame else 0
            state = over_time.state[frame, cell]
            if left:
                assert state == (GONE if drawn.things[left - 1].seen[1] < frame else ELSEWHERE)
            else:
                assert state == UNKNOWN
            gone += state == GONE
        for frame, cell in zip(*np.nonzero(top), strict=True):
            thing = drawn.things[top[frame, cell] - 1]
            color, name = there.kind[frame, cell]
            assert (COLOR_CLASSES[color], NAME_CLASSES[name]) == (thing.color, thing.name)
            middle = (np.array([cell % 4, cell // 4]) + 0.5 + there.offset[frame, cell]) / 4
            assert middle == pytest.approx(thing.track[frame], abs=1e-5)
            step = over_time.step[frame, cell] * STEP
            if frame > thing.seen[0]:
                assert step == pytest.approx(np.subtract(thing.track[frame], thing.track[frame - 1]), abs=1e-5)
            else:
                assert np.isnan(step).all()
            state = over_time.state[frame, cell]
            assert (state >= 3) == (thing.seen[0] > 0)
            if frame > thing.seen[0]:
                assert (state % 3 == 1) == bool(np.abs(step).max() > 0.004)
            moved, rested, came = moved + (state % 3 == 1), rested + (state % 3 == 2), came + (state >= 3)
    assert min(moved, rested, came, gone) > 10
