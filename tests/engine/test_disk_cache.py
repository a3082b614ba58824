"""Files give back exactly what was written, or nothing; the folder stays within its budget and may do anything."""

import logging
import os
import resource
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from galago.engine.disk_cache import DiskCache

NAMES = [letter * 64 for letter in "abcdef"]
KEYS = st.sampled_from(NAMES)
BUDGET = 1000


def used(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def file_of(folder: Path, key: str) -> Path:
    [found] = [file for file in folder.iterdir() if key in file.name]
    return found


def same(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and found.dtype == expected.dtype and torch.equal(found, expected)


@cache
def file_size(n: int) -> int:
    """Of the file of an embedding of n bytes."""
    with tempfile.TemporaryDirectory() as folder:
        DiskCache(Path(folder), 1_000_000).keep(NAMES[0], torch.zeros(1, n, dtype=torch.uint8))
        return used(Path(folder))


class Disk(RuleBasedStateMachine):
    """Against a dict in order of use, through restarts and everything that others may do to the folder."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.disk = DiskCache(self.folder, BUDGET)
        self.held: dict[str, Tensor] = {}
        self.bad: set[str] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(key=KEYS, n=st.sampled_from([1, 60, 120, 250, BUDGET]), fill=st.integers(0, 255))
    def keep(self, key: str, n: int, fill: int) -> None:
        made = torch.full((1, n), fill, dtype=torch.uint8)
        self.disk.keep(key, made)
        self.held.pop(key, None)
        self.bad.discard(key)
        if file_size(n) <= BUDGET:
            while sum(file_size(t.nbytes) for t in self.held.values()) + file_size(n) > BUDGET:
                oldest = next(iter(self.held))
                del self.held[oldest]
                self.bad.discard(oldest)
            self.held[key] = made

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        found = self.disk.get(key)
        if key in self.held and key not in self.bad:
            self.held[key] = expected = self.held.pop(key)
            assert same(found, expected)
        else:
            assert found is None
            self.held.pop(key, None)
            self.bad.discard(key)

    @rule()
    def restart(self) -> None:
        self.disk = DiskCache(self.folder, BUDGET)

    @rule()
    def clear(self) -> None:
        self.disk.clear()
        self.held.clear()
        self.bad.clear()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def another_process_deletes(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held)))
        file_of(self.folder, key).unlink()
        # The folder's time may not show it if it comes right after our own write: make it.
        os.utime(self.folder, ns=(0, time.time_ns()))
        del self.held[key]
        self.bad.discard(key)

    @precondition(lambda self: self.held.keys() - self.bad)
    @rule(data=st.data())
    def something_alters_a_file(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.held.keys() - self.bad)))
        file = file_of(self.folder, key)
        raw, stat = bytearray(file.read_bytes()), file.stat()
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1
        file.write_bytes(raw)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        self.bad.add(key)

    @invariant()
    def folder_holds_what_is_expected_within_budget(self) -> None:
        assert sorted(file.name[:64] for file in self.folder.iterdir()) == sorted(self.held)
        assert used(self.folder) == sum(file_size(t.nbytes) for t in self.held.values()) <= BUDGET


Disk.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestDisk = Disk.TestCase


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_type_shape_and_every_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        made = torch.randn(8, 6).to(dtype).T[1:4]
        DiskCache(tmp_path, 10_000).keep(NAMES[0], made)
        assert same(DiskCache(tmp_path, 10_000).get(NAMES[0]), made)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_is_a_miss_and_goes(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        DiskCache(folder, 10_000).keep(NAMES[0], torch.arange(9.0))
        file = file_of(folder, NAMES[0])
        raw = file.read_bytes()
        at = data.draw(st.integers(0, len(raw) - 1))
        flipped = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
        inserted = raw[:at] + data.draw(st.binary(min_size=1)) + raw[at:]
        file.write_bytes(data.draw(st.sampled_from([flipped, raw[:at], raw[at + 1 :], inserted])))
        disk = DiskCache(folder, 10_000)
        assert disk.get(NAMES[0]) is None and not file.exists()
        stats = disk.stats()
        assert (stats.dropped, stats.misses, stats.hits, stats.entries, stats.bytes) == (1, 1, 0, 0, 0)


def test_a_file_under_the_name_of_another_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disk = DiskCache(tmp_path, 10_000)
    disk.keep(NAMES[0], torch.arange(9.0))
    file = file_of(tmp_path, NAMES[0])
    file.rename(file.with_name(file.name.replace(NAMES[0], NAMES[1])))
    assert disk.get(NAMES[1]) is None and disk.get(NAMES[0]) is None
    assert disk.stats().dropped == 1 and disk.stats().misses == 2 and not list(tmp_path.iterdir())
    assert len(caplog.records) == 1 and NAMES[1] in caplog.text


def test_a_file_larger_than_the_budget_is_not_even_read(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 1000)
    disk.keep(NAMES[0], torch.arange(9.0))
    os.truncate(file_of(tmp_path, NAMES[0]), 1 << 40)  # sparse: takes no room, but would take this much memory
    assert disk.get(NAMES[0]) is None
    assert disk.stats().dropped == 1 and not list(tmp_path.iterdir())


def test_leaves_alone_what_is_not_its_own(tmp_path: Path) -> None:
    strange = tmp_path / "notes.txt"
    strange.write_text("x" * 5000)
    (tmp_path / "folder").mkdir()
    disk = DiskCache(tmp_path, 1000)
    disk.keep(NAMES[0], torch.arange(9.0))
    assert disk.get(NAMES[0]) is not None and disk.stats().entries == 1
    disk.clear()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", strange]


@pytest.mark.parametrize("key", ["", "a", "../" + "a" * 61, "A" * 64, "a" * 65, "a" * 64 + "\n"])
def test_refuses_keys_that_are_no_addresses(tmp_path: Path, key: str) -> None:
    disk = DiskCache(tmp_path, 1000)
    with pytest.raises(ValueError):
        disk.keep(key, torch.zeros(1))
    with pytest.raises(ValueError):
        disk.get(key)


def test_a_smaller_budget_after_a_restart_keeps_what_was_used_last(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 10 * file_size(50))
    for key in NAMES[:4]:
        disk.keep(key, torch.zeros(1, 50, dtype=torch.uint8))
    disk.get(NAMES[0])
    disk = DiskCache(tmp_path, 2 * file_size(50))
    assert disk.stats().entries == 2 and disk.stats().bytes == used(tmp_path) == 2 * file_size(50)
    assert [disk.get(key) is not None for key in NAMES[:4]] == [True, False, False, True]


def test_a_restart_knows_what_was_written_after_what_was_read(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 2 * file_size(50))
    for key in NAMES[:2]:
        disk.keep(key, torch.zeros(1, 50, dtype=torch.uint8))
        disk.get(NAMES[0])
    disk.keep(NAMES[2], torch.zeros(1, 50, dtype=torch.uint8))
    disk = DiskCache(tmp_path, file_size(50))
    assert [disk.get(key) is not None for key in NAMES[:3]] == [False, False, True]


def test_makes_room_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    replace = os.replace

    def watched(part: str, file: Path) -> None:
        seen.append(used(tmp_path))
        replace(part, file)

    monkeypatch.setattr(os, "replace", watched)
    disk = DiskCache(tmp_path, 3 * file_size(50))
    for key in NAMES + NAMES[-1:]:
        disk.keep(key, torch.zeros(1, 50, dtype=torch.uint8))
    assert len(seen) == 7 and max(seen) <= 3 * file_size(50)


def test_two_caches_of_one_folder_share_its_budget(tmp_path: Path) -> None:
    budget = 3 * file_size(50)
    one, other = DiskCache(tmp_path, budget), DiskCache(tmp_path, budget)
    for i, key in enumerate(NAMES):
        (one, other)[i % 2].keep(key, torch.full((1, 50), i, dtype=torch.uint8))
        os.utime(tmp_path, ns=(0, i))  # as if some time passed in between
        assert used(tmp_path) <= budget
    for reader in (one, other):
        for i, key in enumerate(NAMES):
            found = reader.get(key)
            assert found is None if i < 3 else same(found, torch.full((1, 50), i, dtype=torch.uint8))


def test_who_shares_the_folder_may_read_what_is_written(tmp_path: Path) -> None:
    """Files as private as tempfile makes them were damaged to other users, who then deleted them."""
    before = os.umask(0o022)
    try:
        DiskCache(tmp_path, 1_000_000).keep(NAMES[0], torch.ones(2))
    finally:
        os.umask(before)
    [file] = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o644


def test_unfinished_files_go_once_nobody_can_be_writing_them(tmp_path: Path) -> None:
    for name in ("old.part", "new.part"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / "old.part", (0, 0))
    DiskCache(tmp_path, 1000)
    assert [file.name for file in tmp_path.iterdir()] == ["new.part"]


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    disk = DiskCache(tmp_path / "file" / "cache", 1000)
    for key in NAMES[:3]:
        disk.keep(key, torch.zeros(3))
        assert disk.get(key) is None
    disk.clear()
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert disk.stats().misses == 3 and disk.stats().dropped == 0


def test_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path / "cache", 1000)
    disk.keep(NAMES[0], torch.zeros(3))
    shutil.rmtree(tmp_path / "cache")
    assert disk.get(NAMES[0]) is None
    disk.keep(NAMES[1], torch.zeros(3))
    assert disk.get(NAMES[1]) is not None


def test_a_full_disk_is_told_once_and_what_is_there_still_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = DiskCache(tmp_path, 10_000_000)
    disk.keep(NAMES[0], torch.arange(9.0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # any file that grows past this fails to
    try:
        for key in NAMES[1:4]:
            disk.keep(key, torch.zeros(1000, 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caplog.records) == 1
    assert same(disk.get(NAMES[0]), torch.arange(9.0))
    assert [file.name[:64] for file in tmp_path.iterdir()] == [NAMES[0]]
    assert disk.stats().entries == 1 and disk.stats().bytes == used(tmp_path)


def test_counts(tmp_path: Path) -> None:
    disk = DiskCache(tmp_path, 2 * file_size(50))
    for key in NAMES[:3]:
        disk.keep(key, torch.zeros(1, 50, dtype=torch.uint8))
    for key in NAMES[:3]:
        disk.get(key)
    stats = disk.stats()
    assert (stats.entries, stats.bytes, stats.budget) == (2, 2 * file_size(50), 2 * file_size(50))
    assert (stats.hits, stats.misses, stats.evictions, stats.dropped) == (2, 1, 1, 0)
