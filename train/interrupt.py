"""Ctrl-C and SIGTERM during training: finish the step, save, then end."""

import signal
import threading
import time
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ECHO = 2.0  # seconds: who signals all processes, and torchrun, which passes it on, do so twice


class Interrupts:
    """Notes the first signal; a later one (no echo), or any outside of `postponed`, ends at once.

    A context manager for the main thread; in other threads it changes nothing.
    """

    def __init__(self) -> None:
        self.came = False
        """Whether the run should end at the next opportunity."""
        self.postponed = False
        """Whether there is something to save first."""
        self._first = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.postponed or (self.came and now - self._first > _ECHO):
            raise KeyboardInterrupt
        if not self.came:
            self.came, self._first = True, now
