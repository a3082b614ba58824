"""Any repository of the hub is a model by its name: from a stand-in for the hub, never from the hub itself."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import tiny_moondream
import tiny_smolvlm
from hub_standin import Shelf, at_an_address
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save
from serving import serving
from vectors import VECTORS

import galago
from galago.cli.app import main
from galago.errors import CheckpointError, DownloadError, ModelNotFound
from galago.fleet.pool import ModelPool
from galago.server.app import create_app
from galago.server.settings import ServerSettings
from galago.store import hub

TUNED = VECTORS / "smolvlm-finetune"
QUESTION, ANSWER = "What is a galago?", "A small primate with large eyes."
ID = "someone/their-finetune"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """An empty cache, and a hub that is the stand-in."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    shelf = Shelf()
    with at_an_address(shelf) as url:
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield shelf


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def said(name: str) -> str:
    with galago.load(name, precision="float32") as model:
        return str(model.chat([{"role": "user", "content": QUESTION}])["answer"]).strip()


# --- what is loaded --------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "base_model.model."])
def test_a_finetune_that_transformers_saved_answers_as_there(shelf: Shelf, prefix: str, tmp_path: Path) -> None:
    """In parts, of bfloat16, with names as trainers' wrappers leave them."""
    files = contents(TUNED)
    for name in [name for name in files if name.endswith(".safetensors")]:
        tensors = load_file(TUNED / name)
        files[name] = save({prefix + key: tensor for key, tensor in tensors.items()})
    shelf.publish(ID, files)
    assert said(ID) == ANSWER


def test_only_what_is_read_is_fetched(shelf: Shelf) -> None:
    """Beside the weights lie others of the same model, code, and what a trainer left."""
    beside = dict.fromkeys(
        ("pytorch_model.bin", "consolidated.safetensors", "modeling.py", "optimizer.pt"), b"x" * 5000
    )
    commit = shelf.publish(
        ID, contents(TUNED) | beside | {"onnx/model.onnx": b"x", "checkpoint-7/model.safetensors": b"x"}
    )
    files = hub.locate(ID)
    assert (files.name, files.family, files.commit) == (ID, "smolvlm", commit)
    got = {
        request.split()[1].rpartition("/")[2]
        for request in shelf.asked
        if request.startswith("GET") and "resolve" in request
    }
    parts = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}
    assert got == {"config.json", "tokenizer.json", "preprocessor_config.json", *parts}


def test_a_moondream_without_a_tokenizer_takes_that_of_its_published_model(shelf: Shelf, tmp_path: Path) -> None:
    """As its own repositories do; and without a config its tensors tell what it is."""
    files = contents(tiny_moondream.write(tmp_path / "made"))
    tokenizer = files.pop("tokenizer.json")
    shelf.publish(ID, files)
    shelf.files["/moondream/starmie-v1/resolve/main/tokenizer.json"] = tokenizer
    with galago.load(ID, precision="float32") as model:
        facts = model.backend.facts
        assert facts.revision == "2025-06-21"
        assert any(
            "someone/their-finetune has no tokenizer.json: that of moondream/starmie-v1 is used" in f
            for f in facts.fallbacks
        )


def test_the_family_is_told_by_tensors_where_no_config_does(shelf: Shelf, tmp_path: Path) -> None:
    made = tiny_smolvlm.write(tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    del config["model_type"]
    (made / "config.json").write_text(json.dumps(config))
    assert hub.locate(made).family == "smolvlm"
    shelf.publish(ID, contents(made))
    assert hub.locate(ID).family == "smolvlm"


# --- at which commit -------------------------------------------------------------------------


def test_a_branch_stays_where_it_was_until_it_is_pulled(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    first = shelf.publish(ID, contents(TUNED))
    assert hub.locate(ID).commit == first
    shelf.asked.clear()
    second = shelf.publish(ID, contents(TUNED) | {"README.md": b"better"})
    assert hub.locate(ID).commit == first and shelf.asked == []
    assert main(["models", "pull", ID]) == 0
    assert f"commit {second}" in capsys.readouterr().out
    assert hub.locate(ID, offline=True).commit == second
    # What was pulled before can still be named.
    assert hub.locate(f"{ID}@{first}", offline=True).commit == first


def test_a_branch_or_commit_may_be_named(shelf: Shelf) -> None:
    main_ = shelf.publish(ID, contents(TUNED))
    other = shelf.publish(ID, contents(TUNED) | {"README.md": b"other"}, branch="v2")
    named = hub.locate(f"{ID}@v2")
    assert (named.name, named.commit) == (f"{ID}@v2", other)
    assert hub.locate(f"{ID}@{main_}").commit == main_
    assert hub.locate(ID).commit == main_


def test_a_download_that_ended_half_way_pins_nothing(shelf: Shelf) -> None:
    shelf.publish(ID, contents(TUNED))
    shelf.damaged = True
    with pytest.raises(DownloadError, match="arrived damaged"):
        hub.locate(ID)
    with pytest.raises(DownloadError, match=f"{ID} is not installed, and offline mode"):
        hub.locate(ID, offline=True)
    shelf.damaged = False
    assert said(ID) == ANSWER


def test_what_another_program_left_in_part_is_completed(shelf: Shelf) -> None:
    """Its processor's settings would be missed by nobody: pictures would be cut otherwise than in training."""
    shelf.publish(ID, contents(TUNED))
    whole = hub.locate(ID)
    (whole.weights[0].parent / "preprocessor_config.json").unlink()
    assert hub.locate(ID).preprocessor == whole.preprocessor


# --- GGUF files ------------------------------------------------------------------------------


def test_gguf_files_are_named_by_file_or_by_how_they_are_stored(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")
    import tiny_gguf

    made = contents(tiny_gguf.write(tmp_path / "made", "their-F16.gguf", "mmproj-their-F16.gguf"))
    published = made | {
        "their-Q4_K_M.gguf": made["their-F16.gguf"] + b"x",
        "mmproj-other-F16.gguf": b"x",
        "README.md": b"x",
    }
    commit = shelf.publish(ID, published)
    with pytest.raises(CheckpointError, match=f"{ID} holds several models; name one of their-F16.gguf, their-Q4_K_M"):
        hub.locate(ID)
    with pytest.raises(CheckpointError, match=f"{ID}:Q8_0 is not there; there are their-F16.gguf, their-Q4_K_M.gguf"):
        hub.locate(f"{ID}:Q8_0")
    assert not any("resolve" in request for request in shelf.asked)
    found = hub.locate(f"{ID}:Q4_K_M")
    assert [f.name for f in (*found.weights, found.projector)] == ["their-Q4_K_M.gguf", "mmproj-their-F16.gguf"]  # type: ignore[union-attr]
    got = {r.split()[1].rpartition("/")[2] for r in shelf.asked if r.startswith("GET") and "resolve" in r}
    assert got == {"their-Q4_K_M.gguf", "mmproj-their-F16.gguf"}
    # From now on without a look at the network, and another of the same commit, though the branch went on.
    shelf.asked.clear()
    assert hub.locate(f"{ID}:Q4_K_M", offline=True).commit == commit and shelf.asked == []
    with pytest.raises(DownloadError, match="is not installed, and offline mode"):
        hub.locate(f"{ID}:their-F16.gguf", offline=True)
    shelf.publish(ID, published | {"README.md": b"new"})
    assert hub.locate(f"{ID}:their-F16.gguf").commit == commit
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert f"{ID}:their-Q4_K_M.gguf" in listed and f"{ID}:their-F16.gguf" in listed
    assert main(["show", f"{ID}:Q4_K_M", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["backend"], told["parameters"] > 100_000, told["commit"]) == ("llama_server", True, commit)
    # One is deleted without the other, and without the projector that both need.
    assert hub.remove(f"{ID}:their-F16.gguf") == len(made["their-F16.gguf"])
    assert hub.locate(f"{ID}:Q4_K_M", offline=True).projector


def test_a_repository_of_one_gguf_file_needs_no_more_than_its_name(shelf: Shelf, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="needs gguf (pip install gguf)")
    import tiny_gguf

    commit = shelf.publish(ID, contents(tiny_gguf.write(tmp_path / "made")))
    found = hub.locate(ID)
    assert (found.name, found.commit, found.family) == (ID, commit, "llama_server")


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"config.json": b'{"model_type": "qwen2_vl"}'},
            'model_type is "qwen2_vl"; allowed is one of "moondream1", "smolvlm"',
        ),
        ({"config.json": b"<html>"}, "is an HTML page|is not JSON"),
        ({"config.json": b'{"model_type": "moondream1"}'}, "its other tensors are none of a moondream"),
        ({"tokenizer.json": None}, "tokenizer.json is missing"),
    ],
)
def test_what_is_no_model_is_told_before_its_weights_are_fetched(
    shelf: Shelf, change: dict[str, bytes | None], why: str
) -> None:
    files = contents(TUNED) | change
    shelf.publish(ID, {name: body for name, body in files.items() if body is not None})
    with pytest.raises(CheckpointError, match=f"{ID}: .*({why})"):
        hub.locate(ID)
    whole = [request for request in shelf.asked if "GET" in request and "bytes=" not in request]
    assert not any("safetensors" in request for request in whole)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (("pytorch_model.bin",), "pytorch_model.bin is a pickle, which can run code"),
        (("adapter_model.safetensors", "adapter_config.json"), "is an adapter, .* merge it"),
        (("checkpoint-7/model.safetensors", "checkpoint-12/model.safetensors"), "a trainer saved checkpoint-12 in it"),
        (("model-q8.gguf",), r"model-q8.gguf has no projector beside it \(mmproj"),
        (("model-00001-of-00003.safetensors",), "1 of 3 parts of the model are there"),
        (("README.md",), "no model.safetensors"),
    ],
)
def test_a_repository_without_weights_that_can_be_read(shelf: Shelf, names: tuple[str, ...], why: str) -> None:
    shelf.publish(ID, {"config.json": b"{}"} | dict.fromkeys(names, b"x"))
    with pytest.raises(CheckpointError, match=why):
        hub.locate(ID)
    assert not any("resolve" in request for request in shelf.asked)


def test_what_the_hub_says(shelf: Shelf) -> None:
    with pytest.raises(DownloadError, match=r"has no someone/their-finetune, or keeps it private: set HF_TOKEN"):
        hub.locate(ID)
    shelf.publish(ID, contents(TUNED))
    with pytest.raises(DownloadError, match=f"{ID} has no revision v3"):
        hub.locate(f"{ID}@v3")
    shelf.error = (401, "GatedRepo")
    with pytest.raises(DownloadError, match=f"{ID} is gated: accept its terms"):
        hub.locate(ID)


@pytest.mark.parametrize(
    "name", ["../x", "a/b/c", "a/../b", "a/b@", "a/b@../c", "/a/b", "a/", "-a/b", "a/b@x y", "a/b\n"]
)
def test_no_other_name_is_a_repositorys(shelf: Shelf, name: str) -> None:
    with pytest.raises(ModelNotFound):
        hub.locate(name)
    assert shelf.asked == []


def test_a_folder_of_the_name_goes_before_the_repository(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_smolvlm.write(tmp_path / ID)
    monkeypatch.chdir(tmp_path)
    assert hub.locate(ID).source == tmp_path / ID and shelf.asked == []


# --- the faces -------------------------------------------------------------------------------


def test_the_command_line(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    commit = shelf.publish(ID, contents(TUNED))
    assert main(["show", ID]) != 0
    assert f"{ID} is not installed; `galago models pull {ID}` downloads it" in capsys.readouterr().err
    assert main(["query", "--model", ID, "--json", "examples/scene.png", QUESTION]) == 0
    capsys.readouterr()
    assert main(["show", ID, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["id"], shown["commit"], shown["family"]) == (ID, commit, "smolvlm")
    assert main(["models", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert next(line for line in lines if line["id"] == ID)["commit"] == commit
    assert main(["models", "remove", ID]) == 0 and "freed" in capsys.readouterr().out
    assert main(["models", "path", ID]) != 0
    assert main(["models", "remove", ID]) != 0 and "is not installed" in capsys.readouterr().err


def test_a_server_of_it_answers_by_its_name_and_fetches_no_strangers(shelf: Shelf) -> None:
    commit = shelf.publish(ID, contents(TUNED))
    shelf.publish("stranger/model", contents(TUNED))
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    pool = ModelPool(options={"precision": "float32"})
    with (
        serving(create_app(pool, ServerSettings(model=(ID,)))) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        reply = client.post("/v1/chat/completions", json=body | {"model": ID}).json()
        assert (reply["choices"][0]["message"]["content"].strip(), reply["model"]) == (ANSWER, ID)
        assert client.get("/v1/models").json()["data"][0]["id"] == ID
        assert client.get("/health").json()["models"][0]["commit"] == commit
        shelf.asked.clear()
        client.post("/v1/chat/completions", json=body | {"model": "stranger/model"})
        assert client.post("/models/load", json={"model": "stranger/model"}).status_code >= 400
        assert shelf.asked == []


def test_a_model_that_transformers_runs(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What that library reads beside the weights is fetched, and once; no code, and no weights that it cannot run."""
    pytest.importorskip("transformers", reason="needs transformers (pip install 'galago[transformers]')")
    import tiny_transformers

    files = contents(tiny_transformers.llava(tmp_path / "llava"))
    shelf.publish(ID, files | {"modeling_own.py": b"raise SystemExit", "pytorch_model.bin": b"x"})
    with galago.load(ID) as model:
        assert model.query(question="what?", settings={"max_tokens": 4})["answer"]
        assert model.name == ID and model.backend.facts.commit
    got = [asked.split()[1].rpartition("/")[2] for asked in shelf.asked if asked.startswith("GET /someone")]
    assert {*got} == files.keys()
    shelf.asked.clear()
    assert hub.locate(ID).family == "transformers" and ID in hub.repositories()
    assert main(["show", ID]) == main(["models"]) == 0
    assert not shelf.asked
    monkeypatch.setattr("galago.store.foreign.find_spec", lambda name: None)
    other = "someone/other"
    shelf.publish(other, files)
    with pytest.raises(CheckpointError, match=r"pip install 'galago\[transformers\]'"):
        galago.load(other)
    assert not [asked for asked in shelf.asked if asked.startswith("GET") and asked.endswith(".safetensors")]


def test_a_model_of_the_catalogue_that_transformers_runs(shelf: Shelf, tmp_path: Path) -> None:
    """Named shortly, and fetched of its own branch; what the repository has is asked, not known."""
    pytest.importorskip("transformers", reason="needs transformers (pip install 'galago[transformers]')")
    import tiny_transformers

    repo = "microsoft/git-base-coco"
    shelf.publish(repo, {"pytorch_model.bin": b"x"})
    commit = shelf.publish(repo, contents(tiny_transformers.git(tmp_path / "git")), branch="refs/pr/1")
    assert "git-base" not in hub.installed()
    assert main(["models", "pull", "git-base"]) == 0
    assert hub.installed()["git-base"] > 1000 and repo not in hub.repositories()
    shelf.asked.clear()
    with galago.load("git-base") as model:
        assert model.name == "git-base" and model.backend.facts.commit == commit
        assert model.caption(Image.new("RGB", (40, 40)), settings={"max_tokens": 4})["caption"]
    with galago.load("git-base-int8") as model:
        assert model.precision == "int8"
    assert not shelf.asked
    assert main(["show", "git-base"]) == main(["models", "remove", "git-base"]) == 0
    assert "git-base" not in hub.installed()
