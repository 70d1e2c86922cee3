"""Each rank has a device of its own, or all of them are told why not."""

from collections.abc import Callable

import pytest
import torch
from cocoseg.distributed.devices import UsedDevice, conflict, own_device
from cocoseg.distributed.rendezvous import ranks_text
from cocoseg.errors import ConfigError
from cocoseg.processes import Launch

CPU = UsedDevice("a", "cpu")


def gpu(number: int, host: str = "a") -> UsedDevice:
    return UsedDevice(host, "cuda", f"GPU-{number}")


def test_a_device_of_its_own_for_each_rank_is_no_conflict() -> None:
    assert conflict([CPU, CPU]) is None
    assert conflict([gpu(0), gpu(1), gpu(2, "b")]) is None
    without_uuid = UsedDevice("a", "cuda")
    assert conflict([without_uuid, without_uuid]) is None  # ROCm may have none


@pytest.mark.parametrize(
    ("used", "told"),
    [
        ([gpu(0), gpu(1), gpu(0)], "ranks 0, 2 use the same GPU of a: start one process per GPU"),
        ([gpu(0), CPU, CPU], "different kinds of devices (rank 0: cuda; ranks 1-2: cpu)"),
        ([CPU, UsedDevice("b", fault="gone")], "rank 1: gone"),
        ([UsedDevice("b", fault="gone")] * 2, "rank 0: gone; 2 of 2 ranks have no device"),
    ],
)
def test_what_keeps_ranks_apart_is_named(used: list[UsedDevice], told: str) -> None:
    found = conflict(used)
    assert found is not None
    assert told in ": ".join(found)


def test_ranks_learn_of_each_other_by_json(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        uuid = "5a7c"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    used = UsedDevice.of(torch.device("cuda:1"))
    assert (used.type, used.uuid) == ("cuda", "5a7c")
    assert UsedDevice.from_json(used.to_json()) == used
    assert UsedDevice.of(torch.device("cpu")).uuid == ""
    assert UsedDevice.of(None, "gone").fault == "gone"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"RANK": 6, "LOCAL_RANK": 2, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 4}, "cuda:2"),
        ({"RANK": 3, "SLURM_PROCID": 3, "SLURM_LOCALID": 3, "WORLD_SIZE": 4}, "cuda:3"),
        ({}, "cuda:0"),
        ({"RANK": 3, "WORLD_SIZE": 4}, "LOCAL_RANK is not set, and 4 GPUs are visible"),
        (
            {"RANK": 5, "LOCAL_RANK": 5, "WORLD_SIZE": 8, "LOCAL_WORLD_SIZE": 8},
            "no GPU for local rank 5",
        ),
        ({"SLURM_PROCID": 1, "SLURM_STEP_NUM_TASKS": 4}, "srun started 4 tasks"),
    ],
)
def test_the_launcher_decides_which_gpu_it_is(
    environment: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict,
    expected: str,
) -> None:
    environment(**variables)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    launch = Launch.from_environment()
    if expected.startswith("cuda"):
        assert str(own_device("auto", launch)) == expected
    else:
        with pytest.raises(ConfigError, match=expected):
            own_device("auto", launch)


def test_ranks_are_named_shortly() -> None:
    assert ranks_text([3]) == "rank 3"
    assert ranks_text([0, 1, 2, 5, 7, 8]) == "ranks 0-2, 5, 7-8"
