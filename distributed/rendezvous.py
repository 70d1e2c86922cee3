"""How the processes of a run find each other, also when torchrun starts them again.

Since PyTorch 2.5 torchrun keeps one store for all its starts (``--max-restarts``), and processes
find there the addresses of those that were killed: "Connection refused", again and again. Source:
pytorch/pytorch issue 135712. Its count of restarts does not help: each node counts for itself.
"""

import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import CocosegError, ConfigError, first_line
from ..processes import Launch

log = logging.getLogger(__name__)

Found = TypeVar("Found")

_LOOK_EVERY = 0.02  # seconds; in Python, so that a signal is heard meanwhile
_OUTPUT = "look at their output"
_ANSWER = timedelta(minutes=10)  # most that one request to the store may take


def join(patience: timedelta) -> tuple[Store, int, int]:
    """Wait for the other processes of this start; return a store of theirs alone, rank, world size.

    Raises
    ------
    ConfigError
        If an environment variable is missing.
    CocosegError
        If the other processes do not come.
    """
    launch = Launch.from_environment()
    launch.check()
    if launch.missing:
        several = len(launch.missing) > 1
        raise ConfigError(
            f"WORLD_SIZE is {launch.world_size}, but {', '.join(launch.missing)} "
            f"{'are' if several else 'is'} not set: start with torchrun, or set "
            f"{'them' if several else 'it'} for every process (docs/gpu.md)"
        )
    rank, world_size = launch.rank, launch.world_size
    try:
        _wait_for_name(os.environ["MASTER_ADDR"], patience)
        store, *_ = next(rendezvous("env://", rank, world_size, timeout=patience))
        store.set_timeout(_ANSWER)
        name = meet(store, rank, world_size, patience)
    except (RuntimeError, ValueError) as error:  # no connection; a port that is not a number
        raise CocosegError(
            f"rank {rank}: no connection to the other ranks at {_address()}: {first_line(error)}"
        ) from None
    return PrefixStore(f"cocoseg/{name}", store), rank, world_size


def _wait_for_name(host: str, patience: timedelta) -> None:
    """Wait until the name of a machine is known, as that of a node that has just started is not.

    PyTorch waits for it, too, but hears no signal meanwhile.
    """

    def address() -> object:
        try:
            return socket.getaddrinfo(host, None)
        except OSError:
            return None

    if address() is None:
        log.warning("MASTER_ADDR: the name %s is not known (yet); waiting for it", host)
        _look(address, patience, lambda: f"the name {host} (MASTER_ADDR)", pause=1.0)


def connect(name: str, patience: timedelta) -> Store:
    """Return a part of the store of a run whose processes have met, for a process beside them."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore(name, TCPStore(host, port, is_master=False, timeout=patience))


def meet(store: Store, rank: int, world_size: int, patience: timedelta) -> str:
    """Return a name that only the processes of this start know, who all call it together.

    Rank 0 makes it up and collects what the others made up; each of them believes it once it finds
    its own word among them. What dead processes left in the store convinces nobody.

    Raises
    ------
    CocosegError
        If they do not come.
    """
    own = secrets.token_hex(8)
    if rank == 0:
        store.set("cocoseg/leader", own)
        texts = _read(store, f"cocoseg/{own}", range(1, world_size), patience)
        store.set(f"cocoseg/{own}/all", " ".join(texts))
        return own

    def leader() -> str | None:
        if not store.check(["cocoseg/leader"]):
            return None
        leader = store.get("cocoseg/leader").decode()
        store.set(f"cocoseg/{leader}/{rank}", own)
        everybody = f"cocoseg/{leader}/all"
        found = store.check([everybody]) and own in store.get(everybody).decode().split()
        return leader if found else None

    return _look(leader, patience, lambda: f"the other ranks: {_OUTPUT}")


def exchange(
    store: Store, topic: str, rank: int, world_size: int, text: str, patience: timedelta
) -> list[str]:
    """Return the texts of all ranks on a topic, by rank; all of them call it, once a topic.

    Only the store is asked: this works where a collective would not.

    Raises
    ------
    CocosegError
        If some do not come; names them.
    """
    store.set(f"{topic}/{rank}", text)
    return _read(store, topic, range(world_size), patience)


def ranks_text(ranks: Sequence[int]) -> str:
    """Return ascending ranks for people: ``rank 3``, ``ranks 0-2, 5``."""
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1].append(rank)
        else:
            parts.append([rank])
    told = ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else f"{one[0]}" for one in parts)
    return f"rank{'s' * (len(ranks) > 1)} {told}"


def _read(store: Store, topic: str, ranks: range, patience: timedelta) -> list[str]:
    absent = list(ranks)

    def texts() -> list[str] | None:
        absent[:] = [rank for rank in absent if not store.check([f"{topic}/{rank}"])]
        return None if absent else [store.get(f"{topic}/{rank}").decode() for rank in ranks]

    return _look(texts, patience, lambda: f"{ranks_text(absent)}: {_OUTPUT}")


def _look(
    find: Callable[[], Found | None],
    patience: timedelta,
    awaited: Callable[[], str],
    pause: float = _LOOK_EVERY,
) -> Found:
    deadline = time.monotonic() + patience.total_seconds()
    while (found := find()) is None:
        if time.monotonic() > deadline:
            raise CocosegError(f"timed out waiting for {awaited()}")
        time.sleep(pause)
    return found


def _address() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
