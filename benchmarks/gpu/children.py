"""The processes that run the cases: one that hangs, crashes or spoils its GPU is replaced."""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from measure import Row

_SCRIPT = Path(__file__).with_name("child.py")
_LAST = 2000  # characters of a dead child's output that are shown
_START = 600.0  # seconds for the imports, on a machine that is busy with other work


class Failed(Exception):
    """A case ended without its rows; the text says why."""


class Child:
    """A process that answers requests, each a line of JSON; see `child.py`.

    Parameters
    ----------
    device
        ``cuda`` or ``cpu``.
    environment
        Its environment variables.
    log
        File for what it prints.
    """

    def __init__(self, device: str, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, str(_SCRIPT), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=environment,
                start_new_session=True,  # its loader processes end with it
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()
        self._greeting: dict[str, Any] | None = None

    def greeting(self) -> dict[str, Any]:
        """Return what it says once it has imported everything.

        Raises
        ------
        Failed
            If it does not come so far.
        """
        if self._greeting is None:
            self._greeting = self._next(time.monotonic() + _START)
        return self._greeting

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def ask(self, request: Mapping[str, Any]) -> None:
        """Send a request; several may be open.

        Raises
        ------
        Failed
            If it is dead.
        """
        self._write(json.dumps(request))

    def say_turn(self, function: str) -> None:
        """Let a case measure that waits in `Bench.turn`.

        Raises
        ------
        Failed
            If it is dead.
        """
        self._write(f"turn {function}")

    def rows(self, deadline: float) -> Iterator[Row]:
        """Yield the rows of the oldest open request.

        Raises
        ------
        Failed
            If the case fails, or the process; it is ended after `deadline`, and if it sends
            anything else than answers.
        """
        while True:
            answer = self._next(deadline)
            if answer.get("ends"):
                self.end()  # it does so by itself, but may take long, or hang
            if "failure" in answer:
                sys.stderr.write(str(answer.get("traceback", "")))
                raise Failed(str(answer["failure"]))
            if "done" in answer:
                return
            try:
                row = _row(answer["row"])
            except (KeyError, TypeError):
                raise self._no_answer(json.dumps(answer)) from None
            yield row

    def end(self) -> None:
        """End it and its own children, whatever they are doing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._died()) from None

    def _next(self, deadline: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            self.end()
            raise Failed("timed out") from None
        if line is None or not line.endswith("\n"):  # it died, perhaps while it wrote
            self._lines.put(None)  # whoever asks next must not wait for more
            raise Failed(self._died())
        try:
            answer = json.loads(line)
        except ValueError:
            raise self._no_answer(line) from None
        if not isinstance(answer, dict):
            raise self._no_answer(line)
        return answer

    def _no_answer(self, text: str) -> Failed:
        """End it, as nobody knows what its next line would belong to."""
        self.end()
        return Failed(f"the process sent something that is not an answer: {text.strip()[:200]}")

    def _died(self) -> str:
        code = self._process.wait()
        text = self.log.read_text(errors="replace")[-_LAST:]
        sys.stderr.write(text)
        lines = text.strip().splitlines()
        return f"the process ended with exit code {code}: {lines[-1] if lines else 'no output'}"

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


def _row(content: Any) -> Row:
    """Return the row that was sent; a TypeError says that it is not one."""
    row = Row(**content)
    *texts, met = dataclasses.astuple(row)
    if not all(isinstance(text, str) for text in texts) or not isinstance(met, bool | None):
        raise TypeError
    return row
