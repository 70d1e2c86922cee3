"""Threads beside the network, and transfers to the host, belong to the network's GPU."""

from types import SimpleNamespace

import pytest
import torch
from cocoseg.model import pipeline
from cocoseg.model.pipeline import Transfer, read_ahead, threads_for

CPU, SECOND = torch.device("cpu"), torch.device("cuda:1")


@pytest.fixture
def used(monkeypatch):
    """The GPUs that threads have made theirs."""
    found = []
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    return found


def test_threads_use_the_gpu_of_the_network(used):
    with threads_for(SECOND, 3, "name") as pool:
        assert list(pool.map(abs, range(-9, 0))) == list(range(9, 0, -1))
    assert 1 <= len(used) <= 3
    assert set(used) == {SECOND}
    assert list(read_ahead([1, 2], str, SECOND)) == [(1, "1"), (2, "2")]
    assert set(used) == {SECOND}


def test_threads_of_a_cpu_use_no_gpu(used):
    with threads_for(CPU, 3, "name") as pool:
        pool.submit(int).result()
    list(read_ahead([1, 2], str, CPU))
    assert used == []


def test_a_transfer_waits_for_the_stream_of_its_own_gpu(monkeypatch):
    recorded = []

    class Event:
        def __init__(self, blocking):
            assert blocking

        def record(self, stream):
            recorded.append(stream)

        def synchronize(self):
            recorded.append("waits")

    copied = SimpleNamespace(numpy=lambda: "array")
    tensor = SimpleNamespace(device=SECOND, to=lambda device, non_blocking: copied)
    monkeypatch.setattr(pipeline.torch.cuda, "Event", Event)
    monkeypatch.setattr(pipeline.torch.cuda, "current_stream", lambda device: device)
    transfer = Transfer(tensor)
    assert recorded == [SECOND]
    assert transfer.wait() == ["array"]
    assert recorded == [SECOND, "waits"]
