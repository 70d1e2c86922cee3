"""One process or many: torchrun's environment and the few collectives that are used."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CocosegError, ConfigError
from ..model.device import pick_device
from .rendezvous import join

Value = TypeVar("Value")

_PATIENCE = timedelta(hours=2)  # one process may validate, or save, much longer than another


@dataclass(frozen=True, slots=True)
class Group:
    """A process among those of the run.

    What the processes tell each other (counts, decisions, scores) travels by gloo between CPUs:
    exact for integers, and no GPU has to be waited for.
    """

    rank: int
    world_size: int
    device: torch.device
    control: "dist.ProcessGroup | None" = None
    """None in a single process."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add a CPU tensor over all processes, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.control)
        return values

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes, by rank, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Value] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def stop_for(self, failures: Sequence[CocosegError]) -> None:
        """Raise on every process what failed on any; all processes call it together."""
        for failure in (one for part in self.gather(list(failures)) for one in part):
            self.stop(failure)

    def stop(self, failure: CocosegError) -> NoReturn:
        """Raise what every process raises here, each by itself: one of them tells."""
        failure.shared = True
        raise failure

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise on every process what fails within on any; all of them enter and leave it."""
        failures: list[CocosegError] = []
        try:
            yield
        except CocosegError as failure:
            failures.append(failure)
        self.stop_for(failures)

    def share_buffers(self, network: nn.Module) -> None:
        """Give every process rank 0's batch norm statistics."""
        if self.world_size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


@contextmanager
def process_group(device_name: str) -> Iterator[Group]:
    """Join the processes that torchrun started; alone without it.

    Gradients travel by NCCL between GPUs, by gloo between CPUs. Source of the variables: PyTorch,
    "torchrun (Elastic Launch)".

    Raises
    ------
    ConfigError
        If the device is not there, or is one GPU for several processes.
    CocosegError
        The same among several processes: the others cannot be asked yet, so each tells its own.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        device = pick_device(device_name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        yield Group(0, 1, device)
        return
    try:
        device = pick_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    except ConfigError as error:
        raise CocosegError(f"rank {os.environ.get('RANK')}: {error}") from None
    if device.type == "cuda":
        if device_name not in ("auto", "cuda") and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
            raise ConfigError(
                f"device={device_name}: one GPU for every process; 'cuda' gives each its own"
            )
        torch.cuda.set_device(device)
    store, rank, world_size = join(_PATIENCE)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=_PATIENCE,
    )
    try:
        yield Group(rank, world_size, device, dist.new_group(backend="gloo", timeout=_PATIENCE))
    except BaseException as error:
        # NCCL waits for the others here: they come only if they have failed by the same.
        if isinstance(error, CocosegError) and error.shared:
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()
