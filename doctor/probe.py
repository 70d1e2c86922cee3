"""What ``cocoseg doctor`` tries in a child process of each rank: its GPU, then collectives.

Whoever asks a GPU that hangs, or waits for a rank whose GPU does, may never return, and cannot even
be interrupted: a child can be left behind. It prints a line of JSON for each thing that it learns.
"""

import json
import os
import sys
import time
from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..errors import CocosegError, ConfigError
from ..processes import Launch, end_with_launcher
from .finding import describe, found_by, problem

if TYPE_CHECKING:
    import torch
    from torch.distributed.distributed_c10d import Store

    from ..distributed.devices import UsedDevice

IMPORT, GPU, MEET, GLOO, NCCL = (
    "importing torch",
    "using the GPU",
    "waiting for the other ranks",
    "all-reduce by gloo",
    "all-reduce by NCCL",
)
"""Stages, in their order; not every probe comes to the last."""

_MEET = timedelta(seconds=60)
_PATIENCE = {GLOO: timedelta(seconds=30), NCCL: timedelta(seconds=60)}
MEGABYTES = 4  # of float32 to add up: enough for all channels of NCCL to take part


def main() -> None:
    """Run all stages; the argument is ``{"device": …, "store": …}``."""
    end_with_launcher()
    task = json.loads(sys.argv[1])
    try:
        _probe(task["device"], task["store"], Launch.from_environment())
    except CocosegError as error:
        _tell(failed=str(error))
    except Exception as error:
        _tell(failed=describe(error))
    sys.stdout.flush()
    os._exit(0)  # NCCL's own end would wait for ranks that may be gone


def _probe(device_name: str, store_name: str, launch: Launch) -> None:
    _tell(stage=IMPORT)
    from ..distributed.devices import UsedDevice, conflict
    from ..distributed.rendezvous import connect, exchange, ranks_text

    _tell(stage=GPU)
    device, used = _own_device(device_name, launch)
    _tell(device=asdict(used))
    _tell(stage=MEET)
    store = connect(store_name, _MEET)

    def told(topic: str, text: str) -> list[str]:
        return exchange(store, topic, launch.rank, launch.world_size, text, _MEET)

    texts = told("device", used.to_json())
    gone = [rank for rank, text in enumerate(texts) if not text]
    if gone:
        raise CocosegError(f"{ranks_text(gone)} failed before")
    everyone = [UsedDevice.from_json(text) for text in texts]
    try:
        _try(GLOO, None, store, launch)
        if device is not None and device.type == "cuda" and not conflict(everyone):
            _try(NCCL, device, store, launch)
    finally:
        store.set(f"end/{launch.rank}", "")
    told("end", "")  # nobody leaves while another still computes


def _own_device(name: str, launch: Launch) -> "tuple[torch.device | None, UsedDevice]":
    """Find this rank's device and let it compute; print what was found."""
    import torch

    from ..distributed.devices import UsedDevice, own_device
    from ..train.config import TrainConfig
    from .machine import gpu

    try:
        device = own_device(name, launch)
    except ConfigError as error:
        _tell(finding=asdict(problem(str(error), "docs/gpu.md, 'Several GPUs'")))
        for finding in found_by("GPU", lambda: gpu(TrainConfig(), torch.device("cpu"))):
            _tell(finding=asdict(finding))  # such as a build of torch that is not for the driver
        return None, UsedDevice.of(None, str(error))
    findings = found_by("GPU", lambda: gpu(TrainConfig(), device))
    for finding in findings:
        _tell(finding=asdict(finding))
    used = UsedDevice.of(device)
    broken = [finding.text for finding in findings if finding.state == "problem"]
    return device, replace(used, fault=broken[0]) if broken else used


def _try(stage: str, device: "torch.device | None", store: "Store", launch: Launch) -> None:
    """Add up numbers over all ranks, and check the sum.

    Raises
    ------
    RuntimeError
        If a rank cannot be reached in time, or the sum is wrong.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    _tell(stage=stage)
    if device is not None:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if stage == NCCL else "gloo",
        store=PrefixStore(stage, store),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=_PATIENCE[stage],
        device_id=device,
    )
    dist.all_reduce(torch.ones(1, device=device))  # connects what is connected at first use
    values = torch.full((MEGABYTES * 250_000,), launch.rank + 1.0, device=device)
    began = time.perf_counter()
    dist.all_reduce(values)
    wrong = int((values != launch.world_size * (launch.world_size + 1) / 2).sum())  # waits for it
    seconds = time.perf_counter() - began
    if wrong:
        raise RuntimeError(f"{wrong:,} of {len(values):,} sums are wrong")
    _tell(stage=stage, seconds=seconds)
    if device is None:
        dist.destroy_process_group()


def _tell(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
