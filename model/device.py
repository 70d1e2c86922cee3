"""Where a network runs."""

import os

import torch

from ..errors import ConfigError, first_line

_ALLOWED = "auto, cpu, cuda, cuda:N or mps"


def pick_device(
    name: str,
    local_rank: int | None = 0,
    world_size: int = 1,
    local_world_size: int | None = None,
) -> torch.device:
    """Return the device that a ``device`` setting means for one process of a run.

    ``auto`` is a GPU if there is one, else the CPU (also on a Mac). ``auto`` and ``cuda`` give each
    process the GPU of its local rank, or the only GPU that is visible to it: Slurm can show each
    task a different one.

    Parameters
    ----------
    local_rank
        Of this process on its machine; None if unknown.
    world_size
        Processes of the run.
    local_world_size
        Those on this machine; None if unknown.

    Raises
    ------
    ConfigError
        If the device is unknown or absent, or cannot be one for each process.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: {_why_no_gpu()}; use auto or cpu")
    if name == "cuda":
        name = f"cuda:{_own_gpu(local_rank)}"
    elif name.startswith("cuda:") and (local_world_size or 1) > 1 and torch.cuda.device_count() > 1:
        raise ConfigError(f"device={name}: one GPU for every process; 'cuda' gives each its own")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        text = first_line(error)
        # Of the first, PyTorch lists 20 names, most of them long gone.
        if text.startswith(("Expected one of", "Invalid device string")):
            text = f"unknown; use {_ALLOWED}"
        raise ConfigError(f"device {name!r}: {text}") from None
    if device.type == "mps" and world_size > 1:
        raise ConfigError(f"device {name!r}: only a single process can use it; WORLD_SIZE is set")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {name!r}: not available: it needs a Mac with Apple silicon")
    if device.type == "meta":
        raise ConfigError(f"device {name!r}: computes nothing; use {_ALLOWED}")
    try:
        torch.empty(0, device=device)
    except (NotImplementedError, ImportError):
        raise ConfigError(f"device {name!r}: torch {torch.__version__} cannot use it") from None
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r}: {first_line(error)}") from None
    return device


def _why_no_gpu() -> str:
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is a build without CUDA"
    return "PyTorch sees no GPU (run 'cocoseg doctor' to find out why)"


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the most exact floating-point type of a device: float64, float32 on ``mps``."""
    return torch.float32 if device.type == "mps" else torch.float64


def _own_gpu(local_rank: int | None) -> int:
    """Return the number of this process's GPU among those that are visible to it."""
    visible = torch.cuda.device_count()
    if visible == 1:
        return 0
    if visible > 1 and local_rank is None:
        raise ConfigError(
            f"LOCAL_RANK is not set, and {visible} GPUs are visible to this process: set it to the "
            "number of the process on its machine (0, 1, …), or start with torchrun"
        )
    if visible > 1 and local_rank is not None and local_rank >= visible:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        limited = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES={hidden})"
        raise ConfigError(
            f"no GPU for local rank {local_rank}: {visible} are visible{limited}; start at most "
            f"{visible} processes on this machine (torchrun --nproc-per-node {visible})"
        )
    return local_rank or 0
