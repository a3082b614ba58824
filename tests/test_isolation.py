"""No test reaches into a person's own folders."""

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

from isolation import HOME, KEPT, PREFIXES, noting

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
        from galago.packing import cache_folder
        folders = pathlib.Path.home(), constants.HF_HUB_CACHE, cache_folder(), tempfile.gettempdir()
        print(json.dumps([str(folder) for folder in folders]))
    """
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert found[0] == str(own_home) and all(Path(folder).is_relative_to(own_home) for folder in found[1:3])
    assert Path(found[3]).is_relative_to(HOME)


def test_nothing_of_a_persons_environment_is_left() -> None:
    left = {name for name in os.environ if name.startswith(PREFIXES)} - KEPT
    assert left == {"XDG_CACHE_HOME", "HF_ENDPOINT"}
