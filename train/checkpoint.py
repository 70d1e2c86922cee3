"""Checkpoints of a run: a Hugging Face folder plus the training state, published whole.

    RUN/checkpoints/step-00000100/   config.json, model.safetensors, preprocessor_config.json,
                                     taxonomy.json, training_state.pt, digests.json
    RUN/best, RUN/last               relative links; on object stores one-line pointer files

``digests.json`` vouches for the other files. ``last`` moves only after its folder is complete.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import storage
from ..errors import DataError
from ..model.preprocess import Preprocess
from ..model.weights import save_network
from ..taxonomy import Taxonomy

CHECKPOINTS = "checkpoints"
_STATE_NAME = "training_state.pt"
_DIGESTS_NAME = "digests.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back and verified."""

    folder: str
    local: str
    """A local folder with its files, for `model.weights.load_network`."""
    state: Mapping[str, Any]
    """The training state: plain values and tensors."""


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


def save_checkpoint(
    run: str,
    step: int,
    network: nn.Module,
    preprocess: Preprocess,
    taxonomy: Taxonomy,
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint under RUN and move ``last`` to it.

    Parameters
    ----------
    network
        Unwrapped: the names in the files are transformers' own.
    state
        Tensors, numbers, strings and containers of them.
    """
    parent = storage.join(run, CHECKPOINTS)
    target = storage.join(parent, checkpoint_name(step))
    with storage.scratch_folder(parent) as scratch:
        folder = scratch / checkpoint_name(step)
        folder.mkdir()
        save_network(folder, network, preprocess, taxonomy)
        torch.save(dict(state), folder / _STATE_NAME)
        digests = {file.name: storage.sha256(str(file)) for file in sorted(folder.iterdir())}
        (folder / _DIGESTS_NAME).write_text(json.dumps(digests, indent=1) + "\n")
        storage.remove(target)  # of an earlier run that died before 'last' moved
        storage.publish_folder(folder, target, last=_DIGESTS_NAME)
    point(run, "last", step)


def point(run: str, name: str, step: int) -> None:
    """Let ``RUN/best`` or ``RUN/last`` name the checkpoint of `step`, at once or not at all."""
    target = f"{CHECKPOINTS}/{checkpoint_name(step)}"
    if storage.is_remote(run):
        storage.publish_bytes(storage.join(run, name), f"{target}\n".encode())
        return
    link = Path(run.removeprefix("file://")) / name
    temporary = link.with_name(f".tmp-{name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def pointed_step(run: str, name: str) -> int | None:
    """Return the step that ``best`` or ``last`` names; None where there is none."""
    if storage.is_remote(run):
        link = storage.join(run, name)
        if not storage.exists(link):
            return None
        target = storage.read_bytes(link).decode().strip()
    else:
        path = Path(run.removeprefix("file://")) / name
        if not path.is_symlink():
            return None
        target = os.readlink(path)
    return int(target.rpartition("-")[2])


def list_steps(run: str) -> list[int]:
    """Return the steps of all finished checkpoints, ascending."""
    parent = storage.join(run, CHECKPOINTS)
    names = storage.list_folders(parent)
    steps = [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]
    return sorted(
        step
        for step in steps
        if storage.exists(storage.join(parent, checkpoint_name(step), _DIGESTS_NAME))
    )


def load_newest(run: str) -> Checkpoint | None:
    """Return the newest checkpoint whose files all have their digests; None where there is none.

    Raises
    ------
    DataError
        If there are checkpoints, but not one of them verifies.
    """
    steps = list_steps(run)
    problems = []
    for step in reversed(steps):
        try:
            return load_checkpoint(storage.join(run, CHECKPOINTS, checkpoint_name(step)))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("no checkpoint of the run is whole:\n  " + "\n  ".join(problems))
    return None


def load_checkpoint(folder: str) -> Checkpoint:
    """Read a checkpoint and check every file against its digest.

    Raises
    ------
    DataError
        If a file is missing or differs.
    """
    local = storage.fetch_folder(folder)
    digests = json.loads((local / _DIGESTS_NAME).read_bytes())
    for name, digest in digests.items():
        if not (local / name).is_file():
            raise DataError(f"{storage.join(folder, name)}: is missing")
        if storage.sha256(str(local / name)) != digest:
            raise DataError(f"{storage.join(folder, name)}: differs from its digest")
    state = torch.load(local / _STATE_NAME, map_location="cpu", weights_only=True)
    return Checkpoint(folder, str(local), state)


def prune(run: str, keep_last: int) -> None:
    """Remove all but the newest checkpoints; ``best`` and ``last`` are never removed."""
    spared = {pointed_step(run, "best"), pointed_step(run, "last")}
    for step in list_steps(run)[:-keep_last]:
        if step not in spared:
            storage.remove(storage.join(run, CHECKPOINTS, checkpoint_name(step)))
