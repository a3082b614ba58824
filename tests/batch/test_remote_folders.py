"""Inputs and outputs by URL, of a file system that fsspec alone knows: as s3:// is known to pyarrow."""

import json
from pathlib import Path
from typing import Any

import pytest

from galago.batch.inputs import InputOptions, read_inputs
from galago.batch.outputs import open_output
from galago.batch.remote import RemotePath, is_remote
from galago.errors import InvalidImage, InvalidRequest

pytest.importorskip("pyarrow", reason="needs pyarrow (pip install 'galago[parquet]')")


def row(number: int, **more: Any) -> dict[str, Any]:
    return {"image": f"{number}.png", "model": "m", "caption": f"it is {number}", **more}


FAILED = {"error": {"code": "invalid_image", "message": "no"}}


def names(url: str, **options: Any) -> list[str]:
    return [one.name for one in read_inputs([url], InputOptions(**options))]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("b.png", "a b/c%20.jpg", "a b/.hidden/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_a_folder_has_its_images_by_name_and_each_is_read_as_it_is_written(pictures: Path) -> None:
    root = f"local://{pictures}"
    rows = list(read_inputs([root], InputOptions()))
    assert [one.name for one in rows] == [f"{root}/a b/c%20.jpg", f"{root}/b.png"]
    assert [one.source() for one in rows] == [b"a b/c%20.jpg", b"b.png"]  # type: ignore[operator]
    assert names(root, globs=("a b/*", "*.txt")) == [f"{root}/a b/c%20.jpg", f"{root}/notes.txt"]
    assert names(f"{root}/b.png") == [f"{root}/b.png"]


def test_a_parquet_file_names_images_beside_it_and_elsewhere(pictures: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = {"path": ["b.png", f"local://{pictures}/notes.txt", "https://example.org/x.png"], "number": [1, 2, 3]}
    pyarrow.parquet.write_table(pyarrow.table(table), pictures / "list.parquet")
    root = f"local://{pictures}"
    rows = list(read_inputs([f"{root}/list.parquet"], InputOptions()))
    assert [one.name for one in rows] == [f"{root}/b.png", f"{root}/notes.txt", "https://example.org/x.png"]
    assert [one.columns for one in rows] == [{"number": 1}, {"number": 2}, {"number": 3}]
    assert [one.source() for one in rows[:2]] == [b"b.png", b"notes.txt"]  # type: ignore[operator]


def test_what_is_not_there_or_not_known_is_told_in_a_line(pictures: Path) -> None:
    with pytest.raises(InvalidRequest, match="no file or folder local://"):
        read_inputs([f"local://{pictures}/none"], InputOptions())
    with pytest.raises(InvalidRequest, match="no file system is known for strange://x/y"):
        read_inputs(["strange://x/y?secret=1"], InputOptions())
    with pytest.raises(InvalidImage, match=r"cannot read local://.*none.png"):
        RemotePath(f"local://{pictures}/none.png")()
    (pictures / "list.csv").write_text("path\nb.png\n")
    with pytest.raises(InvalidRequest, match="only folders, images"):
        read_inputs([f"local://{pictures}/list.csv"], InputOptions())
    with pytest.raises(InvalidRequest, match="one file"):
        open_output(RemotePath(f"local://{pictures}/out.jsonl"))


def test_pages_are_fetched_and_paths_are_none() -> None:
    known = {
        "s3://b/x": True,
        "gs://b/x": True,
        "https://e.org/x": False,
        "a/b": False,
        "data:image/png;base64,": False,
    }
    assert {url: is_remote(url) for url in known} == known


@pytest.mark.parametrize("format", ["jsonl", "csv", "parquet", "webdataset"])
def test_shards_are_sent_when_they_are_whole_and_another_run_goes_on(tmp_path: Path, format: str) -> None:
    folder = RemotePath(f"local://{tmp_path}/out")
    first = open_output(folder, format, 2)
    for number in range(5):
        first.add(row(number, **(FAILED if number == 1 else {})), b"picture")
    # A kill here would lose the rows since the last shard: those of WebDataset have no errors in them.
    kept = [one["image"] for one in open_output(folder)]
    assert sorted(kept) == [f"{number}.png" for number in range(5 if format == "webdataset" else 4)]
    first.close()
    assert sorted(one["image"] for one in open_output(folder)) == [f"{number}.png" for number in range(5)]

    then = open_output(folder)
    then.forget_errors()
    assert [one["image"] for one in then if "error" in one] == []
    then.add(row(1), b"picture")
    then.finish()
    then.close()
    found = list(open_output(folder))
    assert sorted(one["image"] for one in found) == [f"{number}.png" for number in range(5)]
    assert all("error" not in one for one in found)
    parts = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name.startswith("part-"))
    assert [part[:10] for part in parts] == [f"part-0000{number}" for number in range(len(parts))]


def test_shards_of_another_format_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part-00000.jsonl").write_text(json.dumps(row(1)) + "\n")
    with pytest.raises(InvalidRequest, match="shards of jsonl, not csv"):
        open_output(RemotePath(f"local://{tmp_path}"), "csv")
