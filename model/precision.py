"""Which number type a network computes in. Weights are always float32: autocast rounds products."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]


def resolve_precision(name: Precision, device: torch.device) -> torch.dtype:
    """Return the type that a setting means on a device.

    `auto` is bfloat16 where a GPU computes in it natively, float16 on other GPUs, and float32 on
    everything that is not a GPU of CUDA.
    """
    if name == "auto":
        if device.type != "cuda":
            return torch.float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextlib.contextmanager
def tf32(enabled: bool) -> Iterator[None]:
    """Let GPUs compute float32 products and convolutions in TF32, or not, while in the context.

    PyTorch's own defaults differ: convolutions use it, matrix products do not.
    """
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = enabled
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as settings have it: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a network computes in a type; without autocast for float32."""
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
