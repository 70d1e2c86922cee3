"""One process or many: how they start, and the few messages that they exchange."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import Store

from ..errors import CocosegError, ConfigError, first_line
from ..processes import Launch
from .devices import UsedDevice, conflict, own_device
from .rendezvous import exchange, join

Value = TypeVar("Value")

# One process may validate, or save, much longer than another: they wait for each other by gloo.
_PATIENCE = timedelta(hours=2)
# Gradients: all processes take the step together. PyTorch's own default for NCCL.
_NCCL_PATIENCE = timedelta(minutes=10)
_ARRIVAL = timedelta(minutes=30)  # from the first process to the last; PyTorch's default
_ANSWER = timedelta(minutes=1)  # between processes that have all arrived
_LOOK_EVERY = 0.05  # seconds
_LOST = re.compile("remote process|closed|reset by peer|[Tt]ime(d )?out|refused|Broken pipe")


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
    store: Store | None = None
    """Notes of the processes; None in a single process."""
    _notes: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of a single process."""

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
        """Raise what every process raises here, each by itself: one of them reports it."""
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
        """Give every process rank 0's buffers (batch norm statistics).

        By gloo, which may wait long: rank 0 can come late, from a checkpoint that took its time.
        """
        if self.world_size == 1:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for buffer in network.buffers():
            by_dtype.setdefault(buffer.dtype, []).append(buffer)
        for buffers in by_dtype.values():
            flat = torch.cat([buffer.detach().reshape(-1) for buffer in buffers]).cpu()
            dist.broadcast(flat, src=0, group=self.control)
            if self.rank > 0:
                sizes = [buffer.numel() for buffer in buffers]
                for buffer, part in zip(buffers, flat.split(sizes), strict=True):
                    buffer.detach().copy_(part.view_as(buffer))

    # Notes: what a process does alone, because another is gone or hangs in a collective. Only the
    # store of the launcher (under srun, of rank 0) is asked, and none of these raises anything.

    def claim(self, name: str) -> bool:
        """Return whether this process is the first of all that asks for `name`.

        At most one process ever gets True; none does if the store is gone. A single process always
        does.
        """
        if self.store is None:
            return True
        try:
            return int(self.store.add(f"claim/{name}", 1)) == 1
        except RuntimeError:  # DistError and others of the store
            return False

    def publish(self, name: str, text: str) -> bool:
        """Leave a text for all processes; return whether the store has it."""
        if self.store is None:
            self._notes[name] = text
            return True
        try:
            self.store.set(f"note/{name}", text)
        except RuntimeError:
            return False
        return True

    def published(self, name: str) -> str | None:
        """Return what was published last as `name`; None if nothing was, or the store is gone."""
        if self.store is None:
            return self._notes.get(name)
        try:
            key = f"note/{name}"
            return self.store.get(key).decode() if self.store.check([key]) else None
        except RuntimeError:
            return None

    def wait_for(self, name: str, seconds: float) -> bool:
        """Wait until something is published as `name`; return whether it was in time.

        Does not wait where nobody can publish: in a single process, or if the store is gone.
        """
        if self.store is None:
            return name in self._notes
        deadline = time.monotonic() + seconds
        try:
            while not self.store.check([f"note/{name}"]):
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                time.sleep(min(left, _LOOK_EVERY))  # in Python, so that a signal is heard meanwhile
        except RuntimeError:
            return False
        return True


@contextmanager
def process_group(device_name: str, gradients: bool = True) -> Iterator[Group]:
    """Join the processes that torchrun or srun started; alone without them.

    Gradients travel by NCCL between GPUs, by gloo between CPUs. A process that hangs on a GPU ends
    the run after 10 minutes; what may take longer waits by gloo.

    Parameters
    ----------
    gradients
        Whether the processes exchange any; without them GPUs are not connected.

    Raises
    ------
    ConfigError
        If the environment variables of the launcher are wrong or incomplete, or the device is not
        there or is one GPU for several processes; on every process, if they could meet.
    CocosegError
        If the other processes do not come, or cannot be connected.
    """
    launch = Launch.from_environment()
    launch.check()
    if launch.world_size == 1:
        device = own_device(device_name, launch)
        _use(device)
        yield Group(0, 1, device)
        return
    group = _connected(device_name, launch, gradients)
    try:
        yield group
    except BaseException as error:
        # NCCL waits for the others here: they come only if they have failed by the same.
        if isinstance(error, CocosegError) and error.shared:
            dist.destroy_process_group()
        if _is_of_a_collective(error):
            raise CocosegError(_told(error, group.rank)) from None
        raise
    dist.destroy_process_group()


def _told(error: Exception, rank: int) -> str:
    text = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if not _LOST.search(text):  # NCCL tells the reason on its last line
        return f"rank {rank}: the ranks cannot exchange tensors: {text}"
    return (
        f"rank {rank}: another rank has ended or cannot be reached, and this one ends, too "
        f"({text}): see what that one says; then run the same command again"
    )


def _is_of_a_collective(error: BaseException) -> TypeGuard[Exception]:
    """Return whether it is a collective operation that failed."""
    lost = isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError))
    return lost or (isinstance(error, RuntimeError) and "gloo/" in first_line(error))


def _connected(device_name: str, launch: Launch, gradients: bool) -> Group:
    """Meet the other processes, agree on the devices, and connect."""
    device: torch.device | None = None
    fault = ""
    try:
        device = own_device(device_name, launch)
        _use(device)
        own = UsedDevice.of(device)
    except ConfigError as error:
        fault = str(error)
        own = UsedDevice.of(None, fault)
    try:
        store, rank, world_size = join(_ARRIVAL)
    except CocosegError as error:  # the others cannot be asked: each tells its own
        raise CocosegError(f"rank {launch.rank}: {fault}") if fault else error from None
    if device_name != "cpu":  # which is there on every machine
        told = exchange(store, "device", rank, world_size, own.to_json(), _ANSWER)
        if found := conflict([UsedDevice.from_json(one) for one in told]):
            refused = ConfigError(": ".join(filter(None, found)))
            refused.shared = True
            raise refused
    assert device is not None
    nccl = gradients and device.type == "cuda"
    try:
        dist.init_process_group(
            "nccl" if nccl else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=_NCCL_PATIENCE if nccl else _PATIENCE,
            # Connects at once, and fails here rather than in the first step. Hung in torch 2.6 and
            # 2.7.0 alone: pytorch/pytorch issue 153960.
            device_id=device if nccl else None,
        )
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except RuntimeError as error:
        raise CocosegError(
            f"rank {rank}: the ranks cannot be connected by {'NCCL or ' * nccl}gloo: {error}\n"
            "Run 'cocoseg doctor' in the same way as this command to find out why"
        ) from None
    return Group(rank, world_size, device, control, store)


def _use(device: torch.device) -> None:
    if device.type == "cuda":
        try:
            torch.cuda.set_device(device)
        except RuntimeError as error:  # it is in use by a process that has it for itself
            raise ConfigError(f"device '{device}': {first_line(error)}") from None
