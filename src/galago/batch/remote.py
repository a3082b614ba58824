"""Files of other file systems, by URL: s3://, gs:// and whatever else pyarrow or fsspec reads."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from galago.errors import InvalidImage, InvalidRequest, shortened

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?]*)([^?]*)(\?.*)?", re.IGNORECASE | re.DOTALL)
FETCHED = ("http", "https")
"""Schemes of what is fetched as a page is: one file each, never a folder."""


def is_remote(source: str) -> bool:
    """Whether this is a URL of a file system."""
    found = _URL.fullmatch(source)
    return found is not None and found[1].lower() not in FETCHED


@dataclass(frozen=True)
class RemotePath:
    """A file or folder by its URL, whose path is taken as it is written; a query after it is for the file system."""

    url: str

    def _part(self, number: int) -> str:
        found = _URL.fullmatch(self.url)
        assert found is not None
        return found[number] or ""

    @property
    def address(self) -> str:
        """Without the query, which may hold a password."""
        return f"{self._part(1)}://{self._part(2)}{self._part(3)}"

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        return self._part(3).rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> "RemotePath":
        return RemotePath(self.address.rpartition("/")[0] + self._part(4))

    def __truediv__(self, inside: str) -> "RemotePath":
        return RemotePath(f"{self.address.rstrip('/')}/{inside}{self._part(4)}")

    def _found(self) -> tuple[Any, str]:
        """The file system, and what it calls this. Raises InvalidRequest for one that is not known."""
        system, root = _file_system(f"{self._part(1)}://{self._part(2)}/{self._part(4)}", self.address)
        return system, f"{root.rstrip('/')}/{self._part(3).strip('/')}".rstrip("/") or "/"

    def kind(self) -> str | None:
        """ "file", "folder" or None. Raises InvalidRequest where that cannot be told."""
        from pyarrow.fs import FileType

        system, path = self._found()
        info = self._do(lambda: system.get_file_info(path))
        return {FileType.File: "file", FileType.Directory: "folder"}.get(info.type)

    def exists(self) -> bool:
        return self.kind() is not None

    def files(self, recursive: bool = True) -> list["RemotePath"]:
        """The files in a folder, by their names; none where there is no folder. Raises InvalidRequest."""
        from pyarrow.fs import FileSelector, FileType

        system, path = self._found()
        selector = FileSelector(path, allow_not_found=True, recursive=recursive)
        found = self._do(lambda: system.get_file_info(selector))
        inside = sorted(info.path[len(path) :].strip("/") for info in found if info.type == FileType.File)
        return [self / name for name in inside]

    def open(self) -> Any:
        """A file that is open for reading, at any place of it. Raises OSError."""
        system, path = self._found()
        return system.open_input_file(path)

    def __call__(self) -> bytes:
        """All of a file. Raises InvalidImage."""
        try:
            with self.open() as file:
                data: bytes = file.read()
        except (OSError, ValueError) as error:
            raise InvalidImage(f"cannot read {shortened(self.address, 200)}: {_why(error)}") from error
        except InvalidRequest as error:
            raise InvalidImage(str(error)) from error
        return data

    def send(self, file: Path) -> None:
        """Write this with what is in a file. Who reads it finds all or nothing, where the file system can do that.

        Raises InvalidRequest.
        """
        system, path = self._found()

        def write() -> None:
            system.create_dir(path.rpartition("/")[0], recursive=True)
            with file.open("rb") as source, system.open_output_stream(path) as out:
                while piece := source.read(1 << 20):
                    out.write(piece)

        self._do(write, "write", "out")

    def _do(self, work: Callable[[], Any], what: str = "read", param: str = "inputs") -> Any:
        try:
            return work()
        except (OSError, ValueError, ImportError) as error:
            raise InvalidRequest(f"cannot {what} {shortened(self.address, 200)}: {_why(error)}", param) from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@cache
def _file_system(root: str, address: str) -> tuple[Any, str]:
    """The file system of a URL without its path, and what it calls that."""
    try:
        from pyarrow import ArrowInvalid, fs
    except ImportError as error:
        raise InvalidRequest(f"to read {address} takes pyarrow: pip install 'galago[parquet]'", "inputs") from error
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(root)
        return found
    except ArrowInvalid:
        pass  # of a kind that it does not know
    except OSError as error:
        raise InvalidRequest(f"cannot reach {address}: {_why(error)}", "inputs") from error
    import fsspec

    try:
        other, path = fsspec.core.url_to_fs(root)
    except (ValueError, ImportError, OSError) as error:
        raise InvalidRequest(f"no file system is known for {address}: {error}", "inputs") from error
    return fs.PyFileSystem(fs.FSSpecHandler(other)), path


def read_remote_folder(folder: RemotePath, wanted: Callable[[str], bool]) -> Iterator[RemotePath]:
    """The files in a folder and those below it whose path in it is wanted; hidden ones are left out."""
    head = len(folder.address.rstrip("/")) + 1
    for file in folder.files():
        inside = file.address[head:]
        if not any(part.startswith(".") for part in inside.split("/")) and wanted(inside):
            yield file
