"""Processes of one start find each other, whatever those of earlier starts left in the store."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from cocoseg.distributed import rendezvous
from cocoseg.distributed.rendezvous import meet
from cocoseg.errors import CocosegError
from torch.distributed import HashStore

PATIENCE = timedelta(seconds=20)


def test_a_machine_whose_name_is_not_known_yet_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([OSError("Name or service not known"), OSError("again"), "an address"])

    def look_up(host: str, port: None) -> str:
        assert host == "node-0"
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(rendezvous.time, "sleep", lambda seconds: None)
    rendezvous._wait_for_name("node-0", PATIENCE)
    assert next(answers, None) is None
    assert caplog.messages == ["MASTER_ADDR: the name node-0 is not known (yet); waiting for it"]


def test_a_name_that_is_never_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(rendezvous.socket, "getaddrinfo", unknown)
    with pytest.raises(CocosegError, match=r"waiting for the name node-0 \(MASTER_ADDR\)$"):
        rendezvous._wait_for_name("node-0", timedelta(seconds=-1))


def meet_all(store: HashStore, world_size: int, order: list[int]) -> list[str]:
    """Let the ranks come one after the other."""
    with ThreadPoolExecutor(world_size) as pool:
        coming = {}
        for rank in order:
            coming[rank] = pool.submit(meet, store, rank, world_size, PATIENCE)
            time.sleep(0.03)
        return [coming[rank].result() for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_start_has_a_name_of_its_own(world_size: int) -> None:
    store, dice, names = HashStore(), random.Random(3), []
    for _ in range(4):
        order = dice.sample(range(world_size), world_size)
        found = meet_all(store, world_size, order)
        assert len(set(found)) == 1
        names += found[:1]
    assert len(set(names)) == 4


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_processes_killed_while_they_meet_hold_up_nobody(killed: int) -> None:
    """All but one come and wait; then the next start is there, in the same store."""
    store = HashStore()
    others = [rank for rank in range(3) if rank != killed]
    stop = timedelta(seconds=0.3)

    def die(rank: int) -> None:
        with pytest.raises(CocosegError, match="timed out waiting"):
            meet(store, rank, 3, stop)

    threads = [threading.Thread(target=die, args=(rank,)) for rank in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for order in ([0, 1, 2], [2, 1, 0]):
        assert len(set(meet_all(store, 3, order))) == 1
