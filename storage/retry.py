"""Requests to object stores are made again where they fail in a way that may pass.

Too many at once, a server that restarts, a connection that breaks, a body that ends early: such a
request is made again after a pause, a bounded number of times. Objects are read, written and
removed whole: doing so twice does no harm. What is missing or forbidden stays so, and is reported
immediately.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from ..errors import CocosegError, StoreError, StoreRefusal
from ..printable import redacted

ATTEMPTS = 6
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; doubled each time, 15.5 s in all."""

_Answer = TypeVar("_Answer")
_FINAL = (IsADirectoryError, NotADirectoryError, CocosegError, TypeError)
_MISSING = (404, 410)
_DENIED = (401, 403)
_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's


def patiently(url: str, request: Callable[[], _Answer], done: str = "read") -> _Answer:
    """Return what `request` does; it is called again where it fails in a way that may pass.

    Parameters
    ----------
    done
        What the object is by it, for messages.

    Raises
    ------
    FileNotFoundError
        If the object is missing; `IsADirectoryError`, `NotADirectoryError` as `request` raises
        them.
    StoreRefusal
        If access is denied; names `url`.
    StoreError
        If the last attempt failed too; names `url`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except _FINAL:
            raise
        except Exception as error:  # each driver has its own kinds, few of them are an OSError
            status = http_status(error)
            if isinstance(error, FileNotFoundError) and status in (None, *_MISSING):
                raise
            named = type(error).__name__
            if status in _DENIED or isinstance(error, PermissionError):
                raise StoreRefusal(f"{url}: access is denied: {described(error)}") from None
            if named in _WITHOUT_CREDENTIALS:
                raise StoreRefusal(f"{url}: {described(error)}") from None
            if attempt == ATTEMPTS - 1:
                raise StoreError(
                    f"{url}: cannot be {done}: {described(error)}; tried {ATTEMPTS} times"
                ) from None
        pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Wait after a failed attempt, the first being 0: longer each time, and not all at once."""
    time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25))  # noqa: S311 - no secret


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, where a driver keeps it."""
    while error is not None:
        answer = getattr(error, "response", None)  # botocore
        if isinstance(answer, Mapping):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(error, "status", None)  # aiohttp
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def described(error: Exception) -> str:
    """Return what a driver says of an error, on one line and without secrets."""
    text = redacted(" ".join(str(error).split()))[:300]
    status = http_status(error)
    http = f"HTTP {status}: " if status is not None else ""
    return f"{http}{type(error).__name__}{text and ': '}{text}"
