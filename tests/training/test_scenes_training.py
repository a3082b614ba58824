"""The trainer of drawn scenes: a run goes on exactly where it ended, and what it is taught is true."""

import json
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from galago.checkpoint.tensors import read_tensors
from galago.families.moondream.image import make_crops
from galago.families.moondream.vision import crop_features, image_embedding
from galago.families.tokenizer import load_tokenizer
from galago.lab.eval.scenes.captions import PLACES, Fact, caption_of, facts_of, parse_caption
from galago.lab.eval.scenes.draw import draw_scene
from galago.lab.eval.scenes.ranges import SINGLE_VIEW, SIZES, V2
from galago.store import hub
from training import loop
from training.loop import Options
from training.scenes import recipe, train
from training.scenes.data import COLOR_CLASSES, GLYPHS, NAME_CLASSES, NO_GLYPH, Scenes, loader, patch_truth
from training.scenes.objective import images
from training.scenes.pack import HOW_MANY, KINDS, NONE, WEIGHT, spell
from training.scenes.transplant import transplant
from training.state import rate_at

BUNDLED = Path(hub.locate("scenes").weights[0]).parent
TINY = {
    "text": {"dim": 32, "ff_dim": 64, "n_layers": 1, "n_heads": 2, "vocab_size": 800, "max_context": 512},
    "vision": {
        "enc_dim": 32, "enc_n_layers": 1, "enc_n_heads": 2, "enc_ff_dim": 64, "crop_size": 112, "max_crops": 12,
        "overlap_margin": 1, "proj_inner_dim": 32,
    },
    "region": {"inner_dim": 32, "coord_feat_dim": 32, "size_feat_dim": 32},
}  # fmt: skip


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    """A run of a tiny model, with the bundled model's vocabulary, so that none is made."""
    monkeypatch.setattr(recipe, "SIZES", TINY)
    return Options(_folder(tmp_path / "run"), batch=2, workers=0, rows=1, easy=4, log_steps=1, device="cpu")


def _folder(run: Path) -> Path:
    run.mkdir()
    shutil.copy(BUNDLED / "tokenizer.json", run)
    vocabulary = tokenizers.Tokenizer.from_file(str(run / "tokenizer.json"))
    (run / "config.json").write_text(json.dumps(recipe.make_config_json(vocabulary)))
    return run


def _with(options: Options, **fields: object) -> Options:
    return Options(**{**vars(options), **fields})


def _last_line(run: Path) -> dict:
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


def _kept(run: Path) -> dict:
    return torch.load(run / "state.pt", weights_only=True)


def test_a_run_goes_on_exactly_where_it_ended(options: Options, tmp_path: Path) -> None:
    whole = train.train(_with(options, seen=8))
    parted = _with(options, run=_folder(tmp_path / "parted"))
    for scenes in (4, 6, 8):
        train.train(_with(parted, seen=scenes))
    one, other = _kept(options.run), _kept(parted.run)
    assert one["step"] == other["step"] == whole.step == 4
    for part in ("params", "average", "heads"):
        assert one[part].keys() == other[part].keys()
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part]), part
    steps = [json.loads(line)["step"] for line in (parted.run / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_without_rows_the_tower_and_half_the_decoder_learn(options: Options) -> None:
    before = train.train(_with(options, seen=2, rows=0))
    half = tuple(f"text.blocks.{i}." for i in range((before.config.text.n_layers + 1) // 2))
    kept = {n: p.clone() for n, p in before.params.items()}
    after = train.train(_with(options, seen=8, rows=0))
    changed = {n for n, p in kept.items() if not torch.equal(after.params[n], p)}
    assert changed == {n for n in kept if n.startswith(("vision.", *half)) or n == "text.wte"}
    line = _last_line(options.run)
    assert {"glyph", "token_glyph", "told"} <= line.keys() and "token" not in line and line["kinds"] == {}
    train.train(_with(options, seen=10))
    assert "token" in _last_line(options.run)


def test_batches_side_by_side_are_one_batch(options: Options) -> None:
    """Two halves that are worked on in two threads give the gradient that both give one after the other."""
    state = train.RECIPE.fresh(options.run, None, torch.device("cpu"), 1e-3)
    again = train.RECIPE.fresh(options.run, None, torch.device("cpu"), 1e-3)
    halves = [batch for batch, _ in zip(loader(options.run, 1, 1, 0, 4, 0), range(2), strict=False)]
    states, done = (state, again), []
    for side_by_side, one in zip((2, 1), states, strict=True):
        with ThreadPoolExecutor(side_by_side, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            done.append(loop.step(one, halves, 1e-3, train.RECIPE, pool))
    one, other = done
    assert one[2] == other[2] and torch.equal(one[1], other[1])
    assert all(torch.equal(state.params[n], p) for n, p in again.params.items())


@pytest.mark.slow
def test_a_run_is_scored_on_the_way(options: Options) -> None:
    train.train(_with(options, seen=4, score_minutes=0, score_count=2))
    lines = [json.loads(line) for line in (options.run / "scores.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all({"caption-recall", "detect", "point"} < line.keys() for line in lines)
    assert all(0 <= line["detect"] <= 100 for line in lines)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_can_go_on(options: Options, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    once = loop.step

    def interrupted(*args):
        result = once(*args)
        signal.raise_signal(number)
        return result

    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "step", interrupted)
        train.train(_with(options, seen=100))
    assert _kept(options.run)["step"] == 1
    assert signal.getsignal(number) == before
    assert train.train(_with(options, seen=4)).step == 2


def test_a_branch_decays_and_leaves_the_run_alone(options: Options, tmp_path: Path) -> None:
    train.train(_with(options, seen=4))
    before = (options.run / "state.pt").read_bytes()
    branch = _with(options, run=tmp_path / "branch", branch=options.run, decay=6)
    train.train(_with(branch, seen=6))
    done = train.train(branch)  # resumed: the decay ends where it was to end
    assert (done.step, done.decay) == (5, (2, 5))
    assert (options.run / "state.pt").read_bytes() == before
    rates = [json.loads(line)["rate"] for line in (branch.run / "log.jsonl").read_text().splitlines()]
    assert len(rates) == 3 and _kept(branch.run)["step"] == 5
    assert train.train(branch).step == 5


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(0, 4000), st.integers(1, 1000))
def test_the_rate_rises_stays_and_falls(step: int, warm: int, begin: int, length: int) -> None:
    decay = (begin, begin + length)
    share = rate_at(step, warm, decay)
    assert 0 <= share <= rate_at(step, warm, None) <= 1
    assert rate_at(step + 1, warm, None) >= rate_at(step, warm, None)
    if step >= warm:
        assert rate_at(step, warm, None) == 1
        assert rate_at(step + 1, warm, decay) <= share
    if step >= decay[1]:
        assert share == 0


def test_a_new_vocabulary_keeps_what_tokens_meant(tmp_path: Path) -> None:
    vocabulary = tokenizers.Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    known = vocabulary.get_vocab()
    spelt = json.loads((BUNDLED / "tokenizer.json").read_text())
    spelt["model"]["merges"].append(["c", "z"])
    spelt["model"]["vocab"]["cz"] = len(known)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spelt))
    rows = len(known) + 1
    tensors = {"text.wte": torch.zeros(rows, 256), "text.lm_head.weight": torch.zeros(rows, 256)}
    tensors["text.lm_head.bias"] = torch.zeros(rows)
    with pytest.raises(ValueError, match="another"):
        transplant(BUNDLED, tmp_path / "tokenizer.json", tensors)  # no other tensor to take the rest
    old = {n.removeprefix("model."): t.float() for n, t in read_tensors([BUNDLED / "model.safetensors"])}
    fresh = {n: torch.zeros_like(t) for n, t in old.items()} | tensors
    new = transplant(BUNDLED, tmp_path / "tokenizer.json", fresh)
    assert torch.equal(new["text.wte"][: len(known)], old["text.wte"][: len(known)])
    assert torch.allclose(new["text.wte"][-1], old["text.wte"][[known["c"], known["z"]]].mean(0))
    assert all(torch.equal(new[n], t) for n, t in old.items() if n not in tensors)


@given(
    st.from_regex(r'[A-Za-z ]{0,20}(the word "[A-Za-z0-9]{1,4}" in red)?[a-z .]{0,9}', fullmatch=True), st.booleans()
)
def test_what_is_written_is_spelt_letter_by_letter(text: str, whole: bool) -> None:
    tokenizer = load_tokenizer(BUNDLED / "tokenizer.json")
    ids = spell(tokenizer, text, all=whole)
    assert tokenizer.decode(ids) == text
    if whole:
        assert len(ids) == len(text)
    elif '"' in text:
        pieces = [tokenizer.decode([i]) for i in ids]
        word = text.split('"')[1]
        at = next(i for i, piece in enumerate(pieces) if piece.endswith('"'))
        assert pieces[at + 1 : at + 1 + len(word)] == list(word)


def test_a_batch_embeds_its_images_as_they_are_embedded_alone(options: Options) -> None:
    """Whole and in crops, asked about or not."""
    state = train.RECIPE.fresh(options.run, None, torch.device("cpu"), 1e-3)
    batch = next(iter(Scenes(options.run, 4, 1, 3, 0)))
    assert any(tiling != (1, 1) for tiling in batch.tilings) and len(batch.tilings) > 4
    with torch.no_grad():
        features = crop_features(batch.pixels, state.weights.vision, state.config.vision)
        together = images(features, batch, state.weights, state.config)
        for start, tiling, image in zip(batch.starts, batch.tilings, together, strict=True):
            count = 1 if tiling == (1, 1) else 1 + tiling[0] * tiling[1]
            pixels = batch.pixels[start : start + count]
            alone = image_embedding(pixels, tiling, state.weights.vision, state.config.vision)
            torch.testing.assert_close(image, alone, rtol=1e-4, atol=1e-5)


def test_what_is_rare_is_seen_often_and_how_many_counts_most(tmp_path: Path) -> None:
    _, tokenizer = recipe.prepare(_folder(tmp_path / "run"))
    batch = next(iter(loader(tmp_path / "run", 60, 2, 0, 60, 0)))
    captions = batch.kind == KINDS.index("caption")
    weights = dict[str, set[float]]()
    for token, weight in zip(batch.next_token[captions].tolist(), batch.weight[captions].tolist(), strict=True):
        if token != NONE:
            weights.setdefault(tokenizer.decode([token]), set()).add(weight)
    assert weights[" a"] == weights["A"] == weights[" two"] == weights["Two"] == {HOW_MANY}
    assert weights[" red"] == weights[" on"] == weights["."] == {1.0}
    of_kind = [batch.weight[(batch.kind == KINDS.index(kind)) & (batch.next_token != NONE)] for kind in WEIGHT]
    assert all((weight == WEIGHT[kind]).all() for kind, weight in zip(WEIGHT, of_kind, strict=True))

    several = batch.patch_told[:60, :, 0].flatten(1).amax(1) > 1
    drawn = [draw_scene(np.random.default_rng(i), sides=(64, SINGLE_VIEW), of=V2) for i in range(60)]
    plain = sum(any(int(fact[1]) > 1 for fact in facts_of(scene, "short") if fact[0] == "things") for scene in drawn)
    assert several.sum() > 1.5 * plain > 0
    # Those without questions: words or faces, many small shapes, things that are told together.
    names, told = batch.patch_class[60:, :, 1], batch.patch_told[60:, :, 0].flatten(1).amax(1)
    with_special = ((names == NAME_CLASSES.index("word")) | (names == NAME_CLASSES.index("face"))).any(1)
    assert with_special[::3].float().mean() > 0.7 and not with_special[1::3].any() and not with_special[2::3].any()
    kinds = [len({tuple(pair) for pair in patches.tolist()}) for patches in batch.patch_class[61::3]]
    assert np.mean(kinds) > 5
    assert (told[2::3] > 1).float().mean() > 0.7


def test_patches_are_told_the_letters_and_looks_that_lie_there(tmp_path: Path) -> None:
    c, _ = recipe.prepare(_folder(tmp_path / "run"))
    letters = faces = 0
    for seed in range(60):
        scene = draw_scene(np.random.default_rng(seed), sides=(64, SINGLE_VIEW), of=V2)
        truth = patch_truth(scene, make_crops(scene.image, c.vision), c.vision)
        words = [t for t in scene.things if t.kind == "word"]
        found = truth.patch_glyph[0][truth.patch_glyph[0, :, 0] != NO_GLYPH]
        assert bool(len(found)) <= bool(words)
        if len(words) == 1:
            assert all(GLYPHS[glyph] == words[0].text[place].lower() for glyph, place in found)
            # From left to right the places only grow.
            grid = truth.patch_glyph[0, :, 1].reshape(c.vision.grid, -1)
            for row in grid:
                assert list(row[row >= 0]) == sorted(row[row >= 0])
            letters += len(found)
        for face in (t for t in scene.things if t.eye and t.gaze):
            x, y = (min(int(v * c.vision.grid), c.vision.grid - 1) for v in face.eye)
            cos, sin, _ = truth.patch_look[0, y * c.vision.grid + x]
            assert cos**2 + sin**2 == pytest.approx(1, abs=1e-5)
            assert cos * (face.gaze[0] - face.eye[0]) > -0.02 and sin * (face.gaze[1] - face.eye[1]) > -0.02
            faces += 1
    assert letters > 30 and faces > 5


def test_patches_are_told_the_groups_of_which_captions_tell(tmp_path: Path) -> None:
    """From the groups under its patches the caption of a picture can be written, where no thing is hidden or tiny."""
    c, _ = recipe.prepare(_folder(tmp_path / "run"))
    whole = 0
    for seed in range(60):
        scene = draw_scene(np.random.default_rng(seed), sides=(64, SINGLE_VIEW), of=V2)
        truth = patch_truth(scene, make_crops(scene.image, c.vision), c.vision)
        told, lying = dict[tuple[int, int], tuple[int, str, str]](), dict[tuple[int, int], Fact]()
        for row, (color, name) in zip(truth.patch_told[0].tolist(), truth.patch_class[0].tolist(), strict=True):
            if name:
                count, _, _, place, index, where, size = row
                told[place, index] = count, COLOR_CLASSES[color], NAME_CLASSES[name]
                lying[place, index] = (
                    "place",
                    "" if size == NO_GLYPH else list(SIZES)[size],
                    *told[place, index][1:],
                    PLACES[where],
                )
        if len(told) < len(scene.things):
            continue
        written = {place: ("things", str(count), color, name) for (place, _), (count, color, name) in told.items()}
        stated = [fact for fact in parse_caption(caption_of(scene, "short")) if fact[0] == "things"]
        assert [written[place] for place in sorted(written) if written[place][3] != "word"] == stated
        assert all(index < count for (_, index), (count, _, _) in told.items())
        places = [fact for fact in facts_of(scene, "long") if fact[0] == "place"]
        words = {t.text for t in scene.things if t.kind == "word"}
        if len(scene.things) == len(places):
            mine = [lying[at] for at in sorted(lying) if lying[at][3] != "word"]
            assert mine == [fact for fact in places if fact[3] not in words]
        whole += bool(stated)
    assert whole > 30
