"""Where a network runs."""

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
