"""Errors that a user can fix, and the exit codes of every command."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes shared by every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    BAD_DATA = 3
    QUARANTINED = 4
    INTERRUPTED = 130


class CocosegError(Exception):
    """Something that a user can fix: the text says what, where, and what to do next.

    The command line prints the text without a traceback and exits with `exit_code`.
    """

    exit_code = ExitCode.FAILURE
    shared = False
    """Whether every process of a run raised it: then one reports it."""


def first_line(error: Exception) -> str:
    """Return the first line of a library's error; a bare EOFError has none but its name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


class ConfigError(CocosegError):
    """A command was called wrongly: a flag, a config key or a path that is not there."""

    exit_code = ExitCode.USAGE


class DataError(CocosegError):
    """The input cannot be trusted: annotations, images, shards or a checkpoint."""

    exit_code = ExitCode.BAD_DATA


class StoreError(CocosegError):
    """An object store does not answer, or refuses to."""


class StoreRefusal(StoreError):
    """An object store denies access, or lacks the bucket: asking again does not help."""


class Interrupted(CocosegError):
    """A signal asked to stop; the text says what was kept and how to resume."""

    exit_code = ExitCode.INTERRUPTED
