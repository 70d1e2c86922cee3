"""Where a network runs."""

import ctypes

import torch

from ..errors import ConfigError


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device that a ``device`` setting means.

    Raises
    ------
    ConfigError
        If it is unknown or absent here.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r}: {str(error).splitlines()[0]}") from None
    return device


def keep_freed_memory() -> None:
    """Let this process reuse large tensors' memory instead of returning it to the system.

    glibc maps every large block anew, and the kernel clears each page of it again: on a CPU that
    was more than half the time of a full-resolution loss (261 against 103 ms for 8 × 81 × 160²).
    Elsewhere than on glibc nothing happens. Source: mallopt(3).
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)
