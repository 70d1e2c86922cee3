"""What a rank does in tests that need real processes; it prints what it found as JSON."""

import json
import os
import signal
import sys

import torch
from cocoseg.distributed import group as group_module
from cocoseg.distributed.group import process_group
from cocoseg.errors import CocosegError, ConfigError
from cocoseg.processes import Launch
from torch import nn

NAMES = [f"name {i}" for i in range(50)]
LONG = 200.0  # seconds that no test waits for


def notes() -> object:
    """Claims, and notes while the other rank hangs in a collective."""
    with process_group("cpu") as group:
        group.gather(None)  # start together
        claims = [group.claim(name) for name in NAMES]
        found = {"claims": claims, "again": [group.claim(name) for name in NAMES]}
        if group.rank == 1:
            group.publish("hangs", "in a collective")
            group.gather("hangs until rank 0 comes")
            found |= {"late": group.wait_for("late", LONG), "text": group.published("late")}
            group.gather("heard")  # until then rank 0 holds the store
            return found
        found |= {"unpublished": group.published("late"), "too late": group.wait_for("late", 0)}
        found |= {"hangs": group.wait_for("hangs", LONG), "rescue": group.claim("rescue")}
        found |= {"published": group.publish("own", "words"), "own": group.published("own")}
        group.gather("releases rank 1")
        group.publish("late", "at last\nä")
        group.gather("heard")
        return found


def gone() -> object:
    """Rank 0, which holds the store, is gone; rank 1 is told when."""
    with process_group("cpu") as group:
        group.publish("here", "")
        group.gather(None)
        if group.rank == 0:
            print("{}", flush=True)
            os._exit(0)
        sys.stdin.readline()
        answers = [group.claim("x"), group.publish("x", ""), group.published("here")]
        print(json.dumps([*answers, group.wait_for("here", LONG)]), flush=True)
        os._exit(0)


def buffers() -> object:
    """Batch norm statistics of rank 0, by few messages of gloo."""
    with process_group("cpu") as group:
        network = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(5))
        network.register_buffer("flags", torch.tensor([[True, False], [False, True]]))
        for number, buffer in enumerate(network.buffers()):
            value = (group.rank + 1) * (number + 1)
            buffer.copy_(
                torch.full_like(buffer, value if buffer.dtype != torch.bool else value % 2)
            )
        network[0].running_mean[0] = 1 / 3 if group.rank == 0 else torch.nan
        network[1].num_batches_tracked.fill_(2**40 + 1 if group.rank == 0 else 0)
        sent: list[str] = []
        broadcast = group_module.dist.broadcast

        def counted(tensor: torch.Tensor, src: int, group: object) -> None:
            assert group is not None  # the default one is NCCL's where there are GPUs
            sent.append(str(tensor.dtype))
            broadcast(tensor, src=src, group=group)

        group_module.dist.broadcast = counted
        group.share_buffers(network)
        values = [buffer.double().flatten().tolist() for buffer in network.buffers()]
        return {"sent": sorted(sent), "values": values}


def no_gpu() -> object:
    """Rank 1 has no device: both hear of it."""

    def own_device(name: str, launch: Launch) -> torch.device:
        if launch.rank == 1:
            raise ConfigError("device 'cuda:1': gone")
        return torch.device("cpu")

    group_module.own_device = own_device
    try:
        with process_group("cuda"):
            return "came in"
    except CocosegError as error:
        return [type(error).__name__, str(error), error.shared]


def killed() -> object:
    """Rank 1 dies while rank 0 waits for it, in a sum of one of the two groups."""
    told = []
    try:
        with process_group("cpu") as group:
            group.gather(group.rank)
            if group.rank == 1:
                sys.stdin.readline()
                os.kill(os.getpid(), signal.SIGKILL)
            torch.distributed.all_reduce(torch.ones(3))
    except CocosegError as error:
        told = [str(error), error.shared, error.__cause__ is None]
    return told


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()), flush=True)
