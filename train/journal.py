"""What a run writes for people: ``metrics.jsonl`` and TensorBoard, by rank 0 alone."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from .. import storage

_METRICS_NAME = "metrics.jsonl"
_TENSORBOARD = "tensorboard"


class Journal:
    """Append-only records of a run.

    A resumed run first forgets what lies beyond its checkpoint, so that no step is told twice. For
    a run on an object store the files grow locally and are copied at every checkpoint.

    Parameters
    ----------
    run
        Folder or URL of the run.
    step
        Optimizer steps that are done; later lines are dropped.
    """

    def __init__(self, run: str, step: int) -> None:
        self.run = run
        self._staging = tempfile.mkdtemp(prefix="cocoseg-run-") if storage.is_remote(run) else None
        self._local = Path(self._staging or run.removeprefix("file://"))
        url = storage.join(run, _METRICS_NAME)
        lines = storage.read_bytes(url).decode().splitlines() if storage.exists(url) else []
        kept = [line for line in lines if _step_of(line) <= step]
        storage.publish_bytes(url, "".join(f"{line}\n" for line in kept).encode())
        if self._staging:
            (self._local / _METRICS_NAME).write_text("".join(f"{line}\n" for line in kept))
        self._file = open(self._local / _METRICS_NAME, "a", encoding="utf-8")  # noqa: SIM115
        self._board = SummaryWriter(str(self._local / _TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, **values: Any) -> None:
        """Record values after `step` optimizer steps; numbers also go to TensorBoard."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(name, value, step)

    def publish(self) -> None:
        """Bring everything written so far to where the run lives."""
        self._board.flush()
        if self._staging:
            for file in self._local.rglob("*"):
                if file.is_file():
                    name = file.relative_to(self._local).as_posix()
                    storage.publish_bytes(storage.join(self.run, name), file.read_bytes())

    def close(self) -> None:
        """Finish the files."""
        self._board.close()
        self._file.close()
        self.publish()
        if self._staging:
            shutil.rmtree(self._staging)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # the half line of a killed run
