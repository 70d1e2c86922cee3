"""Ctrl-C and SIGTERM during training: finish the step, save, then end."""

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Notes the first signal; a second one, or any outside of `postponed`, ends at once.

    A context manager for the main thread; in other threads it changes nothing.
    """

    def __init__(self) -> None:
        self.came = False
        """Whether the run should end at the next opportunity."""
        self.postponed = False
        """Whether there is something to save first."""
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
        if self.came or not self.postponed:
            raise KeyboardInterrupt
        self.came = True
