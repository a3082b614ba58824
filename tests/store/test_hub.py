"""Finding and fetching checkpoints, from folders and from a stand-in for the hub."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from hub_standin import TOKENIZER, WEIGHTS, Shelf, at_an_address
from huggingface_hub import constants

import galago
from galago.cli.app import main
from galago.errors import CheckpointError, DownloadError, InvalidRequest, ModelNotFound
from galago.store import hub, packing
from galago.store.catalog import Hosted, find


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


def test_names_of_the_catalogue_come_before_folders(tmp_path, monkeypatch):
    (tmp_path / "moondream2").mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "moondream2" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert hub.locate("./moondream2").weights[0].parent.name == "moondream2"
    with pytest.raises(DownloadError):
        hub.locate("moondream2")


def test_a_bundled_model_cannot_be_removed():
    with pytest.raises(InvalidRequest, match="part of galago"):
        hub.remove("scenes")
