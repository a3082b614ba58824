"""Random checkpoints: whole, loadable, of the true shapes, and made once."""

import json
import math
from pathlib import Path

import pytest
import tiny_smolvlm
import torch
from safetensors.torch import load_file
from tiny_moondream import IMAGE, open_model, write

from galago.errors import ModelNotFound
from galago.families.moondream.config import REVISIONS, make_config
from galago.families.moondream.weights import FLOAT32, shapes
from galago.families.smolvlm.config import make_config as make_smolvlm
from galago.families.smolvlm.weights import checkpoint_tensors
from galago.lab.bench import random
from galago.request import Caption, Done, Request, Sampling
from galago.store import catalog, hub
from galago.store.packed_cache import packed_copies
from galago.store.packing import packed_copy


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "tiny")


def test_it_has_the_shapes_of_the_original_and_other_values(original, cache):
    told = []
    made = random.ensure_random_checkpoint(str(original), lambda done, total: told.append((done, total)))
    assert made == cache / "random" / "tiny-random"
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (made, original))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    for name, tensor in ours.items():
        plain = name.removeprefix("model.")
        assert tensor.dtype == (torch.float32 if plain in FLOAT32 else torch.bfloat16)
        if tensor.ndim == 1:
            expected = 0.0 if name.endswith("bias") else 1.0
            assert int((tensor != expected).sum()) == (plain == "text.lm_head.bias")
    drawn = ours["model.text.blocks.0.mlp.fc1.weight"].float()
    assert float(drawn.std()) == pytest.approx(random.STD, rel=0.05)
    assert abs(float(drawn.mean())) < random.STD / 10
    assert told[-1][0] == told[-1][1] == sum(t.nbytes for t in ours.values())
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_the_answer_never_ends_by_itself(original):
    with open_model(random.ensure_random_checkpoint(str(original))) as model:
        events = list(model.submit(Request(Caption(), IMAGE, Sampling(max_tokens=30))))
    assert isinstance(events[-1], Done)
    assert events[-1].usage.completion_tokens == 30 and events[-1].finish_reason == "length"


def test_it_is_made_once_and_again_when_the_model_has_changed(original, tmp_path):
    made = random.ensure_random_checkpoint(str(original)) / "model.safetensors"
    (made.parent / "mark").touch()
    random.ensure_random_checkpoint(str(original))
    assert (made.parent / "mark").exists()
    members = json.loads((original / "config.json").read_text())
    members["config"]["text"]["n_layers"] = 1
    smaller = write(tmp_path / "tiny", members=members)
    size = made.stat().st_size
    assert random.ensure_random_checkpoint(str(smaller)) == made.parent
    assert made.stat().st_size < size and not (made.parent / "mark").exists()
    assert sorted(f.name for f in made.parent.parent.iterdir()) == [".lock", "tiny-random"]


def test_what_was_interrupted_leaves_nothing(original, cache):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        random.ensure_random_checkpoint(str(original), interrupt)
    assert [f.name for f in (cache / "random").iterdir()] == [".lock"]


def test_copies_are_of_the_random_model_and_not_of_the_real_one(original, monkeypatch):
    monkeypatch.setattr("galago.store.packing.WORTH_KEEPING", 1)
    files = hub.locate(random.ensure_random_checkpoint(str(original)))
    assert files.name == "tiny-random"
    packed_copy(files, "int8", lambda done, total: None)
    assert packed_copies("tiny") == [] and [copy.precision for copy in packed_copies("tiny-random")] == ["int8"]
    assert hub.random_checkpoints() == {"tiny-random": sum(f.stat().st_size for f in files.weights[0].parent.iterdir())}


def test_a_model_that_would_have_to_be_downloaded_is_not():
    name = random.default_random_model()
    made, entry = random.find_blueprint(name), catalog.find(name)
    assert made.name == entry.id and isinstance(entry.source, catalog.Hosted)
    sizes = shapes(make_config(made.config.get("config") or {}, REVISIONS[made.config["revision"]]))
    assert sum(map(math.prod, sizes.values())) == entry.parameters
    assert made.tokenizer == hub.locate(catalog.entries()[0].id).tokenizer


def test_every_model_of_our_engine_has_a_blueprint():
    own = [e.id for e in catalog.entries() if e.backend == "native"]
    assert [random.find_blueprint(name).name for name in own] == own
    with pytest.raises(ModelNotFound, match="moondream9"):
        random.find_blueprint("moondream9")


def test_smolvlm_at_its_true_sizes():
    for name in ("smolvlm2-500m", "smolvlm2-256m", "smolvlm2-2.2b", "smolvlm-500m", "smolvlm-256m"):
        made, entry = random.find_blueprint(name), catalog.find(name)
        config = make_smolvlm(made.config, made.preprocessor)
        assert sum(math.prod(source.shape) for source in checkpoint_tensors(config)) == entry.parameters
        assert config.name == entry.revision


def test_a_random_smolvlm_answers_to_its_limit(tmp_path):
    made = random.ensure_random_checkpoint(str(tiny_smolvlm.write(tmp_path / "smol")))
    with tiny_smolvlm.open_model(made) as model:
        *_, done = model.submit(Request(Caption(), IMAGE, Sampling(max_tokens=30)))
    assert done.usage.completion_tokens == 30 and done.finish_reason == "length"
