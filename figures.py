"""Numbers as people read them."""

from collections.abc import Sequence


def bytes_text(count: float) -> str:
    """Write a number of bytes in powers of 1000: ``812 B``, ``65.0 kB``, ``1.5 GB``."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B"


def time_text(seconds: float) -> str:
    """Write a time: ``45 s``, ``12 min``."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def named_files(names: Sequence[str]) -> str:
    """Return how many files there are, and what some are called."""
    shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
    return f"{len(names):,} files ({shown})" if len(names) > 1 else shown
