"""How fast a run goes, and whether the loader keeps up with the network."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ..meter import Throughput

Step = TypeVar("Step")

STARVED = 0.1
"""Share of the time spent waiting from which the loader is worth a word."""
_HEARD_AFTER = 10.0  # seconds that such a share must last: the pace of a few steps is noise
_QUIET = 50  # windows after a word; the cause hardly goes away by itself


@dataclass(frozen=True, slots=True)
class Window:
    """What passed between two lines of the run_log."""

    images: int
    seconds: float
    waited: float
    """Seconds of them in which this process waited for its loader."""

    @property
    def images_per_second(self) -> float:
        """Of all processes; 0 for an empty window."""
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting, 0…1."""
        return self.waited / self.seconds if self.seconds > 0 else 0.0

    @property
    def possible_images_per_second(self) -> float:
        """What the network could take if it never waited."""
        busy = self.seconds - self.waited
        return self.images / busy if busy > 0 else float("inf")

    def __add__(self, other: "Window") -> "Window":
        return Window(
            self.images + other.images, self.seconds + other.seconds, self.waited + other.waited
        )


@dataclass(slots=True)
class Pace:
    """Splits the time of the training loop into waiting for data and everything else.

    Each step ends by reading its loss, so that on a GPU too the loop waits for data only while the
    network waits.
    """

    clock: Callable[[], float] = time.perf_counter
    """Seconds."""
    _began: float = 0.0
    _waited: float = 0.0
    _steps: int = 0
    _windows: int = 0
    _recent: Window = field(default_factory=lambda: Window(0, 0.0, 0.0))
    """Since the loader was judged last."""
    _quiet: int = 0
    """Windows for which nothing more is said."""
    _span: Window = field(default_factory=lambda: Window(0, 0.0, 0.0))
    """Since throughput was judged last."""
    _throughput: Throughput = field(default_factory=lambda: Throughput("images"))

    def waited(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Pass on `steps`, and measure how long each has to be waited for.

        The time before the first is the loader's start, and belongs to no window.
        """
        asked: float | None = None
        for step in steps:
            came = self.clock()
            if asked is None:
                self._began = came
            else:
                self._waited += came - asked
            self._steps += 1
            yield step
            asked = self.clock()

    def window(self, images_per_step: int) -> Window:
        """End a window inside a step, and begin the next one.

        Parameters
        ----------
        images_per_step
            Of all processes.
        """
        now = self.clock()
        ended = Window(self._steps * images_per_step, now - self._began, self._waited)
        self._began, self._waited, self._steps = now, 0.0, 0
        self._windows += 1
        return ended

    def restart(self) -> None:
        """Begin a new window, after what was no training: a validation, a checkpoint."""
        self._began, self._waited, self._steps = self.clock(), 0.0, 0

    def waits_for_data(self, window: Window, workers: int, cores: int | None = None) -> str | None:
        """Return what to tell the user when the network waits for data, else None.

        The first window is never judged, and after a word there is silence for some windows.

        Parameters
        ----------
        window
            What `window` returned last.
        workers
            Loader processes of each training process.
        cores
            That this process may use, where that is known.
        """
        if self._windows <= 1:
            return None
        if self._quiet:
            self._quiet -= 1
            return None
        self._recent += window
        recent = self._recent
        if recent.seconds < _HEARD_AFTER:
            return None
        self._recent = Window(0, 0.0, 0.0)
        if recent.data_wait <= STARVED:
            return None
        self._quiet = _QUIET
        known = "" if cores is None else f"; this process may use {cores} cores"
        return (
            f"the network waits for data: {recent.data_wait:.0%} of the last "
            f"{recent.seconds:.0f} s were spent waiting for data; "
            f"{recent.images_per_second:.1f} images/s arrive, the network could take "
            f"{recent.possible_images_per_second:.1f}. Try more train.workers (now {workers}"
            f"{known}), faster storage, or smaller images: docs/how-to.md, 'Slow loader'"
        )

    def collapsed(self, window: Window, workers: int) -> str | None:
        """Return what to tell the user when throughput is 5 times below its median, else None.

        It is reported once. The first window is not judged.

        Parameters
        ----------
        window
            What `window` returned last.
        workers
            Loader processes of each training process.
        """
        if self._windows <= 1:
            return None
        self._span += window
        span = self._span
        if span.seconds < _HEARD_AFTER:
            return None
        self._span = Window(0, 0.0, 0.0)
        fallen = self._throughput.collapsed(span.images, span.seconds)
        if fallen is None:
            return None
        share = f"{span.data_wait:.0%} of that time was spent waiting for data"
        if span.data_wait > 0.5:
            return (
                f"{fallen}. {share}. Likely causes: slow storage or network, other programs on "
                f"these cores, too few train.workers (now {workers}); docs/how-to.md, 'Slow loader'"
            )
        return (
            f"{fallen}. Only {share}: the network itself is slower. Likely causes: another program "
            "on this GPU or CPU, a GPU that is throttled (nvidia-smi), memory that is swapped"
        )
