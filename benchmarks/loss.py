"""The loss: freed memory returned to the system, or kept."""

import subprocess
import sys
from collections.abc import Iterator

from measure import Row

_LOSS = """
import statistics, sys, time, torch
from cocoseg.processes import keep_freed_memory
from cocoseg.train.losses import ce_dice
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.manual_seed(0)
small = torch.randn(8, 81, 40, 40)
target = torch.randint(0, 81, (8, 4, 4)).repeat_interleave(40, 1).repeat_interleave(40, 2)
times = []
for _ in range(16):
    start = time.perf_counter()
    logits = small.clone().requires_grad_()
    up = torch.nn.functional.interpolate(logits, (160, 160), mode="bilinear")
    ce_dice(up, target, 255).mean(torch.tensor(1e5), torch.tensor(8.0)).backward()
    times.append(time.perf_counter() - start)
print(statistics.median(times[1:]))
"""


def rows() -> Iterator[Row]:
    """Measure ce_dice with freed memory returned to the system, and kept."""
    returned, kept = (1000 * _seconds(flag) for flag in ("returned", "kept"))
    what = "ce_dice forward and backward, 8 × 81 × 160²: freed memory returned / kept"
    yield Row.speed(what, returned, kept, None, "ms")


def _seconds(memory: str) -> float:
    """Return the seconds of one loss in a process of its own, as the setting is the process's."""
    done = subprocess.run(
        [sys.executable, "-c", _LOSS, memory], capture_output=True, text=True, check=True
    )
    return float(done.stdout)
