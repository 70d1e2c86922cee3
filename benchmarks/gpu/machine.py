"""The machine, in one line."""

import os
import platform
import subprocess
from collections.abc import Iterator

import torch
import transformers
from bench import Bench
from measure import Row


def describe(bench: Bench) -> Iterator[Row]:
    """Yield one row, whose `ours` is the line."""
    versions = [
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"transformers {transformers.__version__}",
    ]
    if not bench.on_gpu:
        yield Row("machine", "", ", ".join([f"{os.cpu_count()} cores, no GPU", *versions]))
        return
    properties = torch.cuda.get_device_properties(bench.device)
    cudnn = torch.backends.cudnn.version() or 0
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    parts = [
        f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, driver {_driver()}",
        f"{os.cpu_count()} cores",
        *versions,
        f"CUDA {torch.version.cuda}, cuDNN {cudnn}, NCCL {nccl}",
    ]
    yield Row("machine", "", ", ".join(parts))


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return ran.stdout.strip().partition("\n")[0] or "unknown"
