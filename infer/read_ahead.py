"""Reading the next batch while the network is at work on this one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Batch = TypeVar("Batch")
Content = TypeVar("Content")


def read_ahead(
    batches: Iterable[Batch], read: Callable[[Batch], Content]
) -> Iterator[tuple[Batch, Content]]:
    """Yield each batch and its content; that of the next is read by another thread meanwhile.

    Raises
    ------
    Exception
        What `read` raised, where the batch would have come.
    """
    coming: deque[tuple[Batch, Future[Content]]] = deque()
    with ThreadPoolExecutor(1, "cocoseg-read") as reader:
        for batch in batches:
            coming.append((batch, reader.submit(read, batch)))
            if len(coming) > 1:
                before, content = coming.popleft()
                yield before, content.result()
        for before, content in coming:
            yield before, content.result()
