"""One process or many: torchrun's environment and the few collectives that are used."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CocosegError
from ..model.device import pick_device

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Group:
    """A process among those of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor over all processes, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def share(self, value: int) -> int:
        """Return rank 0's value on every process."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.int64, device=self.device)
        dist.broadcast(tensor, src=0)
        return int(tensor.item())

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Value] = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def stop_for(self, failures: Sequence[CocosegError]) -> None:
        """Raise on every process what failed on any; all processes call it together."""
        for failure in (one for part in self.gather(list(failures)) for one in part):
            raise failure

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process rank 0's batch norm statistics."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def process_group(device_name: str) -> Iterator[Group]:
    """Join the processes that torchrun started; alone without it.

    NCCL connects GPUs, gloo CPUs. Source of the variables: PyTorch, "torchrun (Elastic Launch)".
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    device = pick_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size == 1:
        yield Group(0, 1, device)
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(rank, world_size, device)
    finally:
        dist.destroy_process_group()
