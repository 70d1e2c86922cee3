"""Which device each process of a run uses; no two may use the same GPU."""

import json
import socket
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from ..model.device import pick_device
from ..processes import Launch
from .rendezvous import ranks_text


def own_device(name: str, launch: Launch) -> torch.device:
    """Return the device that a ``device`` setting means for a process.

    Raises
    ------
    ConfigError
        See `Launch.check` and `pick_device`.
    """
    launch.check()
    return pick_device(name, launch.local_rank, launch.world_size, launch.local_world_size)


@dataclass(frozen=True, slots=True)
class UsedDevice:
    """The device of one rank, as the other ranks are told of it."""

    host: str
    type: str = ""
    """``cuda``, ``cpu`` …; empty if there is none."""
    uuid: str = ""
    """Of a GPU; empty if it has none."""
    fault: str = ""
    """Why there is no device."""

    @classmethod
    def of(cls, device: torch.device | None, fault: str = "") -> "UsedDevice":
        """Describe the device of this process."""
        uuid = ""
        if device is not None and device.type == "cuda":
            uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
        return cls(socket.gethostname(), "" if device is None else device.type, uuid, fault)

    @classmethod
    def from_json(cls, text: str) -> "UsedDevice":
        """Return what `to_json` wrote."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """Return the JSON form."""
        return json.dumps(asdict(self))


def conflict(used: Sequence[UsedDevice]) -> tuple[str, str] | None:
    """Return why ranks cannot run together on these devices, given by rank, and what to do.

    None if they can.
    """
    faults = {rank: one.fault for rank, one in enumerate(used) if one.fault}
    if faults:
        first, text = next(iter(faults.items()))
        more = f"; {len(faults)} of {len(used)} ranks have no device" if len(faults) > 1 else ""
        return f"rank {first}: {text}{more}", ""
    by_type = _ranks_by({rank: one.type for rank, one in enumerate(used)})
    if len(by_type) > 1:
        told = "; ".join(f"{ranks_text(ranks)}: {kind}" for kind, ranks in by_type.items())
        return (
            f"the ranks use different kinds of devices ({told})",
            "make the GPUs of all machines usable ('cocoseg doctor', started in the same way, "
            "shows each rank's), or set device=cpu for all",
        )
    by_uuid = _ranks_by({rank: one.uuid for rank, one in enumerate(used) if one.uuid})
    for ranks in by_uuid.values():
        if len(ranks) > 1:
            return (
                f"{ranks_text(ranks)} use the same GPU of {used[ranks[0]].host}",
                "start one process per GPU (torchrun --nproc-per-node), or show each process "
                "another GPU (CUDA_VISIBLE_DEVICES)",
            )
    return None


def _ranks_by(values: Mapping[int, str]) -> dict[str, list[int]]:
    ranks: defaultdict[str, list[int]] = defaultdict(list)
    for rank, value in values.items():
        ranks[value].append(rank)
    return dict(ranks)
