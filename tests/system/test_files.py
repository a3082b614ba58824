"""Files appear whole or not at all, each writer has a file of its own, and a lock's holder may die."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from galago.system.files import atomic_write, lock_file

HOLD = """
import sys
from pathlib import Path
from galago.system.files import lock_file
with lock_file(Path(sys.argv[1]), lambda who: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_old_is_there_until_the_new_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with atomic_write(file) as part:
        part.write_text("ne")
        assert file.read_text() == "old"
        part.write_text("new")
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_what_does_not_come_to_its_end_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(error), atomic_write(file) as part:
        part.write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_two_writers_of_one_name_do_not_meet(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with atomic_write(file) as one, atomic_write(file) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one"  # which ends last


def test_a_link_is_followed_and_permissions_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "a.txt", tmp_path / "b.txt"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    with atomic_write(link) as part:
        part.write_text("new")
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640


def test_a_new_file_is_as_private_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a") as part:
            part.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_file_that_may_not_be_written_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("mine")
    file.chmod(0o444)
    if os.access(file, os.W_OK):
        pytest.skip("needs a user other than root, who may write everything")
    with pytest.raises(PermissionError), atomic_write(file):
        pass
    assert file.read_text() == "mine"


def test_what_is_no_file_is_written_in_place(tmp_path: Path) -> None:
    with atomic_write(Path("/dev/null")) as part:
        assert part == Path("/dev/null")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with atomic_write(pipe) as part:
        assert part == pipe
    assert os.listdir(tmp_path) == ["pipe"]


def test_standard_output_that_is_a_file_is_written_in_place(tmp_path: Path) -> None:
    script = "from pathlib import Path; from galago.system.files import atomic_write\n"
    script += "with atomic_write(Path('/dev/stdout')) as part: part.open('a').write('said')"
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", script], stdout=out, check=True, timeout=60)
    assert (tmp_path / "out").read_text() == "said"


def test_a_long_name_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("ä" * 127)
    with atomic_write(file) as part:
        part.write_text("x")
    assert file.read_text() == "x"


def test_a_lock_waits_says_for_whom_and_a_killed_holder_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    told: list[str] = []

    def waiting(who: str) -> None:
        told.append(who)
        holder.kill()

    with lock_file(lock, waiting) as held:
        assert held
    holder.communicate()
    assert len(told) == 1 and f"process {holder.pid} on " in told[0]


def test_threads_hold_a_lock_in_turn(tmp_path: Path) -> None:
    inside, most, guard = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with lock_file(tmp_path / "lock", lambda who: None):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1


def test_waiting_for_a_lock_can_be_interrupted(tmp_path: Path) -> None:
    lock = tmp_path / "lock"

    def stop(who: str) -> None:
        raise KeyboardInterrupt

    with lock_file(lock, lambda who: None), pytest.raises(KeyboardInterrupt), lock_file(lock, stop):
        pass


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def none(*args: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with lock_file(tmp_path / "lock", lambda who: None) as held:
        assert not held
    assert "cannot be locked (No locks available)" in caplog.text
