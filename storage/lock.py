"""Locks of one machine, and temporary folders that outlive no process for long."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX, _SUFFIX = "cocoseg-", ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


@contextlib.contextmanager
def exclusive(path: str, who: str = "") -> Iterator[bool]:
    """Hold a lock file, which one process at a time can have; it is removed at the end.

    A killed process leaves the file, but not the lock. Another user's file serves as well if it can
    be read; links are never followed.

    Parameters
    ----------
    who
        What the file says of the process that holds it.

    Yields
    ------
    bool
        Whether the lock is held; not where the file system has no locks.

    Raises
    ------
    BlockingIOError
        If another process holds it.
    OSError
        If the file cannot be opened.
    """
    descriptor, held = _locked(path)
    try:
        with contextlib.suppress(OSError):  # it may only be read
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, who.encode(), 0)
        yield held
    finally:
        with contextlib.suppress(OSError):  # another user's, in a sticky folder; or it is gone
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                os.unlink(path)
        os.close(descriptor)


def _locked(path: str) -> tuple[int, bool]:
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, False
            os.close(descriptor)
            raise
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return descriptor, True
        os.close(descriptor)  # its last owner removed it in the meantime


def _opened(path: str) -> int:
    how = os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        # Without O_CREAT first: in a sticky folder, Linux refuses it for another user's file.
        with contextlib.suppress(FileNotFoundError):
            try:
                return os.open(path, os.O_RDWR | how)
            except PermissionError:
                return os.open(path, os.O_RDONLY | how)
        with contextlib.suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | how, 0o666)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a private folder outside of every output; it is removed at the end.

    What killed processes left of theirs is removed first.
    """
    root = tempfile.gettempdir()
    _remove_abandoned(root)
    with contextlib.ExitStack() as held:
        while True:
            name = os.path.join(root, f"{_PREFIX}{secrets.token_hex(8)}")
            # Another process may take the lock for an abandoned one, before we hold it.
            with contextlib.suppress(BlockingIOError):
                held.enter_context(exclusive(name + _SUFFIX))
                break
        os.mkdir(name, 0o700)
        try:
            yield Path(name)
        finally:
            shutil.rmtree(name, ignore_errors=True)


def _remove_abandoned(root: str) -> None:
    for lock in filter(_is_lock, Path(root).iterdir()):
        # Held by a process that is alive, or another user's.
        with contextlib.suppress(OSError), exclusive(str(lock)) as alone:
            if alone and lock.stat().st_uid == os.getuid():
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)


def _is_lock(path: Path) -> bool:
    return re.fullmatch(rf"{_PREFIX}[0-9a-f]{{16}}{re.escape(_SUFFIX)}", path.name) is not None
