"""Finding and fetching checkpoints, from folders and from a stand-in for the hub."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_standin import TOKENIZER, WEIGHTS, Shelf, at_an_address
from huggingface_hub import constants

import galago
from galago import hub, packing
from galago.catalog import Hosted, find
from galago.cli.app import main
from galago.errors import CheckpointError, DownloadError, InvalidRequest, ModelNotFound


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def address(shelf: Shelf) -> Iterator[str]:
    with at_an_address(shelf) as url:
        yield url


def point_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the hub client reads from HF_ENDPOINT when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that is not there unless a test starts one."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    point_at("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


@pytest.fixture
def online(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(address, monkeypatch)


# --- the hub ---------------------------------------------------------------------------------


def test_a_download_is_whole_and_told_of(online, shelf):
    told: list[tuple[int, int]] = []
    files = hub.locate("moondream2", progress=lambda done, total: told.append((done, total)))
    assert [f.read_bytes() for f in files.weights] == [WEIGHTS] and files.tokenizer.read_bytes() == TOKENIZER
    assert (files.name, files.family, files.revision, files.config) == ("moondream2", "moondream", "2025-06-21", {})
    total = len(WEIGHTS) + len(TOKENIZER)
    assert told[-1] == (total, total) and told == sorted(told) and {t for _, t in told} == {total}


def test_what_is_here_needs_no_hub(online, shelf, monkeypatch):
    first = hub.locate("moondream2")
    shelf.asked.clear()
    assert hub.locate("2b") == first and shelf.asked == []
    assert hub.locate("moondream2", offline=True) == first


def test_a_damaged_file_is_told_with_its_path_its_model_and_what_helps(online, shelf):
    """What the stand-in has is no model; a disk that lost some of a file ends in the same way."""
    weights = hub.locate("moondream2").weights[0]
    helps = "download it again (galago models remove moondream2, then galago models pull moondream2)"
    with pytest.raises(CheckpointError) as error:
        galago.load("moondream2")
    told = str(error.value)
    assert told.startswith(f"moondream2: {weights} is damaged or not safetensors: ") and told.endswith(helps)


def test_only_what_lacks_is_fetched(online, shelf):
    files = hub.locate("moondream2")
    files.tokenizer.unlink()
    shelf.asked.clear()
    assert hub.locate("moondream2") == files
    assert not any("model.safetensors" in a for a in shelf.asked)


def test_a_broken_connection_is_taken_up_where_it_ended(online, shelf, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    shelf.break_after = 100_000
    assert hub.locate("moondream2").weights[0].read_bytes() == WEIGHTS
    assert [a.rpartition(" ")[2] for a in shelf.asked if "bytes=" in a] == ["bytes=100000-"]


def test_damaged_bytes_are_not_kept(online, shelf):
    shelf.damaged = True
    with pytest.raises(DownloadError, match=r"model.safetensors arrived damaged .* try again"):
        hub.locate("moondream2")
    shelf.damaged = False
    assert hub.locate("moondream2").weights[0].read_bytes() == WEIGHTS


def test_a_file_that_another_process_found_damaged_and_deleted_is_an_error_of_one_line(online, monkeypatch):
    fetch = huggingface_hub.hf_hub_download

    def fetch_and_lose(*args, **kwargs):
        path = Path(fetch(*args, **kwargs))
        path.resolve().unlink()
        path.unlink()
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch_and_lose)
    with pytest.raises(DownloadError, match="try again"):
        hub.locate("moondream2")


def test_weights_that_were_damaged_after_their_download_are_not_packed(online, monkeypatch, tmp_path):
    """As a cache whose disk lost some, or whose download was killed before it was checked."""
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    files = hub.locate("moondream2")
    hub.check(files)
    blob = files.weights[0].resolve()
    blob.write_bytes(WEIGHTS[:100_000] + bytes(4096) + WEIGHTS[104_096:])
    monkeypatch.setattr(packing, "bits_of", lambda weights: None)
    with pytest.raises(
        CheckpointError, match="damaged: its checksum is not the hub's; run galago models remove moondr"
    ):
        packing.packed_copy(files, "int8")


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (404, "EntryNotFound", "model.safetensors of vikhyatk/moondream2 at 2025-06-21 does not exist"),
        (404, "RevisionNotFound", "no revision 2025-06-21"),
        (401, "RepoNotFound", "HF_TOKEN"),
        (403, "GatedRepo", "accept its terms"),
        (400, "", "answered 400"),
        (500, "", "answered 500"),
    ],
)
def test_refusals_say_what_to_do(online, shelf, status, code, said):
    shelf.error = (status, code)
    with pytest.raises(DownloadError, match=said) as error:
        hub.locate("moondream2")
    assert "\n" not in str(error.value) and str(error.value).startswith("moondream2: ")


def test_no_network_names_the_address():
    with pytest.raises(DownloadError, match=r"could not fetch .* from http://127.0.0.1:9 .* check the network"):
        hub.locate("moondream2")


def test_offline_does_not_try(online, shelf):
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        hub.locate("moondream2", offline=True)
    assert shelf.asked == []


@pytest.mark.parametrize("lacking", ["tokenizer", "weights"])
def test_offline_the_one_missing_file_is_named(online, shelf, lacking):
    files = hub.locate("moondream2")
    source = find("moondream2").source
    assert isinstance(source, Hosted)
    gone = source.tokenizer if lacking == "tokenizer" else source.weights[0]
    (files.tokenizer if lacking == "tokenizer" else files.weights[0]).unlink()
    with pytest.raises(DownloadError) as error:
        hub.locate("moondream2", offline=True)
    assert f"moondream2 lacks {gone.file} of {gone.repo}, and offline mode" in str(error.value)
    assert "galago models pull moondream2" in str(error.value)


def test_a_cache_of_the_hub_that_is_read_only_is_called_so(online, shelf, cache, monkeypatch):
    real = os.makedirs

    def refuse(name, *args, **kwargs):
        if str(name).startswith(str(cache)):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(name))
        real(name, *args, **kwargs)

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(DownloadError, match=r"cannot be written .*: set HF_HOME"):
        hub.locate("moondream2")


def test_no_room_is_found_out_before_anything_is_fetched(online, shelf, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10}))
    with pytest.raises(DownloadError, match="HF_HOME"):
        hub.locate("moondream2")
    assert not any(a.startswith("GET") for a in shelf.asked)


def test_a_cache_that_cannot_be_written(online, cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match=os.strerror(errno.ENOTDIR)):
        hub.locate("moondream2")


def test_installed_and_removed(online, shelf, cache):
    assert "moondream2" not in hub.installed()
    hub.locate("moondream2")
    assert hub.installed()["moondream2"] == len(WEIGHTS) + len(TOKENIZER)
    assert hub.remove("moondream2") == len(WEIGHTS) + len(TOKENIZER)
    assert "moondream2" not in hub.installed()
    assert sum(f.stat().st_size for f in cache.rglob("blobs/*")) == 0
    with pytest.raises(ModelNotFound, match="not installed"):
        hub.remove("moondream2")


def test_packed_copies_go_with_their_model(online, shelf, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "kept"))
    packed = tmp_path / "kept" / "packed"
    packed.mkdir(parents=True)
    hub.locate("moondream2")

    def remove(name: str) -> str:
        assert main(["models", "remove", name]) == 0
        return capsys.readouterr().out

    def put(*names: str) -> None:
        for name in names:
            (packed / f"{name}-0123456789abcdef.safetensors").write_bytes(bytes(200_000))

    put("moondream2-int8", "moondream2-int4", "moondream2-2025-04-14-int8")
    assert remove("moondream2-int4") == "moondream2: 0.2 MB freed, its packed copy in int4\n"
    assert "moondream2" in hub.installed()
    assert remove("2b") == "moondream2: 0.5 MB freed, 0.2 MB of it in packed copies\n"
    assert "moondream2" not in hub.installed()
    assert [f.name for f in packed.iterdir()] == ["moondream2-2025-04-14-int8-0123456789abcdef.safetensors"]
    # What an earlier version left when it removed the model.
    put("moondream2-int8")
    assert remove("moondream2") == "moondream2: 0.2 MB freed, 0.2 MB of it in packed copies\n"


def test_what_another_model_needs_is_not_removed(online, shelf):
    names = "moondream2-2025-04-14", "moondream2-2025-03-27"
    for name in names:
        source = find(name).source
        assert isinstance(source, Hosted)
        for r in source.files:
            shelf.files[f"/{r.repo}/resolve/{r.revision}/{r.file}"] = f"{name} {r.file}".encode()
    kept, other = map(hub.locate, names)
    assert kept.tokenizer == other.tokenizer
    hub.remove(names[1])
    assert kept.tokenizer.is_file() and not other.weights[0].exists()


def test_the_environment_is_honoured_from_the_command_line(address, tmp_path):
    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "galago.cli.app", *args],
            env={**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address, **env},
            capture_output=True,
            text=True,
        )

    offline = run("models", "pull", "moondream2", HF_HUB_OFFLINE="1")
    assert offline.returncode == 2 and "moondream2 is not installed, and offline mode" in offline.stderr
    pulled = run("models", "pull", "moondream2")
    assert (pulled.returncode, pulled.stdout) == (0, "moondream2: 0.3 MB\n"), pulled.stderr
    assert run("models", "remove", "moondream2", HF_HUB_OFFLINE="1").stdout == "moondream2: 0.3 MB freed\n"


# --- folders and files -----------------------------------------------------------------------


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
    assert files == hub.Files("mine", "moondream", (path / chosen,), path / "tokenizer.json", source=path.resolve())
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
    with pytest.raises(CheckpointError, match=r"mine-q4\.gguf is for llama\.cpp"):
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


def test_names_of_the_catalogue_come_before_folders(tmp_path, monkeypatch):
    folder(tmp_path / "moondream2", "tokenizer.json", "model.safetensors")
    monkeypatch.chdir(tmp_path)
    assert hub.locate("./moondream2").weights[0].parent.name == "moondream2"
    with pytest.raises(DownloadError):
        hub.locate("moondream2")


def test_a_bundled_model_cannot_be_removed():
    with pytest.raises(InvalidRequest, match="part of galago"):
        hub.remove("scenes")
