"""What a run writes for people: ``metrics.jsonl`` and TensorBoard, by rank 0 alone."""

import contextlib
import json
import logging
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from ..checkpoint.layout import METRICS, TENSORBOARD
from ..checkpoint.save import explained
from ..errors import CocosegError
from ..storage import LocalPath, Location
from ..storage.local import sync_file
from ..storage.lock import temporary_folder

log = logging.getLogger(__name__)

_SCORES = "val"  # how the names of what validation found begin, pictures' too


class RunLog:
    """Append-only records of a run.

    A resumed run first forgets what lies beyond its checkpoint, so that no step is told twice. For
    a run on an object store the files grow locally and are copied at every checkpoint.

    Parameters
    ----------
    run
        Folder or URL of the run.
    step
        Optimizer steps that are done; what was written of later ones is dropped.
    validated
        The step whose scores are known; those of later ones (``val…``) are dropped.

    Raises
    ------
    CocosegError
        Here and in every method, if the disk is full or the files cannot be written.
    """

    def __init__(self, run: Location, step: int, validated: int) -> None:
        self.run = run
        self._staging = contextlib.ExitStack()
        """Removes the local files of a run on an object store."""
        with explained(run):
            kept = _forget_lines(run / METRICS, step, validated)
            _forget_events(run / TENSORBOARD, step, validated)
            if isinstance(run, LocalPath):
                self._local = Path(run)
            else:
                self._local = self._staging.enter_context(temporary_folder())
                (self._local / METRICS).write_bytes(kept)
            self._file = open(self._local / METRICS, "a", encoding="utf-8")  # noqa: SIM115
            # A TensorBoard that has the dropped events in memory forgets them by the purge step.
            self._board = SummaryWriter(str(self._local / TENSORBOARD), purge_step=step + 1)

    def write(self, step: int, **values: Any) -> None:
        """Record values after `step` optimizer steps.

        Parameters
        ----------
        values
            Numbers, texts, None, and lists and mappings of them. A number that is not finite
            becomes null in ``metrics.jsonl``. Numbers also go to TensorBoard, those of a mapping as
            ``name/key``.
        """
        with explained(self.run):
            line = json.dumps({"step": step, **_finite(values)}, allow_nan=False)
            self._file.write(line + "\n")
            self._file.flush()
            for name, value in _scalars(values):
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Show an image, uint8 RGB of shape (H, W, 3), in TensorBoard under a name."""
        with explained(self.run):
            self._board.add_image(name, image, step, dataformats="HWC")

    def settings(self, step: int, text: str) -> None:
        """Show the settings, YAML, in TensorBoard as text; they hold from `step` on."""
        with explained(self.run):
            indented = "".join(f"    {line}\n" for line in text.splitlines())  # code, in Markdown
            self._board.add_text("settings", indented, step)

    def flush(self) -> None:
        """Bring everything written so far safely to the disk."""
        with explained(self.run):
            self._board.flush()
            for file in self._files():
                sync_file(file)

    def upload(self) -> None:
        """Copy the files to where the run lives, if that is an object store.

        No run ends where that fails.
        """
        try:
            self._upload()
        except CocosegError as error:
            log.warning("%s; the next checkpoint tries again", error)

    def close(self) -> None:
        """Finish the files."""
        with explained(self.run):
            self._board.close()
            self._file.close()
        try:
            self._upload()
        except CocosegError as error:
            kept = tempfile.mkdtemp(prefix="cocoseg-kept-")
            for file in (self._local / METRICS, self._local / TENSORBOARD):
                shutil.move(file, kept)
            log.warning("%s; %s and %s are kept in %s", error, METRICS, TENSORBOARD, kept)
        self._staging.close()

    def _files(self) -> list[Path]:
        return [self._local / METRICS, *(self._local / TENSORBOARD).glob("*")]

    def _upload(self) -> None:
        if not self.run.remote:
            return
        with explained(self.run):
            for file in self._files():
                name = file.relative_to(self._local).as_posix()
                (self.run / name).publish_bytes(file.read_bytes())


def _forget_lines(file: Location, step: int, validated: int) -> bytes:
    """Drop later lines of ``metrics.jsonl``, and the half line of a killed run; return the rest."""
    content = file.read_bytes() if file.exists() else b""
    lines = [line for line in content.split(b"\n") if _is_kept(line, step, validated)]
    kept = b"".join(line + b"\n" for line in lines)
    if kept != content or not content:
        file.publish_bytes(kept)
    return kept


def _is_kept(line: bytes, step: int, validated: int) -> bool:
    try:
        values = json.loads(line)
        at = float(values["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return False
    return at <= (validated if any(name.startswith(_SCORES) for name in values) else step)


def _forget_events(folder: Location, step: int, validated: int) -> None:
    """Drop later values from TensorBoard's files, and the half record of a killed run.

    A purge step alone does not do: TensorBoard's fast loader, its default, does not look at it.
    """
    for name in folder.list_files():
        content = (folder / name).read_bytes()
        kept = b"".join(
            record for record in _records(content) if not _is_later(record, step, validated)
        )
        if kept != content:
            (folder / name).publish_bytes(kept)


_HEAD, _TAIL = 12, 4  # uint64 length and its CRC before the event, the event's CRC behind it


def _records(content: bytes) -> Iterator[bytes]:
    """Yield the whole records of an event file.

    Source: TensorFlow, "TFRecord and tf.train.Example", the format's four fields.
    """
    start = 0
    while start + _HEAD <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + _HEAD + length + _TAIL
        if end > len(content):
            return
        yield content[start:end]
        start = end


def _is_later(record: bytes, step: int, validated: int) -> bool:
    try:
        event = Event.FromString(record[_HEAD:-_TAIL])
    except DecodeError:  # of a damaged disk: TensorBoard would stop at it
        return True
    if not event.HasField("summary"):
        return False
    of_scores = any(value.tag.startswith(_SCORES) for value in event.summary.value)
    return bool(event.step > (validated if of_scores else step))


def _finite(value: Any) -> Any:
    """Return a value as JSON has it: what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, float):  # np.float64 among them
        return float(value) if math.isfinite(value) else None
    return value


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", value
