"""The training state of a checkpoint: everything but the network that a run is resumed from."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import DataError, first_line
from ..storage import LocalPath, Location
from .layout import STATE_NAME


@dataclass(slots=True)
class TrainingProgress:
    """Where a run stands."""

    step: int = 0
    """Optimizer steps done."""
    validated: int = 0
    """The step after which validation was done last."""
    best_score: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Validations since the best."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    overflows: int = 0
    loss_sum: float = 0.0
    """Of the steps since the last line of the journal that learnt something."""
    loss_steps: int = 0
    scored_on: str | None = None
    """Digest of the validation shards of the best score."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """What ``training_state.pt`` holds: plain values and tensors, under the names of the fields."""

    progress: TrainingProgress
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    """Of the loss; empty where it is not scaled."""
    bad_samples: Sequence[dict[str, Any]]
    """See `BadSamples.state_dict`."""
    total_steps: int
    """Optimizer steps of the whole run, as it was planned."""
    identity: Mapping[str, Any]
    """What a run must share with the one that it resumes; see `RunPlan.identity`."""
    settings: Mapping[str, Any]
    """``section.key`` → value of what decides the run."""
    raw_weights: Mapping[str, torch.Tensor] | None = None
    """The network's, where the folder holds their moving average; else None."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.raw_weights is None:
            del content["raw_weights"]
        return {**content, "progress": dataclasses.asdict(self.progress), "step": self.step}

    @classmethod
    def from_dict(cls, content: object) -> "TrainingState":
        """Take apart the content of a file.

        Raises
        ------
        DataError
            If it is not a training state, or lacks something.
        """
        if not isinstance(content, dict):
            raise DataError("contains no training state")
        fields: dict[str, Any] = {
            field.name: content.get(field.name) for field in dataclasses.fields(cls)
        }
        for name, value in fields.items():
            if value is None and name != "raw_weights":
                raise DataError(f"does not contain {name!r}; another version of cocoseg wrote it")
        try:
            progress = TrainingProgress(**fields.pop("progress"))
        except TypeError as error:
            raise DataError(f"another version of cocoseg wrote it: {first_line(error)}") from None
        if content.get("step") != progress.step:
            raise DataError(f"is of step {content.get('step')} and of step {progress.step}")
        return cls(progress=progress, **fields)


def read_state(file: Location, *, lazy: bool = False) -> TrainingState:
    """Read a training state; no object but tensors and plain values is unpickled.

    Parameters
    ----------
    lazy
        Leave the tensors of a local file on the disk.

    Raises
    ------
    DataError
        If it cannot be read or lacks something; names the file.
    """
    stored: Any = file if isinstance(file, LocalPath) else io.BytesIO(file.read_bytes())
    try:
        content = torch.load(
            stored,
            map_location="cpu",
            weights_only=True,
            mmap=lazy and isinstance(file, LocalPath),
        )
    except Exception as error:  # unpickling a hostile or broken file raises anything
        raise DataError(f"{STATE_NAME} cannot be read: {first_line(error)}") from None
    try:
        return TrainingState.from_dict(content)
    except DataError as error:
        raise DataError(f"{STATE_NAME} {error}") from None
