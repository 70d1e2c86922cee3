"""Which kernels a GPU uses during training: chosen by speed, or the same at every run."""

import contextlib
import os
from collections.abc import Iterator

import torch

_WORKSPACE = ":4096:8"
"""Of cuBLAS: with it products are summed in the same order at every run. Source: NVIDIA, "cuBLAS",
"Results Reproducibility"."""


@contextlib.contextmanager
def usual_kernels() -> Iterator[None]:
    """Let cuDNN choose as it does outside of training, which is to try nothing.

    Images of many sizes would pay for a trial each.
    """
    cudnn = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, False
    try:
        yield
    finally:
        cudnn.benchmark = before


@contextlib.contextmanager
def chosen_kernels(deterministic: bool) -> Iterator[None]:
    """Choose kernels while in the context, and restore the settings of PyTorch afterwards.

    Enter it before anything runs on a GPU: cuBLAS reads its settings once.

    Parameters
    ----------
    deterministic
        The same kernels and the same order of sums at every run, where PyTorch has such kernels;
        it warns of others. Else cuDNN tries which convolutions are fastest for each size.
    """
    cudnn, variable = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    before = (
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    unset = deterministic and variable not in os.environ
    if unset:
        os.environ[variable] = _WORKSPACE
    try:
        cudnn.benchmark = not deterministic
        if deterministic:
            cudnn.deterministic = True
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, enabled, warn_only = before
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        if unset:
            del os.environ[variable]
