"""What a location can do, wherever it lies: read, list, publish whole, remove."""

import hashlib
import io
import json
import mmap
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar, Self

from ..errors import DataError

LOCK = ".lock"
"""File below an output while a command writes to it; see `storage.output`."""


def refuse_larger(size: int, at_most: int | None) -> None:
    """Raise a `DataError` for a file of more bytes than `at_most`."""
    if at_most is not None and size > at_most:
        raise DataError(f"{size} bytes; at most {at_most}")


def is_inner(name: str) -> bool:
    """Return whether a name is a plain relative path: joined to a folder it leads nowhere else."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


class Location(ABC):
    """A file or a folder, on a local disk or in an object store; it need not be there.

    `locate` makes one of a path or URL. Nothing is ever published half-written: a local file gets a
    temporary name, is flushed to the disk and renamed; an object is put in one request. A folder in
    an object store is a prefix. Requests to object stores are retried; see `storage.retry`.

    Raises
    ------
    StoreError
        By every method, if an object store does not answer, or denies access.
    """

    __slots__ = ("url",)
    remote: ClassVar[bool]
    """Whether it lies in an object store: several requests should be in flight."""

    def __init__(self, url: str) -> None:
        self.url = url
        """A local path, or a URL without a slash behind it."""

    def __str__(self) -> str:
        """Return the path, or the URL as it may be shown."""
        return self.url

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def __truediv__(self, name: str) -> Self:
        """Return a location below this folder.

        Raises
        ------
        DataError
            If the name is not a plain relative path, and may lead out of it.
        """
        self._refuse_outer([name])
        return self._joined(name)

    @abstractmethod
    def _joined(self, name: str) -> Self: ...

    @property
    @abstractmethod
    def parent(self) -> Self:
        """The folder that it lies in."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rstrip("/").rpartition("/")[2]

    # ---- what is there

    @abstractmethod
    def exists(self) -> bool:
        """Return whether a file or folder is there."""

    @abstractmethod
    def is_dir(self) -> bool:
        """Return whether it is a folder (in an object store: a prefix that holds something)."""

    @abstractmethod
    def is_file(self) -> bool:
        """Return whether it is a file with bytes of its own: no folder, pipe or device."""

    @abstractmethod
    def list_files(self) -> dict[str, int]:
        """Return the files directly in a folder, name → size [bytes]; none if it is absent."""

    @abstractmethod
    def list_folders(self) -> list[str]:
        """Return the names of the folders directly in a folder; none if it is absent."""

    @abstractmethod
    def walk_files(self, *, dangling: bool = False) -> list[str]:
        """Return the paths of all files below a folder, relative to it, with slashes, sorted.

        Links to folders are followed, each folder is entered once; what is neither a file nor a
        link to one (pipes, devices) is left out.

        Parameters
        ----------
        dangling
            Links that lead nowhere are given, too.
        """

    @abstractmethod
    def glob_files(self, pattern: str) -> list[str]:
        """Return the paths of the files below a folder that match, relative to it, sorted.

        Parameters
        ----------
        pattern
            With ``*``, ``?`` and ``[…]`` within a name, and ``**`` for any number of folders. A
            link that leads nowhere is a file.
        """

    @abstractmethod
    def present(self, names: Iterable[str]) -> set[str]:
        """Return which of some relative paths are there: a link counts, wherever it leads."""

    # ---- reading

    @abstractmethod
    def read_bytes(self, at_most: int | None = None) -> bytes:
        """Return a whole file.

        Parameters
        ----------
        at_most
            Bytes that it may have; a larger one is not read.

        Raises
        ------
        ConfigError
            If there is no such file.
        DataError
            If it is larger.
        """

    def read_json(self) -> Any:
        """Return the value of a JSON file that anybody may have written.

        Raises
        ------
        ConfigError
            If there is no such file.
        DataError
            If it is not valid JSON, or nested too deeply.
        """
        try:
            return json.loads(self.read_bytes())
        except RecursionError:
            raise DataError(f"{self}: is not valid JSON: nested too deeply") from None
        except ValueError as error:
            raise DataError(f"{self}: is not valid JSON: {error}") from None

    @abstractmethod
    def read_range(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` [bytes]; fewer only where the file ends."""

    @abstractmethod
    def size(self) -> int:
        """Return the size of a file [bytes].

        Raises
        ------
        ConfigError
            If there is no such file.
        """

    @abstractmethod
    def open_seekable(self) -> io.BufferedIOBase:
        """Open a file for reading at any place, as archives need it."""

    @abstractmethod
    def mapped(self) -> AbstractContextManager[bytes | mmap.mmap]:
        """Give a whole file, as bytes to be sliced; a local one is mapped, not held in memory."""

    def sha256(self) -> str:
        """Return the SHA-256 of a file, in hex; it is never held in memory as a whole."""
        with self.open_seekable() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @abstractmethod
    def fetched(self, leave_out: Iterable[str] = ()) -> AbstractContextManager[Path]:
        """Give a local folder with the files of this one: itself, or a copy that is removed.

        Parameters
        ----------
        leave_out
            Names of files that are not copied.
        """

    # ---- writing

    @abstractmethod
    def publish_bytes(self, content: bytes) -> None:
        """Write a file whole, or not at all; its folder is made where it is missing."""

    @abstractmethod
    def publish_file(self, local: Path) -> None:
        """Move a finished local file here, whole, or not at all.

        For a local location it must lie on the same file system (see `scratch_folder`).
        """

    @abstractmethod
    def publish_folder(self, local: Path, last: str, aside: Path | None = None) -> None:
        """Move a finished local folder here, in place of one that bears the name.

        Parameters
        ----------
        local
            For a local location, on the same file system.
        last
            File that is written last in an object store. There, files of the same names are
            replaced one by one, the largest first, and others are removed.
        aside
            Where a local folder that bears the name is put; it goes back if this fails.
        """

    @abstractmethod
    def scratch_folder(self) -> AbstractContextManager[Path]:
        """Give a private local folder from which files can be published below this one."""

    @abstractmethod
    def remove_half_written(self, below: str = "", pid: int | None = None) -> None:
        """Remove what killed processes left half-written directly in this folder, or one below it.

        Spared are folders that a process has locked, and what lies behind links. In an object store
        nothing is half-written.

        Parameters
        ----------
        below
            Relative path of the folder.
        pid
            The process that is dead; None for all, where nobody else can be at work.
        """

    @abstractmethod
    def make_folder(self) -> None:
        """Create a local folder and its parents; object stores need none.

        Raises
        ------
        ConfigError
            If something else bears the name.
        FileNotFoundError
            If a folder of the path vanishes meanwhile.
        """

    @abstractmethod
    def free_space(self) -> int | None:
        """Return the free bytes where a folder is, or would be; None for an object store."""

    @abstractmethod
    def remove(self) -> None:
        """Remove a file or a folder with all it holds; what is not there is no error."""

    @abstractmethod
    def remove_if_empty(self) -> None:
        """Remove a local folder that holds nothing; there are no empty ones in an object store."""

    @abstractmethod
    def remove_files(self, names: Iterable[str]) -> None:
        """Remove files below a folder, and local folders that are empty without them.

        What lies below a linked folder stays: it may be somebody else's.

        Parameters
        ----------
        names
            Relative paths; what is not there is no error.

        Raises
        ------
        DataError
            If a name leads out of the folder; nothing is removed then.
        """

    def _refuse_outer(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        if outer := [name for name in names if not is_inner(name)]:
            raise DataError(f"{self}: {outer[0]!r} leads out of it")
        return names
