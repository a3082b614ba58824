"""galago batch on Ray: what one process says, whatever happens to the workers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from select import select
from typing import Any

import pytest
from program import ran

from galago.cluster.batch import BLOCK, blocks
from galago.cluster.connection import Workers, check_address, parse_workers
from galago.cluster.worker import WHOLE, Ledger
from galago.errors import InvalidRequest

PATIENCE = 240
ASKED = ("--model", "scenes", "--caption", "short", "--detect", "circle", "--threads", 1)


def start(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "galago.cli.app", "batch", *map(str, words), *map(str, ASKED)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def batch(*words: object) -> tuple[int, str]:
    with ended(start(*words)) as process:
        said, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, said


@contextmanager
def ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """A process that does not outlive this."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def rows(folder: Path) -> dict[str, Any]:
    """The rows of an output by their names, each of which is there once."""
    paths = sorted(folder.glob("part-*.jsonl"))
    found = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert len(found) == len({one["image"] for one in found})
    return {one["image"]: one for one in found}


def test_the_words_of_the_command() -> None:
    assert (parse_workers("3", "workers"), parse_workers("1..8", "workers")) == (Workers(3, 3), Workers(1, 8))
    for wrong in ("0", "8..1", "1..", "many", "-1"):
        with pytest.raises(InvalidRequest, match="--workers must be"):
            parse_workers(wrong, "workers")
    for wrong in ("spark", "ray://", "ray://host", "http://host:1", "ray://host:1/x"):
        with pytest.raises(InvalidRequest, match="--on must be ray or ray://HOST:PORT"):
            check_address(wrong)


def test_rows_are_handed_out_in_blocks() -> None:
    found = list(blocks(range(2 * BLOCK + 3)))  # type: ignore[arg-type]
    assert [len(one.rows) for one in found] == [BLOCK, BLOCK, 3]
    assert [one.number for one in found] == [0, 1, 2]
    assert list(blocks([])) == []


def test_a_row_is_blamed_that_was_looked_at_when_its_worker_ended() -> None:
    ledger = Ledger()
    assert [ledger.begin(7) for _ in range(WHOLE)] == [(1, set()), (2, set())]
    assert ledger.begin(7) == (3, set())
    ledger.look(7, 0)
    ledger.look(7, 1)
    assert ledger.begin(7) == (4, {1})
    ledger.end(7)
    assert ledger.begin(7) == (1, set())


def test_without_ray_a_line_says_how_to_get_it(drawn: Path, tmp_path: Path) -> None:
    script = """
        import sys
        sys.modules["ray"] = None
        from galago.cli.app import main
        print(main(["batch", sys.argv[1], "--out", sys.argv[2], "--on", "ray"]))
        print(main(["serve", "--on", "ray"]))
    """
    assert ran(script, drawn, tmp_path / "out").split() == ["2", "2"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--out", "o.jsonl", "--on", "ray"), "name a folder"),
        (("--out", "o", "--on", "ray", "--dry-run"), "leave out --on"),
        (("--out", "o", "--on", "dask"), "--on must be"),
        (("--out", "o", "--workers", 2), "--workers is of --on ray"),
        (("-", "--out", "o", "--on", "ray"), "standard input"),
    ],
)
def test_what_cannot_be_is_told_at_once(drawn: Path, words: tuple[object, ...], told: str) -> None:
    code, said = batch(drawn, *words)
    assert code == 2 and told in said and len(said.splitlines()) == 1


def test_ray_is_imported_where_it_is_asked_for_alone() -> None:
    script = (
        "import sys, galago, galago.cli.app, galago.cluster.batch, galago.cluster.serving; print('ray' in sys.modules)"
    )
    assert ran(script) == "False\n"


@pytest.mark.slow
def test_an_address_where_nobody_answers(cluster: str, drawn: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    code, said = batch(drawn, "--out", tmp_path / "out", "--on", "ray")
    assert code == 2 and "no Ray cluster answers at 127.0.0.1:9" in said.splitlines()[-1]


@pytest.mark.slow
def test_more_cores_than_any_machine_has(cluster: str, drawn: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "galago.cli.app", "batch", drawn, "--out", tmp_path / "out", "--on", "ray"]
    done = subprocess.run([*map(str, words), "--threads", "64"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "a worker takes 64 cores" in done.stderr and ": 3 cores" in done.stderr


@pytest.fixture(scope="module")
def alone(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process says of the scenes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    code, said = batch(drawn, "--out", out)
    assert code == 0, said
    return rows(out)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["jsonl", "webdataset"])
def test_two_workers_say_what_one_process_says(
    cluster: str, drawn: Path, alone: dict[str, Any], tmp_path: Path, format: str
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    shards = ("--format", format, "--shard-rows", 7)
    on = ("--on", "ray", "--workers", 2)
    code, said = batch(drawn, bad, "--out", tmp_path / "out", *on, *shards)
    assert code == 1 and f"error: {bad} is not an image" in said and "41 images" in said
    # The same without Ray, which has nothing to do.
    code, said = batch(drawn, bad, "--out", tmp_path / "out")
    assert code == 1 and "nothing was left to do, 41 before, 1 with an error" in said
    if format == "jsonl":
        found = rows(tmp_path / "out")
        assert found.pop(str(bad))["error"]["code"] == "invalid_image"
        assert found == alone


@pytest.mark.slow
def test_from_a_machine_that_is_none_of_the_cluster(
    cluster: str, ports: tuple[int, int], drawn: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    # More workers than there is room for: the others are waited for by nobody.
    code, said = batch(drawn, "--out", tmp_path / "out", "--on", f"ray://127.0.0.1:{ports[1]}", "--workers", 4)
    assert code == 0, said
    assert rows(tmp_path / "out") == alone


@pytest.mark.slow
def test_urls_in_and_out(cluster: str, drawn: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    out = ("--out", f"local://{tmp_path}/out", "--shard-rows", 16)
    code, said = batch(f"local://{drawn}", *out, "--on", "ray", "--workers", "1..2")
    assert code == 0, said
    found = {name.removeprefix("local://"): one for name, one in rows(tmp_path / "out").items()}
    assert found == {name: {**one, "image": f"local://{name}"} for name, one in alone.items()}


class Held:
    """A picture that is a pipe: whoever reads it waits until it is given, or is ended."""

    def __init__(self, path: Path, picture: Path) -> None:
        os.mkfifo(path)
        self.path, self.picture = path, picture

    def end_reader(self, *first: int) -> None:
        """Wait until a worker reads it; end that, after these other processes."""
        file = os.open(self.path, os.O_WRONLY)  # waits for it
        [reader] = [int(folder.name) for folder in Path("/proc").iterdir() if self._is_read_by(folder)]
        ended = os.pidfd_open(reader)
        for process in (*first, reader):
            os.kill(process, signal.SIGKILL)
        assert select([ended], [], [], PATIENCE)[0]
        os.close(ended)
        os.close(file)

    def _is_read_by(self, process: Path) -> bool:
        try:
            if int(process.name) == os.getpid():
                return False
            return any(os.path.realpath(fd) == str(self.path.resolve()) for fd in (process / "fd").iterdir())
        except (OSError, ValueError):
            return False

    def give(self) -> None:
        self.path.write_bytes(self.picture.read_bytes())


@pytest.fixture
def held(drawn: Path, tmp_path: Path) -> Iterator[tuple[Path, Held]]:
    """A list of the scenes, with a pipe among them."""
    scenes = sorted(drawn.iterdir())
    pipe = Held(tmp_path / "held.png", scenes[0])
    names = [*map(str, scenes[:20]), str(pipe.path), *map(str, scenes[20:])]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    yield tmp_path / "list.txt", pipe


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(
    cluster: str, held: tuple[Path, Held], alone: dict[str, Any], tmp_path: Path
) -> None:
    names, pipe = held
    with ended(start(names, "--out", tmp_path / "out", "--on", "ray", "--workers", 2)) as process:
        pipe.end_reader()
        pipe.give()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    found = rows(tmp_path / "out")
    assert found.pop(str(pipe.path))["caption"] == alone[str(pipe.picture)]["caption"]
    assert found == alone


@pytest.mark.slow
def test_a_picture_that_ends_its_workers_is_a_row_with_an_error(
    cluster: str, held: tuple[Path, Held], alone: dict[str, Any], tmp_path: Path
) -> None:
    names, pipe = held
    with ended(start(names, "--out", tmp_path / "out", "--on", "ray", "--workers", 1)) as process:
        for _ in range(WHOLE + 1):
            pipe.end_reader()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, said
    found = rows(tmp_path / "out")
    assert "ended 3 times" in found.pop(str(pipe.path))["error"]["message"]
    assert found == alone


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(
    cluster: str, held: tuple[Path, Held], alone: dict[str, Any], tmp_path: Path
) -> None:
    names, pipe = held
    words = (names, "--out", tmp_path / "out", "--on", "ray", "--workers", 1, "--shard-rows", 5)
    with ended(start(*words)) as process:
        pipe.end_reader(process.pid)
        process.wait()
    with ended(start(*words)) as process:
        pipe.give()
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    found = rows(tmp_path / "out")
    del found[str(pipe.path)]
    assert found == alone


@pytest.mark.slow
def test_a_captioner_in_a_pipeline_of_ones_own(cluster: str, drawn: Path, alone: dict[str, Any]) -> None:
    script = """
        import json, sys
        from pathlib import Path
        import ray.data
        import galago.ray
        ray.init(log_to_driver=False)
        paths = [{"path": str(path), "number": n} for n, path in enumerate(sorted(Path(sys.argv[1]).iterdir()))]
        asked = dict(model="scenes", caption=["short"], detect=["circle"])
        made = ray.data.from_items([*paths, {"path": "none.png", "number": 99}]).map_batches(
            galago.ray.Captioner, fn_constructor_kwargs=asked, batch_size=16, concurrency=2, num_cpus=1)
        print(json.dumps(made.take_all()))
    """
    found = {one["path"]: one for one in json.loads(ran(script, drawn).splitlines()[-1])}
    assert "none.png" in found["none.png"]["error"] and found.pop("none.png")["caption"] is None
    for name, one in found.items():
        assert (one["caption"], one["error"]) == (alone[name]["caption"], None)
        assert json.loads(one["objects.circle"]) == alone[name]["objects"]["circle"]
    assert sorted(one["number"] for one in found.values()) == list(range(40))
