"""Work beside the network: what is read ahead of it, and what leaves its device behind it."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..processes import available_cores

Batch = TypeVar("Batch")
Content = TypeVar("Content")

_THREADS_CPU, _MOST_THREADS = 2, 8


def thread_count(device: torch.device) -> int:
    """Return how many threads read for a network, or write what it predicts.

    On a CPU the network needs the cores; a GPU leaves them idle.
    """
    return _THREADS_CPU if device.type == "cpu" else min(_MOST_THREADS, max(2, available_cores()))


def threads_for(device: torch.device, count: int, name: str) -> ThreadPoolExecutor:
    """Return threads whose current GPU is `device`.

    That of a new thread is the first GPU: waiting for an event, or asking for page-locked memory,
    would set up a context of this process there, half a gigabyte of memory.
    """
    use = partial(torch.cuda.set_device, device) if device.type == "cuda" else None
    return ThreadPoolExecutor(count, name, use)


def read_ahead(
    batches: Iterable[Batch], read: Callable[[Batch], Content], device: torch.device
) -> Iterator[tuple[Batch, Content]]:
    """Yield each batch and its content; that of the next is read by another thread meanwhile.

    Parameters
    ----------
    device
        Of the network that it is read for.

    Raises
    ------
    Exception
        What `read` raised, where the batch would have come.
    """
    coming: deque[tuple[Batch, Future[Content]]] = deque()
    with threads_for(device, 1, "cocoseg-read") as reader:
        for batch in batches:
            coming.append((batch, reader.submit(read, batch)))
            if len(coming) > 1:
                before, content = coming.popleft()
                yield before, content.result()
        for before, content in coming:
            yield before, content.result()


class Transfer:
    """Tensors on their way to the host.

    From a GPU they are copied into page-locked memory while it continues to compute; any thread may
    call `wait`.
    """

    def __init__(self, *tensors: Tensor) -> None:
        device = tensors[0].device
        on_gpu = device.type == "cuda"
        self._tensors = [tensor.to("cpu", non_blocking=on_gpu) for tensor in tensors]
        self._copied: torch.cuda.Event | None = None
        if on_gpu:
            self._copied = torch.cuda.Event(blocking=True)  # waits without using a core
            self._copied.record(torch.cuda.current_stream(device))  # not the current GPU's

    def wait(self) -> list[NDArray[Any]]:
        """Return the arrays once they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
