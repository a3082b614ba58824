"""galago export: what it writes, what it refuses, and what becomes of a folder that is moved about."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_moondream
from onnx_folder import export
from PIL import Image

import galago
from galago.backends.onnx import builder, graphs
from galago.backends.onnx import export as exporting
from galago.cli.app import main
from galago.errors import CheckpointError

PARTS = {"vision_encoder", "embed_tokens", "decoder_model_merged"}
REGIONS = {f"{what}_{way}coder" for what in ("coordinate", "size") for way in ("en", "de")}


def answer(folder: Path) -> str:
    with galago.load(folder) as model:
        found: str = model.caption(tiny_moondream.IMAGE, settings=tiny_moondream.WARM)["caption"]
        return found


def said(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The error of a command that is refused."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    return capsys.readouterr().err.strip()


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_names_are_those_that_browsers_look_for(moondream: tuple[Path, Path], smolvlm: tuple[Path, Path]) -> None:
    beside = {"config.json", "tokenizer.json", "galago_onnx.json", "onnx"}
    assert names(moondream[1]) == beside
    assert {*beside, "preprocessor_config.json"} <= names(smolvlm[1])
    assert names(smolvlm[1] / "onnx") == {f"{part}.onnx" for part in PARTS}
    assert names(moondream[1] / "onnx") == {f"{part}.onnx" for part in {*PARTS, *REGIONS, "vision_projection"}}
    decoder = session(smolvlm[1] / "onnx" / "decoder_model_merged.onnx")
    given, found = ([one.name for one in many] for many in (decoder.get_inputs(), decoder.get_outputs()))
    kept = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert given == ["inputs_embeds", "attention_mask", "position_ids", *(f"past_key_values.{one}" for one in kept)]
    assert found == ["logits", *(f"present.{one}" for one in kept)]


def test_a_chat_template_of_its_own_file_is_found_by_browsers(smolvlm: tuple[Path, Path], tmp_path: Path) -> None:
    copied = Path(shutil.copytree(smolvlm[0], tmp_path / "copy"))
    (copied / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    (copied / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    written = json.loads((export(copied) / "tokenizer_config.json").read_text())
    assert written == {"eos_token": "<end>", "chat_template": "{{ messages }}"}


def test_sequences_that_are_filled_up_on_the_left_go_together(smolvlm: tuple[Path, Path]) -> None:
    """As programs in browsers give them, in batches with an attention_mask."""
    folder = smolvlm[1] / "onnx"
    embed, decoder = session(folder / "embed_tokens.onnx"), session(folder / "decoder_model_merged.onnx")
    shapes = {one.name: one.shape for one in decoder.get_inputs()}

    def logits(*ids: list[int]) -> Any:
        longest = max(map(len, ids))
        mask = np.array([[0] * (longest - len(one)) + [1] * len(one) for one in ids], np.int64)
        filled = np.array([[0] * (longest - len(one)) + one for one in ids], np.int64)
        (x,) = embed.run(None, {"input_ids": filled})
        past = {
            name: np.zeros((len(ids), shape[1], 0, shape[3]), np.float32)
            for name, shape in shapes.items()
            if name.startswith("past")
        }
        inputs = {"inputs_embeds": x, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(1) - 1, 0)}
        return decoder.run(["logits"], inputs | past)[0][:, -1]

    one, other = [5, 6, 7, 8, 9], [11, 12]
    assert np.allclose(logits(one, other), np.concatenate([logits(one), logits(other)]), atol=1e-4)


def test_int8_is_a_third_of_it_and_answers(moondream: tuple[Path, Path], tmp_path: Path) -> None:
    small = export(moondream[0], "int8", tmp_path / "small")
    assert all(file.name.endswith("_int8.onnx") for file in (small / "onnx").iterdir())
    whole, less = (sum(f.stat().st_size for f in (folder / "onnx").iterdir()) for folder in (moondream[1], small))
    assert less < 0.45 * whole
    with galago.load(small) as model:
        assert model.precision == "int8"
        assert model.caption(tiny_moondream.IMAGE, settings={"max_tokens": 3})["caption"]


def test_weights_too_large_for_one_file_lie_beside_it(
    moondream: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporting, "MOST_INLINE", 20_000)
    made = export(moondream[0], out=tmp_path / "made")
    data = {name for name in names(made / "onnx") if name.endswith(".onnx_data")}
    assert "decoder_model_merged.onnx_data" in data and "size_encoder.onnx_data" not in data
    # A folder is moved, and its name is nowhere in it.
    moved = made.rename(tmp_path / "moved")
    assert answer(moved) == answer(moondream[1])
    (moved / "onnx" / "decoder_model_merged.onnx_data").unlink()
    assert "decoder_model_merged.onnx_data is missing; copy all of the folder" in said(
        capsys, "show", moved, "--device", "cpu"
    )


def test_a_graph_that_computes_something_else_is_not_written(
    moondream: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = builder.layer_norm
    monkeypatch.setattr(graphs, "layer_norm", lambda b, x, w, eps: right(b, x, w, 0.1))
    error = said(capsys, "export", moondream[0], "--to", "onnx", "--out", tmp_path / "out")
    assert "decoder_model_merged: logits of ONNX Runtime is" in error and "1e-04 are allowed" in error
    assert names(tmp_path) == set()


def test_json_tells_the_sizes(
    moondream: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["export", str(moondream[0]), "--to", "onnx", "--precision", "int8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["precision"], told["folder"]) == ("eyes", "int8", "eyes-onnx-int8")
    assert told["bytes"] == sum(f.stat().st_size for f in (tmp_path / "eyes-onnx-int8" / "onnx").iterdir())
    assert told["graphs"].keys() == {*PARTS, *REGIONS, "vision_projection"}
    assert all(0 <= graph["difference"] < 0.25 for graph in told["graphs"].values())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--to", "gguf"], "cannot export to 'gguf'; use onnx"),
        (["--to", "onnx", "--precision", "int4"], "cannot export in 'int4'; use float32 or int8"),
        (["--to", "onnx", "--out", "full"], "full is not empty; choose another"),
        (["--to", "onnx", "--out", "full/notes.txt"], "is not a folder"),
    ],
)
def test_what_is_refused(
    words: list[str],
    says: str,
    moondream: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    assert says in said(capsys, "export", moondream[0], *words).replace('"', "'")
    assert names(tmp_path) == {"full"} and names(Path("full")) == {"notes.txt"}


def test_only_a_checkpoint_is_exported(
    moondream: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = said(capsys, "export", moondream[1], "--to", "onnx", "--out", tmp_path / "out")
    assert "holds ONNX graphs" in error and "take the checkpoint that they were made of" in error
    assert main(["quantize", str(moondream[0]), "--to", "int8", "--out", str(tmp_path / "packed")]) == 0
    error = said(capsys, "export", tmp_path / "packed", "--to", "onnx", "--out", tmp_path / "out")
    assert "packed is quantized to int8 already; start from the original" in error
    error = said(capsys, "export", "florence-2-base", "--to", "onnx", "--out", tmp_path / "out")
    assert "is run by transformers and cannot be exported; Moondream and SmolVLM can" in error
    assert names(tmp_path) == {"packed"}
    for part in ("onnx", "onnx/embed_tokens.onnx"):
        error = said(capsys, "show", moondream[1] / part)
        assert error.endswith(f"is a part of a model; name {moondream[1]}")
    assert "name the model alone, and --precision" in said(capsys, "export", "scenes-int8", "--to", "onnx")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "onnx" / "embed_tokens.onnx").unlink(), "embed_tokens.onnx is missing"),
        (lambda f: cut(f / "onnx" / "vision_encoder.onnx"), "was copied in part"),
        (lambda f: spoilt(f / "onnx" / "vision_encoder.onnx"), "vision_encoder.onnx cannot be run by ONNX Runtime"),
        (lambda f: change(f, "format", 2), "format is 2; allowed is 1"),
        (lambda f: change(f, "family", "gpt"), 'family is "gpt"'),
        (lambda f: change(f, "precision", None), "precision is missing"),
        (lambda f: (f / "galago_onnx.json").write_text("{"), "is not JSON"),
    ],
)
def test_a_folder_that_is_not_whole(moondream: tuple[Path, Path], tmp_path: Path, spoil: Any, says: str) -> None:
    folder = Path(shutil.copytree(moondream[1], tmp_path / "copy"))
    spoil(folder)
    with pytest.raises(CheckpointError) as raised:
        galago.load(folder)
    assert says in str(raised.value) and "\n" not in str(raised.value)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def spoilt(file: Path) -> None:
    file.write_bytes(b"\xff" * file.stat().st_size)


def change(folder: Path, name: str, value: Any) -> None:
    file = folder / "galago_onnx.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))


def test_the_bundled_model_says_and_finds_the_same(scenes: Path) -> None:
    image = Image.open(Path(__file__).parents[2] / "examples" / "scene.png")
    with galago.load("scenes", precision="float32") as torch, galago.load(scenes) as onnx:
        assert onnx.caption(image) == torch.caption(image)
        assert onnx.query(image, "What does the word say?") == torch.query(image, "What does the word say?")
        found, wanted = (model.detect(image, "circle")["objects"] for model in (onnx, torch))
    assert len(found) == len(wanted) == 1
    assert found[0] == pytest.approx(wanted[0], abs=1e-4)
