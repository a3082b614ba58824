"""Which files of a folder are a checkpoint, as people and trainers leave them."""

import json
from pathlib import Path
from typing import Any

import pytest

from galago.errors import CheckpointError, ModelNotFound
from galago.families import ModelFiles
from galago.store import hub


def folder(path: Path, *names: str, config: Any = None) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    if config is not None:
        (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        (("model.safetensors", "weights.safetensors", "other.pt"), "model.safetensors"),
        (("weights.safetensors", "lora.safetensors"), "weights.safetensors"),
        (("final.pt",), "final.pt"),
        (("tuned.safetensors", "my-LoRA.safetensors", "notes.txt"), "tuned.safetensors"),
    ],
)
def test_the_weights_of_a_folder(tmp_path, there, chosen):
    path = folder(tmp_path / "mine", "tokenizer.json", *there)
    files = hub.locate(path)
    assert files == ModelFiles("mine", "moondream", (path / chosen,), path / "tokenizer.json", source=path.resolve())
    assert hub.locate(str(path)) == files


def test_weights_in_parts(tmp_path):
    parts = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    path = folder(tmp_path / "mine", "tokenizer.json", *parts)
    assert hub.locate(path).weights == tuple(path / p for p in parts)
    (path / parts[0]).unlink()
    with pytest.raises(CheckpointError, match=f"1 of 2 parts of the model are there; {parts[0]} is missing"):
        hub.locate(path)


@pytest.mark.parametrize("stem", ["model-{}.safetensors", "pytorch_model-{}.bin", "model.fp16-{}.safetensors"])
def test_weights_in_parts_of_any_kind_also_when_one_is_named(tmp_path, stem):
    parts = [stem.format(f"0000{i}-of-00003") for i in (1, 2, 3)]
    path = folder(tmp_path / "mine", "tokenizer.json", *parts)
    (path / f"{stem.partition('-')[0]}.index.json").touch()
    whole = tuple(path / p for p in parts)
    assert hub.locate(path).weights == whole
    for part in whole:
        files = hub.locate(part)
        assert (files.name, files.weights) == ("mine", whole)
    whole[1].unlink()
    for named in (path, whole[0]):
        with pytest.raises(CheckpointError, match=f"2 of 3 parts .*; {parts[1]} is missing"):
            hub.locate(named)


def test_a_folder_as_a_trainer_leaves_it(tmp_path):
    """Beside the weights lies what training goes on with."""
    beside = (
        "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "training_args.bin", "rng_state.pth",
        "rng_state_0.pth", "sampler.bin", "trainer_state.json", "adapter_model.safetensors",
        "mp_rank_00_model_states.pt",
    )  # fmt: skip
    for weights in ("model.safetensors", "pytorch_model.bin", "final.pt"):
        path = folder(tmp_path / weights, "tokenizer.json", weights, *beside)
        assert hub.locate(path).weights == (path / weights,)
    both = folder(tmp_path / "both", "tokenizer.json", "pytorch_model.bin", "model.safetensors", *beside)
    assert hub.locate(both).weights == (both / "model.safetensors",)
    older = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    path = folder(tmp_path / "older", "tokenizer.json", "model.safetensors", *older)
    assert hub.locate(path).weights == (path / "model.safetensors",)
    # Of two saves in parts the one that is whole.
    left, now = "model-00003-of-00003.safetensors", [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    path = folder(tmp_path / "again", "tokenizer.json", left, *now)
    assert hub.locate(path).weights == tuple(path / name for name in now)


def test_a_folder_without_weights_says_what_may_be_meant(tmp_path):
    path = folder(tmp_path / "out", "tokenizer.json", "training_args.bin")
    for step in (500, 1500, 1000):
        (path / f"checkpoint-{step}").mkdir()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors, .*; a trainer saved checkpoint-1500 in it"):
        hub.locate(path)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is an adapter, .*; merge it"):
        hub.locate(folder(tmp_path / "lora", "tokenizer.json", "adapter_model.safetensors"))
    with pytest.raises(CheckpointError, match=r"mine-q4\.gguf has no projector beside it"):
        hub.locate(folder(tmp_path / "gguf", "tokenizer.json", "mine-q4.gguf"))


def test_config_and_revision(tmp_path):
    config = {"model_type": "moondream1", "revision": "2025-01-09", "config": {}}
    files = hub.locate(folder(tmp_path / "mine", "tokenizer.json", "model.safetensors", config=config))
    assert files.config == config and files.revision == "2025-01-09"


def test_a_byte_order_mark_before_a_config_is_skipped(tmp_path):
    config = {"model_type": "moondream1"}
    path = folder(tmp_path / "mine", "tokenizer.json", "a.pt", config="\ufeff" + json.dumps(config))
    assert hub.locate(path).config == config


def test_a_weights_file_with_a_tokenizer_beside_it(tmp_path):
    path = folder(tmp_path / "mine", "tokenizer.json", "a.pt", "b.pt")
    assert hub.locate(path / "b.pt").weights == (path / "b.pt",)
    assert hub.locate(path / "b.pt").name == "b"


@pytest.mark.parametrize(
    ("names", "config", "said"),
    [
        ((), None, "no model.safetensors"),
        (("tokenizer.json",), None, "no model.safetensors"),
        (("model.safetensors",), None, "tokenizer.json is missing"),
        (("tokenizer.json", "a.pt", "b.pt"), None, "more than one checkpoint"),
        (
            ("tokenizer.json", "a.pt"),
            {"model_type": "llama"},
            'config.json: model_type is "llama"; allowed is one of "moondream1"',
        ),
        (("tokenizer.json", "a.pt"), {"model_type": ["smolvlm"]}, r'model_type is \["smolvlm"\]; allowed is one of'),
        (("tokenizer.json", "a.pt"), {"revision": 20250621}, "revision is 20250621; allowed is a text"),
        (("tokenizer.json", "a.pt"), "{", "mine: .*config.json is not JSON"),
        (("tokenizer.json", "a.pt"), "[]", "must hold a JSON object"),
        (("tokenizer.json", "a.pt"), '{"a":' * 50_000 + "1" + "}" * 50_000, "config.json is not JSON"),
        (("tokenizer.json", "a.pt"), "[" * 50_000, "config.json is not JSON"),
        (("tokenizer.json", "a.pt"), "1" * 5000, "config.json is not JSON"),
        (("tokenizer.json", "a.pt"), "<html>404</html>", "config.json is an HTML page.*copy or download it again"),
        (("tokenizer.json", "a.pt"), "version https://git-lfs.github.com/spec/v1", "config.json is a git-LFS pointer"),
    ],
)
def test_folders_that_are_no_checkpoint(tmp_path, names, config, said):
    with pytest.raises(CheckpointError, match=said):
        hub.locate(folder(tmp_path / "mine", *names, config=config))


def test_files_of_another_kind_are_refused_by_name(tmp_path):
    path = folder(tmp_path / "mine", "tokenizer.json", "moondream.mf.gz")
    with pytest.raises(CheckpointError, match=r"moondream.mf.gz is not read, since it holds weights of"):
        hub.locate(path / "moondream.mf.gz")


def test_a_path_of_a_home_that_is_not_there(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.raises(ModelNotFound, match=r"no folder or file ~/mine"):
        hub.locate("~/mine")


def test_a_config_that_is_no_config_is_not_read(tmp_path):
    path = folder(tmp_path / "mine", "tokenizer.json", "a.pt", "config.json")
    with (path / "config.json").open("r+b") as file:
        file.truncate(4 << 30)
        file.write(b"{")
    with pytest.raises(CheckpointError, match=r"config\.json is larger than 64 MiB"):
        hub.locate(path)


@pytest.mark.parametrize("name", ["./none", "/none/at/all", "~/none-here", "none.safetensors"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ModelNotFound, match="no folder or file"):
        hub.locate(name)
