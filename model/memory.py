"""How much memory a training step takes, counted without running it."""

# B batch, K classes, H W pixels of the input

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import CocosegError, first_line
from .meta import empty_copy
from .sync_batchnorm import localise_batch_norms


class UnknownMemory(Exception):
    """The memory of a training step cannot be estimated; the text says why."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Bytes that a training step holds on its device at the end of the forward pass.

    What libraries take beside it (workspaces of kernels, buffers of DDP, fragments) is not counted.
    """

    weights: int
    """Parameters and buffers."""
    gradients: int
    optimizer: int
    ema: int
    activations: int
    """What the backward pass of the network needs, counted exactly."""
    loss: int
    """The logits and their gradient, and an image of both at full resolution."""

    @property
    def total(self) -> int:
        """Return all of it."""
        held = self.weights + self.gradients + self.optimizer + self.ema
        return held + self.activations + self.loss


def training_memory(
    network: nn.Module,
    batch_size: int,
    input_size: int,
    *,
    optimizer_states: int,
    ema: bool,
    amp: torch.dtype | None = None,
    device: str = "cpu",
) -> TrainingMemory:
    """Count what a training step takes.

    A copy of the network whose tensors are fake runs one forward pass, which costs neither memory
    nor computation (a second for the largest SegFormer); what autograd saves there is counted, each
    storage once, parameters left out. Frozen layers and recomputed activations (`switches`) count
    as what they are.

    Parameters
    ----------
    network
        As it will be trained: frozen parts, recomputed activations and the mode of its parts too.
    batch_size
        Images of a micro-batch and process.
    input_size
        Side of the square inputs [pixels].
    optimizer_states
        Tensors that the optimizer keeps of each trained parameter: 2 for AdamW, 1 for SGD with
        momentum.
    ema
        Whether a moving average of the weights is kept.
    amp
        Precision of autocast; None is none.
    device
        The type of device whose rules of autocast are followed.

    Raises
    ------
    UnknownMemory
        If the forward pass fails without memory, whatever the reason.
    """
    parameters = list(network.parameters())
    trained = sum(_bytes(p) for p in parameters if p.requires_grad)
    weights = sum(_bytes(p) for p in parameters) + sum(_bytes(b) for b in network.buffers())
    try:
        activations, logits = _forward(network, batch_size, input_size, amp, device)
    except Exception as error:  # an estimate: whatever fails in it must not end a run
        raise UnknownMemory(f"{type(error).__name__}: {first_line(error)}") from error
    return TrainingMemory(
        weights=weights,
        gradients=trained,
        optimizer=optimizer_states * trained,
        ema=weights if ema else 0,
        activations=activations,
        loss=2 * _bytes(logits) + 2 * logits.shape[1] * input_size**2 * torch.float32.itemsize,
    )


def _forward(
    network: nn.Module, batch_size: int, input_size: int, amp: torch.dtype | None, device: str
) -> tuple[int, Tensor]:
    """Return the bytes that autograd saves in a forward pass, and the logits, which are fake."""
    saved: dict[int, torch.UntypedStorage] = {}  # held: the identity of a freed one is reused

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    # Fake tensors and not the meta device, which knows no autocast.
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        probe: Any = empty_copy(network, device)
        localise_batch_norms(probe)  # this rank probes alone: nobody would answer a collective
        pixels = torch.empty(batch_size, 3, input_size, input_size, device=device)
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast(device, amp or torch.bfloat16, enabled=amp is not None),
        ):
            logits = probe(pixel_values=pixels).logits
        for tensor in (*probe.parameters(), *probe.buffers()):
            saved.pop(tensor.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in saved.values()), logits


class OutOfMemory(RuntimeError):
    """A device had no memory left, whatever was tried; the text says what for."""


_NO_MEMORY = (
    "DefaultCPUAllocator",  # a CPU's allocator has no error of its own
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device, or a library on it, had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, OutOfMemory)) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)
    )


@contextlib.contextmanager
def explained_out_of_memory(where: str, advice: str) -> Iterator[None]:
    """Replace an error of a device without memory by one that says what to change.

    Raises
    ------
    CocosegError
        "`where`: the library's words. `advice`".
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise CocosegError(f"{where}: {first_line(error)}. {advice}") from None


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
