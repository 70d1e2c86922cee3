"""How far a command is: a bar on a terminal, a log line every 30 seconds, or a function."""

import logging
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tqdm import tqdm

log = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two lines."""
_COLLAPSED = 5.0  # times below its median, from which throughput is reported
_ENOUGH = 5  # spans of time before one is judged: the median of fewer is noise
_REMEMBERED = 1000  # of them

monotonic: Callable[[], float] = time.monotonic
"""The clock [s]; tests set another."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a command is."""

    what: str
    """The command: ``prepare``, ``train`` … or ``validation``."""
    done: int
    total: int
    unit: str
    """What is counted, in the singular: ``image``, ``step`` …"""
    facts: Mapping[str, str]
    """What is known beside: the loss, say."""


ShowProgress = bool | Callable[[Advance], None]
"""False shows nothing, True a bar or lines on stderr; a function is called after each advance."""


class Throughput:
    """Notices, once, that throughput has collapsed: it is 5 times below its own median.

    Parameters
    ----------
    unit
        In the plural.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._rates: deque[float] = deque(maxlen=_REMEMBERED)
        self._reported = False

    def collapsed(self, count: float, seconds: float) -> str | None:
        """Return what to report about a span of time, or None.

        Parameters
        ----------
        count
            What was done in it: images, say.
        seconds
            Its length; the spans should be about equal.
        """
        if self._reported or seconds <= 0:
            return None
        rate = count / seconds
        usual = statistics.median(self._rates) if len(self._rates) >= _ENOUGH else 0.0
        self._rates.append(rate)
        if rate * _COLLAPSED >= usual:
            return None
        self._reported = True
        return (
            f"throughput fell to {rate:.3g} {self._unit}/s in the last {seconds:.0f} s; its median "
            f"is {usual:.3g}"
        )


class Meter:
    """Shows on stderr how far a command is.

    Parameters
    ----------
    what
        The command: lines begin with it.
    total
        What there is to do, in units; `initial` of it is done already.
    unit
        In the singular.
    show
        How it is shown.
    slow
        The likely causes of a collapse of throughput, which is then reported; without, it is not.
    leave
        Whether the bar stays on the terminal at the end.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        show: ShowProgress,
        *,
        initial: int = 0,
        slow: str = "",
        leave: bool = True,
    ) -> None:
        shown = show is True
        self._call = None if isinstance(show, bool) else show
        self.shown = show is not False
        """Whether anything is shown."""
        terminal = sys.stderr.isatty()
        self._what, self._total, self._unit, self._slow = what, total, unit, slow
        self._bar = tqdm(
            total=total, initial=initial, unit=unit, leave=leave, disable=not (shown and terminal)
        )
        self._lines = shown and not terminal
        self._written = False
        self._throughput = Throughput(f"{unit}s")
        self._facts: dict[str, str] = {}
        self._first = self._before = self._done = initial
        self._began = self._since = monotonic() if self.shown else 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._written and error is None:
            taken = tqdm.format_interval(monotonic() - self._began)
            log.info(
                "%s: %s of %s %ss in %s", self._what, self._done, self._total, self._unit, taken
            )

    def note(self, **facts: object) -> None:
        """Set what is shown beside the count, by name."""
        if self.shown:
            self._facts = {name: str(value) for name, value in facts.items()}
            self._bar.set_postfix(self._facts, refresh=False)

    def update(self, count: int = 1) -> None:
        """Count what was done since the last call."""
        self.reach(self._done + count)

    def reach(self, done: int) -> None:
        """Set what is done in all; it may be less than before, where work was lost."""
        if not self.shown:
            return
        self._bar.update(done - self._done)
        self._done = done
        if self._call is not None:
            self._call(Advance(self._what, done, self._total, self._unit, self._facts))
        now = monotonic()
        if now - self._since < EVERY:
            return
        count, seconds = done - self._before, now - self._since
        self._before, self._since = done, now
        if self._lines:
            log.info("%s", self._line(count / seconds, now))
            self._written = True
        fallen = self._throughput.collapsed(count, seconds) if self._slow else None
        if fallen:
            log.warning("%s: %s. Likely causes: %s", self._what, fallen, self._slow)

    def _line(self, rate: float, now: float) -> str:
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        parts = [f"{self._done}/{self._total} {self._unit}s{share}"]
        parts += [f"{name} {value}" for name, value in self._facts.items()]
        parts.append(f"{rate:.3g} {self._unit}s/s")
        done, left = self._done - self._first, self._total - self._done
        if done > 0 and left > 0:
            parts.append(f"ETA {tqdm.format_interval(left * (now - self._began) / done)}")
        return f"{self._what}: {', '.join(parts)}"
