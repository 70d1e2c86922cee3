"""Reading and publishing on local disks and object stores, through fsspec.

Nothing is ever published half-written: a local file gets a temporary name, is fsynced and renamed;
an object is put in one request. Folders on object stores are just prefixes.
"""

import contextlib
import errno
import fcntl
import glob
import hashlib
import io
import json
import mmap
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import objectstore
from .errors import ConfigError, DataError
from .objectstore import filesystem, patiently, refuse_larger

_TEMPORARY = ".tmp-"  # how names of half-written files begin; their process follows


def is_remote(url: str) -> bool:
    """Tell whether `url` names anything but a local path."""
    return "://" in url and not url.startswith("file://")


def join(url: str, *parts: str) -> str:
    """Join path parts with the separator of `url`'s store."""
    if is_remote(url):
        return "/".join((url.rstrip("/"), *parts))
    return os.path.join(_local(url), *parts)


def is_inner(name: str) -> bool:
    """Tell whether a name is a plain relative path: joined to a folder it leads nowhere else."""
    return "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


def exists(url: str) -> bool:
    """Tell whether a file or folder is there."""
    if not is_remote(url):
        return os.path.exists(_local(url))
    fs, path = filesystem(url)
    return patiently(url, lambda: bool(fs.exists(path)))


def is_dir(url: str) -> bool:
    """Tell whether `url` is a folder (on an object store: a prefix that holds something)."""
    if not is_remote(url):
        return os.path.isdir(_local(url))
    fs, path = filesystem(url)
    return patiently(url, lambda: bool(fs.isdir(path)))


def is_file(url: str) -> bool:
    """Tell whether `url` is a file with bytes of its own: no folder, pipe or device."""
    if not is_remote(url):
        return os.path.isfile(_local(url))
    fs, path = filesystem(url)
    return patiently(url, lambda: bool(fs.isfile(path)))


def list_files(url: str) -> dict[str, int]:
    """Return the files directly in a folder, name → size [bytes]; an absent folder is empty."""
    if not is_remote(url):
        folder = Path(_local(url))
        if not folder.is_dir():
            return {}
        return {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        listed = patiently(url, lambda: fs.ls(path, detail=True))
        return {Path(e["name"]).name: int(e["size"]) for e in listed if e["type"] == "file"}
    return {}


def walk_files(url: str, *, dangling: bool = False) -> list[str]:
    """Return the paths of all files below a folder, relative to it, with slashes, sorted.

    Links to folders are followed, each folder is entered once; what is neither a file nor a link to
    one (pipes, devices) is left out.

    Parameters
    ----------
    dangling
        Links that lead nowhere are given, too.
    """
    if not is_remote(url):
        return sorted(_walk(_local(url), "", set(), dangling))
    fs, root_path = filesystem(url)
    found = patiently(url, lambda: fs.find(root_path))
    return sorted(path.removeprefix(root_path).lstrip("/") for path in found)


def _walk(folder: str, prefix: str, entered: set[tuple[int, int]], dangling: bool) -> Iterator[str]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except PermissionError:
                raise
            except OSError:  # a link that leads in a circle, or through a file
                is_folder = is_file = False
            if is_folder:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", entered, dangling)
            elif is_file or (dangling and _is_named_file(entry.path)):
                yield prefix + entry.name


def present(url: str, names: Iterable[str]) -> set[str]:
    """Return which of some relative paths are there: a link counts, wherever it leads."""
    if is_remote(url):
        return set(walk_files(url)).intersection(names)
    return {name for name in names if os.path.lexists(join(url, name))}


def glob_files(url: str, pattern: str) -> list[str]:
    """Return the paths of the files below a folder that match, relative to it, sorted.

    Parameters
    ----------
    pattern
        With ``*``, ``?`` and ``[…]`` within a name, and ``**`` for any number of folders. A link
        that leads nowhere is a file.
    """
    if not is_remote(url):
        root = _local(url)
        found = glob.glob(pattern, root_dir=root, recursive=True)
        return sorted(path for path in found if _is_named_file(os.path.join(root, path)))
    fs, root_path = filesystem(url)
    root_path = root_path.rstrip("/")
    paths = patiently(url, lambda: fs.glob(f"{root_path}/{pattern}"))
    return sorted(path.removeprefix(root_path).lstrip("/") for path in paths)


def _is_named_file(path: str) -> bool:
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def list_folders(url: str) -> list[str]:
    """Return the names of the folders directly in a folder; an absent folder has none."""
    if not is_remote(url):
        folder = Path(_local(url))
        return [entry.name for entry in folder.iterdir() if entry.is_dir()] if is_dir(url) else []
    fs, path = filesystem(url)
    with contextlib.suppress(FileNotFoundError):
        listed = patiently(url, lambda: fs.ls(path, detail=True))
        return [Path(e["name"]).name for e in listed if e["type"] == "directory"]
    return []


def fetch_folder(url: str) -> Path:
    """Return a local folder with the files of `url`: itself, or a temporary copy."""
    if not is_remote(url):
        return Path(_local(url))
    local = Path(tempfile.mkdtemp(prefix="cocoseg-"))
    try:
        for name in list_files(url):
            (local / name).write_bytes(read_bytes(join(url, name)))
    except BaseException:
        shutil.rmtree(local, ignore_errors=True)
        raise
    return local


@contextlib.contextmanager
def fetched_folder(url: str) -> Iterator[Path]:
    """Give a local folder with the files of `url`; a temporary copy is gone afterwards."""
    local = fetch_folder(url)
    try:
        yield local
    finally:
        if is_remote(url):
            shutil.rmtree(local, ignore_errors=True)


def read_bytes(url: str, at_most: int | None = None) -> bytes:
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
    try:
        if not is_remote(url):
            with open(_local(url), "rb", buffering=0) as file:
                refuse_larger(os.fstat(file.fileno()).st_size, at_most)
                return file.read()
        return objectstore.read_object(url, at_most)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{url}: no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{url}: is a folder, expected a file") from None


def read_json(url: str) -> Any:
    """Return the value of a JSON file that anybody may have written.

    Raises
    ------
    ConfigError
        If there is no such file.
    DataError
        If it is not valid JSON, or nested too deeply.
    """
    try:
        return json.loads(read_bytes(url))
    except RecursionError:
        raise DataError(f"{url}: is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{url}: is not valid JSON: {error}") from None


def read_range(url: str, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset` [bytes]; fewer only where the file ends."""
    if not is_remote(url):
        with open(_local(url), "rb", buffering=0) as file:  # 15 us; a JPEG decodes in 1,500
            return os.pread(file.fileno(), length, offset)
    return objectstore.read_range(url, offset, length)


def file_size(url: str) -> int:
    """Return the size of a file [bytes].

    Raises
    ------
    ConfigError
        If there is no such file.
    """
    try:
        if not is_remote(url):
            return os.stat(_local(url)).st_size
        fs, path = filesystem(url)
        return patiently(url, lambda: int(fs.size(path)))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{url}: no such file") from None


def stamps(urls: Sequence[str]) -> list[str]:
    """Return for each file what changes when its content does, as far as size and date tell.

    All of them are local, or none. Of a file that is not there the stamp is empty.
    """
    if urls and is_remote(urls[0]):
        return objectstore.stamps(urls)
    return [_stamp(_local(url)) for url in urls]


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size}-{status.st_mtime_ns}"


def open_seekable(url: str) -> io.BufferedIOBase:
    """Open a file for reading at any place, as archives need it."""
    if not is_remote(url):
        return open(_local(url), "rb")
    fs, path = filesystem(url)
    file: io.BufferedIOBase = fs.open(path, "rb")
    return file


@contextlib.contextmanager
def mapped(url: str) -> Iterator[bytes | mmap.mmap]:
    """Give a whole file, as bytes to be sliced; a local one is mapped, not held in memory."""
    if is_remote(url) or not file_size(url):
        yield read_bytes(url)
        return
    with open_seekable(url) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        yield view


def sha256(url: str) -> str:
    """Return the SHA-256 of a file, in hex; it is never held in memory as a whole."""
    with open_seekable(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_space(url: str) -> int | None:
    """Return the free bytes where a folder is, or would be; None for an object store."""
    if is_remote(url):
        return None
    folder = Path(_local(url)).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def publish_bytes(url: str, content: bytes) -> None:
    """Write a file whole, or not at all."""
    if is_remote(url):
        objectstore.write_object(url, content)
        return
    with _temporary_sibling(Path(_local(url))) as temporary:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, _local(url))
    sync_folder(Path(_local(url)).parent)


def publish_file(local: Path, url: str) -> None:
    """Move a finished local file to `url`, whole, or not at all.

    On a local disk, `local` must lie on the same file system (see `scratch_folder`).
    """
    if is_remote(url):
        objectstore.write_object(url, local)
        local.unlink()
        return
    sync_file(local)
    os.replace(local, _local(url))
    sync_folder(Path(_local(url)).parent)


def publish_folder(local: Path, url: str, last: str) -> None:
    """Move a finished local folder to `url`; file `last` arrives after all the others."""
    files = sorted(path for path in local.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == last)
    if is_remote(url):
        for file in files:
            objectstore.write_object(join(url, file.relative_to(local).as_posix()), file)
        shutil.rmtree(local)
        return
    for file in files:
        sync_file(file)
    sync_folder(local)
    os.replace(local, _local(url))
    sync_folder(Path(_local(url)).parent)


def replace_folder(local: Path, url: str, last: str, aside: str) -> None:
    """Do as `publish_folder` where the name may be taken: what bears it is there until then.

    On an object store it is removed first.

    Parameters
    ----------
    aside
        Where it is put on a local disk, on the same file system; it goes back if this fails.
    """
    if is_remote(url):
        remove(url)
        publish_folder(local, url, last)
        return
    target = _local(url)
    if os.path.lexists(target):
        os.replace(target, aside)
    try:
        publish_folder(local, target, last)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.replace(aside, target)
        raise


@contextlib.contextmanager
def scratch_folder(url: str) -> Iterator[Path]:
    """Give a private local folder from which files can be published under the folder `url`."""
    make_folder(url)
    folder, prefix = _scratch(url, os.getpid())
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_scratch(name: str) -> bool:
    """Tell whether a folder's name is one that `scratch_folder` gives."""
    return os.path.basename(name).startswith(_TEMPORARY)


def is_half_written(name: str) -> bool:
    """Tell whether a file's name is one that files have until they are whole."""
    return re.fullmatch(rf"{re.escape(_TEMPORARY)}\d+-\d+", os.path.basename(name)) is not None


def remove_half_written(url: str) -> None:
    """Remove the files directly in a local folder that killed processes left half-written."""
    for name in filter(is_half_written, list_files(url)):
        remove(join(url, name))


def remove_scratch(url: str, pid: int | None = None) -> None:
    """Remove what killed processes left half-written in the folder `url`.

    Parameters
    ----------
    pid
        The process that is dead; None for all, where nobody else can be at work.
    """
    folder, prefix = _scratch(url, pid)
    if pid is None and is_remote(url):
        return  # other hosts may be at work there; here, the system clears its temporary folder
    for path in Path(folder).glob(f"{prefix}*") if os.path.isdir(folder) else ():
        remove(str(path))


def _scratch(url: str, pid: int | None) -> tuple[str, str]:
    """Return where half-written files for `url` lie, and how their names begin."""
    whose = _TEMPORARY if pid is None else f"{_TEMPORARY}{pid}-"
    if is_remote(url):
        return tempfile.gettempdir(), f"{whose}{zlib.crc32(url.encode()):08x}-"
    return _local(url), whose


@contextlib.contextmanager
def exclusive(path: str) -> Iterator[bool]:
    """Hold a local lock file, which one process at a time can have.

    The folder of the file is made where it is missing. The file stays, unless the owner removes it
    last of all; a killed process leaves it, but not the lock.

    Yields
    ------
    bool
        Whether the lock is held; not where the file system has no locks.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    """
    file, held = _lock(path)
    try:
        yield held
    finally:
        file.close()


def _lock(path: str) -> tuple[io.BufferedIOBase, bool]:
    folder = os.path.dirname(path)
    while True:
        make_folder(folder)
        try:
            file = open(path, "a+b")  # noqa: SIM115 - it is the lock, and lives on
        except FileNotFoundError:  # another process has just ended there, and removed the folder
            if not os.path.isdir(os.path.dirname(folder) or os.curdir):
                raise
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise
        except OSError:  # a file system without locks
            return file, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file, True
        file.close()  # its last owner removed it in the meantime


def make_folder(url: str) -> None:
    """Create a local folder and its parents; object stores need none.

    Raises
    ------
    ConfigError
        If something else bears the name.
    FileNotFoundError
        If a folder of the path vanishes meanwhile.
    """
    if is_remote(url):
        return
    path = _local(url)
    try:
        os.makedirs(path, exist_ok=True)
    except NotADirectoryError:
        raise ConfigError(f"{url}: is not a folder") from None
    except FileExistsError:
        if not os.path.lexists(path):  # it was there a moment ago
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
        raise ConfigError(f"{url}: is not a folder") from None


def remove(url: str) -> None:
    """Remove a file or a folder with all it holds; what is not there is no error."""
    if is_remote(url):
        fs, path = filesystem(url)
        if glob.has_magic(path):  # rm would take it for a pattern
            objectstore.remove_objects(url, walk_files(url))
            return
        with contextlib.suppress(FileNotFoundError):
            patiently(url, lambda: fs.rm(path, recursive=True), "removed")
    elif os.path.isdir(_local(url)) and not os.path.islink(_local(url)):
        shutil.rmtree(_local(url))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_local(url))


def remove_files(url: str, names: Iterable[str]) -> None:
    """Remove files below a folder, and local folders that are empty without them.

    What lies below a linked folder stays: it may be somebody else's.

    Parameters
    ----------
    names
        Relative paths; what is not there is no error.

    Raises
    ------
    ValueError
        If a name leads out of the folder; nothing is removed then.
    """
    names = list(names)
    if outer := [name for name in names if not is_inner(name)]:
        raise ValueError(f"{url}: {outer[0]!r} leads out of it")
    if is_remote(url):
        objectstore.remove_objects(url, names)
        return
    root, by_folder = os.path.realpath(_local(url)), defaultdict(list)
    for name in names:
        by_folder[os.path.dirname(name)].append(os.path.basename(name))
    for folder in sorted(by_folder, key=len, reverse=True):
        if os.path.realpath(os.path.join(root, folder)) != os.path.join(root, folder).rstrip("/"):
            continue
        for name in by_folder[folder]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(root, folder, name))
        while folder:
            try:
                os.rmdir(os.path.join(root, folder))
            except OSError:  # it holds something
                break
            folder = os.path.dirname(folder)


def sync_file(path: Path) -> None:
    """Flush a local file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Flush the names in a local folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary_sibling(path: Path) -> Iterator[Path]:
    make_folder(str(path.parent))
    # By number: the longest name that a disk takes leaves no room for an addition.
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{threading.get_ident()}")
    try:
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _local(url: str) -> str:
    return url.removeprefix("file://")
