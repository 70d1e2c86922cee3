"""A setting names a device; what is not there, or cannot be each process's own, is refused."""

from collections.abc import Callable

import pytest
import torch
from cocoseg.errors import ConfigError
from cocoseg.model.device import exact_dtype, pick_device

Gpus = Callable[[int], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Pretend that N GPUs are visible; a tensor can be made on them, and on no others."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def pretend(count: int) -> None:
        def empty(size: int, device: torch.device) -> None:
            if device.type == "cuda" and device.index >= count:
                raise RuntimeError("CUDA error: invalid device ordinal\nCUDA kernel errors …")

        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch, "empty", empty)

    return pretend


@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"),
    [
        (1, 0, "cuda:0"),
        (1, 3, "cuda:0"),  # Slurm shows each task one GPU, or two processes share it: see devices
        (1, None, "cuda:0"),
        (8, 0, "cuda:0"),
        (8, 7, "cuda:7"),
    ],
)
def test_every_process_takes_the_gpu_of_its_local_rank(
    gpus: Gpus, name: str, visible: int, local_rank: int | None, expected: str
) -> None:
    gpus(visible)
    assert str(pick_device(name, local_rank, 8, None)) == expected


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_local_rank_without_a_gpu_is_refused(
    gpus: Gpus, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    gpus(2)
    with pytest.raises(ConfigError) as raised:
        pick_device(name, 2, 4, 4)
    assert str(raised.value) == (
        "no GPU for local rank 2: 2 are visible; start at most 2 processes on this machine "
        "(torchrun --nproc-per-node 2)"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with pytest.raises(ConfigError, match=r"2 are visible \(CUDA_VISIBLE_DEVICES=4,5\);"):
        pick_device(name, 2, 4, 4)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_an_unknown_local_rank_among_several_gpus_is_refused(gpus: Gpus, name: str) -> None:
    gpus(4)
    with pytest.raises(ConfigError, match="LOCAL_RANK is not set, and 4 GPUs are visible"):
        pick_device(name, None, 4, None)


def test_without_a_gpu_auto_is_the_cpu_on_every_rank(gpus: Gpus) -> None:
    gpus(0)
    for local_rank in (0, 5, None):
        assert str(pick_device("auto", local_rank, 8, 8)) == "cpu"
    assert pick_device("cpu:0") == torch.device("cpu:0")


def test_one_gpu_for_several_processes_is_refused_where_there_are_more(gpus: Gpus) -> None:
    gpus(2)
    with pytest.raises(ConfigError, match="device=cuda:1: one GPU for every process"):
        pick_device("cuda:1", 0, 2, 2)
    assert str(pick_device("cuda:1", 0, 2, 1)) == "cuda:1"  # one process on each of two machines
    assert str(pick_device("cuda:1")) == "cuda:1"
    gpus(1)
    assert str(pick_device("cuda:0", 1, 2, 2)) == "cuda:0"  # perhaps another for each task


def test_an_absent_gpu_is_named(gpus: Gpus) -> None:
    gpus(2)
    with pytest.raises(ConfigError) as raised:
        pick_device("cuda:7")
    assert str(raised.value) == "device 'cuda:7': CUDA error: invalid device ordinal"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_is_refused_where_there_is_none() -> None:
    told = r"(torch .* is a build without CUDA|PyTorch sees no GPU .*); use auto or cpu$"
    for name in ("cuda", "cuda:3"):
        with pytest.raises(ConfigError, match=f"^device '{name}': {told}"):
            pick_device(name, 3, 4, 4)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gpu", "unknown; use auto, cpu, cuda, cuda:N or mps"),
        ("", "Device string must not be empty"),
        ("cpu:x", "unknown; use auto, cpu, cuda, cuda:N or mps"),
        ("vulkan", f"torch {torch.__version__} cannot use it"),
        ("hpu", f"torch {torch.__version__} cannot use it"),
        ("meta", "computes nothing; use auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_a_name_that_is_no_device_is_refused_in_one_short_line(name: str, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        pick_device(name)
    assert str(raised.value) == f"device {name!r}: {told}"


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1"])
def test_a_number_that_is_none_is_refused(gpus: Gpus, name: str) -> None:
    gpus(2)
    with pytest.raises(ConfigError) as raised:
        pick_device(name)
    assert str(raised.value) == f"device {name!r}: unknown; use auto, cpu, cuda, cuda:N or mps"


def test_a_mac_computes_on_its_cpu_unless_asked(
    gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert str(pick_device("auto")) == "cpu"
    assert str(pick_device("mps")) == "mps"
    with pytest.raises(ConfigError, match="'mps': only a single process can use it"):
        pick_device("mps", 0, 2, 2)


def test_mps_is_refused_where_there_is_no_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="'mps': not available: it needs a Mac"):
        pick_device("mps")


def test_exact_numbers_are_float64_wherever_a_device_has_it() -> None:
    names = ("cpu", "cuda:1", "mps")
    expected = [torch.float64, torch.float64, torch.float32]
    assert [exact_dtype(torch.device(name)) for name in names] == expected
