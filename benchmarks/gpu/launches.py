"""What a trace of torch.profiler says that a GPU was given to do."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Launched:
    """Numbers of kernels and copies."""

    kernels: int
    to_host: int
    """Copies from the device."""
    blocking: int
    """Copies to the device out of memory that is not page-locked."""


def counted(events: Sequence[Mapping[str, Any]]) -> Launched:
    """Count the kernels and copies among the events of a trace.

    Names of copies are those of CUPTI: ``Memcpy HtoD (Pageable -> Device)``.
    """
    kinds = Counter(event.get("cat", "") for event in events)
    copies = Counter(event["name"] for event in events if event.get("cat") == "gpu_memcpy")
    return Launched(
        kernels=kinds["kernel"],
        to_host=sum(n for name, n in copies.items() if "DtoH" in name),
        blocking=sum(n for name, n in copies.items() if "HtoD" in name and "Pageable" in name),
    )
