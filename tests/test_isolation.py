"""No test reaches into a person's own folders."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

from isolation import HOME, KEPT, PREFIXES, noting

BAD = """
import os, pathlib, subprocess, sys
import pytest

PERSON = pathlib.Path(os.environ["PERSON"])

@pytest.fixture(scope="module")
def made():
    (PERSON / "made").mkdir()

def test_removes():
    command = [sys.executable, "-m", "galago.cli.app", "models", "remove", "moondream2"]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 2 and b"moondream2 is not installed" in done.stderr

def test_writes():
    (PERSON / "written").write_text("")

def test_forgets_home():
    subprocess.run([sys.executable, "-c", ""], env={"PATH": os.environ["PATH"]})

def test_older_fixture(made):
    pass

def test_last():
    assert "GALAGO_API_KEYS" not in os.environ
"""
REAL = Path(pwd.getpwuid(os.getuid()).pw_dir)


def test_each_change_outside_is_noted() -> None:
    gone = REAL / "no-such-folder-of-galago"  # so that nothing comes of it
    with noting() as noted:
        for change in (
            lambda: (gone / "a").write_text(""), lambda: (gone / "a").unlink(), lambda: (gone / "a").mkdir(),
            lambda: (gone / "a").rename(HOME / "a"), lambda: os.open(gone / "a", os.O_CREAT), lambda: gone.rmdir(),
        ):  # fmt: skip
            try:
                change()
            except FileNotFoundError:
                continue
            raise AssertionError("it was there")
        (HOME / "b").write_text("")
        (HOME / "b").read_text()
        (HOME / "b").unlink()
    assert [line.split()[0] for line in noted] == ["open", "os.remove", "os.mkdir", "os.rename", "open", "os.rmdir"]


def test_a_process_that_a_test_starts_has_the_tests_own_caches(own_home: Path) -> None:
    code = """if True:
        import json, pathlib, tempfile
        from huggingface_hub import constants
        from galago.store.hub import cache_folder
        folders = pathlib.Path.home(), constants.HF_HUB_CACHE, cache_folder(), tempfile.gettempdir()
        print(json.dumps([str(folder) for folder in folders]))
    """
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert found[0] == str(own_home) and all(Path(folder).is_relative_to(own_home) for folder in found[1:3])
    assert Path(found[3]).is_relative_to(HOME)


def test_nothing_of_a_persons_environment_is_left() -> None:
    left = {name for name in os.environ if name.startswith(PREFIXES)} - KEPT
    assert left == {"XDG_CACHE_HOME", "HF_ENDPOINT"}


def test_what_older_fixtures_and_other_homes_do_is_noted_too(tmp_path: Path) -> None:
    """The suite's own conftest over tests of a person with a home, which is as it was afterwards."""
    person, suite = tmp_path / "person", tmp_path / "suite"
    kept = person / ".cache" / "galago" / "packed" / "moondream2-int8-0123456789abcdef.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"3.2 GB")
    suite.mkdir()
    (suite / "test_bad.py").write_text(BAD)
    here = Path(__file__).parent
    environment = {**os.environ, "HOME": str(person), "GALAGO_API_KEYS": "theirs"}
    environment |= dict.fromkeys(("TMPDIR", "TESTS_TMPDIR"), str(tmp_path))
    environment |= {"XDG_CACHE_HOME": str(person / ".cache"), "PYTHONPATH": f"{here}{os.pathsep}{here / 'support'}"}
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "conftest", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, str(suite)], capture_output=True, text=True, env={**environment, "PERSON": str(person)}
    )
    said = [line for line in ran.stdout.splitlines() if line.startswith(("ERROR ", "FAILED "))]
    assert [line.split("::")[1].split(" ")[0] for line in said] == ["test_writes", "test_forgets_home", "test_last"], (
        ran
    )
    assert "5 passed" in ran.stdout and "mkdir" in ran.stdout
    assert kept.read_bytes() == b"3.2 GB" and {f.name for f in person.iterdir()} == {".cache", "written", "made"}
