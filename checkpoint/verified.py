"""Checkpoints read back: every file is compared with its digest before any is used."""

import contextlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import CocosegError, DataError, StoreError
from ..storage import Location, locate
from .layout import (
    DIGESTS_NAME,
    NETWORK_NAME,
    PREPROCESS_NAME,
    STATE_NAME,
    TAXONOMY_NAME,
    step_of,
)
from .state import TrainingState, read_state

NEEDED = (STATE_NAME, NETWORK_NAME, PREPROCESS_NAME, TAXONOMY_NAME)
"""Files of every checkpoint, beside the weights."""
_FILE = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back and verified."""

    folder: str
    local: str
    """A local folder with its files, for `load_network`."""
    state: TrainingState


@contextlib.contextmanager
def open_checkpoint(folder: Location) -> Iterator[Checkpoint]:
    """Read a checkpoint and check every file against its digest.

    Raises
    ------
    DataError
        If a file is missing, differs from its digest or cannot be read.
    StoreError
        If the object store does not answer.
    """
    with contextlib.ExitStack() as fetched:
        try:
            try:
                local = fetched.enter_context(folder.fetched())
            except OSError as error:
                if not folder.remote:
                    raise
                raise StoreError(
                    f"{folder}: cannot be copied to {tempfile.gettempdir()}: "
                    f"{error.strerror or error}; set TMPDIR to a folder with more room"
                ) from None
            state = _verified_state(local, folder.name)
        except StoreError:
            raise
        except CocosegError as error:
            raise DataError(f"{folder}: {error}") from None
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror or error}") from None
        yield Checkpoint(str(folder), str(local), state)


def _verified_state(local: Path, name: str, *, lazy: bool = False) -> TrainingState:
    """Return the training state of a whole checkpoint; `lazy` leaves tensors on the disk."""
    for file, digest in _digests(locate(local)).items():
        if not (local / file).is_file():
            raise DataError(f"{file} is missing")
        if locate(local / file).sha256() != digest:
            raise DataError(f"{file} differs from its digest")
    state = read_state(locate(local / STATE_NAME), lazy=lazy)
    if state.step != step_of(name):
        raise DataError(f"{STATE_NAME} is of step {state.step}")
    return state


def _digests(folder: Location) -> dict[str, object]:
    """Return file name → SHA-256 [hex], of at least what every checkpoint has."""
    file = folder / DIGESTS_NAME
    if not file.exists():
        raise DataError(f"{DIGESTS_NAME} is missing")
    try:
        digests = file.read_json()
    except DataError:
        raise DataError(f"{DIGESTS_NAME} is damaged") from None
    if (
        not isinstance(digests, dict)
        or not digests.keys() >= set(NEEDED)
        or not any(name.endswith(".safetensors") for name in digests)
        or not all(map(_FILE.fullmatch, digests))
    ):
        raise DataError(f"{DIGESTS_NAME} is damaged")
    return digests


def is_whole(folder: Location) -> bool:
    """Return whether a checkpoint verifies; on an object store, whether its files are there."""
    try:
        if folder.remote:
            return _digests(folder).keys() <= folder.list_files().keys()
        _verified_state(Path(folder.url), folder.name, lazy=True)
    except StoreError:
        raise
    except (OSError, CocosegError):
        return False
    return True
