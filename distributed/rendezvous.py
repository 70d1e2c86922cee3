"""How the processes of a run find each other, also when torchrun starts them again.

Since PyTorch 2.5 torchrun keeps one store for all its starts (``--max-restarts``), and processes
meet there the addresses of those that were killed: "Connection refused", again and again. Source:
pytorch/pytorch issue 135712. Its count of restarts is no help: each node counts for itself.
"""

import secrets
import time
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import CocosegError

_LOOK_EVERY = 0.02  # seconds; in Python, so that a signal is heard meanwhile


def join(patience: timedelta) -> tuple[Store, int, int]:
    """Wait for the other processes of this start; return a store of theirs alone, rank, world size.

    Raises
    ------
    CocosegError
        If they do not come.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=patience))
    name = meet(store, rank, world_size, patience)
    return PrefixStore(f"cocoseg/{name}", store), rank, world_size


def meet(store: Store, rank: int, world_size: int, patience: timedelta) -> str:
    """Return a name that only the processes of this start know, who all call it together.

    Rank 0 makes it up and collects what the others made up; each of them believes it once it finds
    its own word among them. What dead processes left in the store convinces nobody.
    """
    own = secrets.token_hex(8)
    deadline = time.monotonic() + patience.total_seconds()
    if rank == 0:
        store.set("cocoseg/leader", own)
        while not all(store.check([f"cocoseg/{own}/{other}"]) for other in range(1, world_size)):
            _look_again(deadline)
        words = [store.get(f"cocoseg/{own}/{other}").decode() for other in range(1, world_size)]
        store.set(f"cocoseg/{own}/all", " ".join(words))
        return own
    while True:
        if store.check(["cocoseg/leader"]):
            leader = store.get("cocoseg/leader").decode()
            store.set(f"cocoseg/{leader}/{rank}", own)
            everybody = f"cocoseg/{leader}/all"
            if store.check([everybody]) and own in store.get(everybody).decode().split():
                return leader
        _look_again(deadline)


def _look_again(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise CocosegError("the other processes of the run did not come: look at their output")
    time.sleep(_LOOK_EVERY)
