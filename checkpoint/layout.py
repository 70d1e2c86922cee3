"""Where a run keeps its checkpoints, how their files are called, and which of them is meant.

    RUN/checkpoints/step-00000100/   config.json, model.safetensors, preprocessor_config.json,
                                     taxonomy.json, training_state.pt, digests.json
    RUN/metrics.jsonl, RUN/tensorboard
                                     what the run recorded
    RUN/best, RUN/last               relative links; on object stores one-line pointer files

A command accepts a run, a checkpoint folder, a lone file of weights, or a name of the hub.
"""

import errno
import os
import re

from ..errors import ConfigError
from ..storage import LocalPath, Location, locate

NETWORK_NAME = "config.json"
PREPROCESS_NAME = "preprocessor_config.json"
TAXONOMY_NAME = "taxonomy.json"
STATE_NAME = "training_state.pt"
"""Optimizer and progress; beside the weights in a checkpoint of a run."""
DIGESTS_NAME = "digests.json"
"""SHA-256 of the other files; without it a checkpoint is not finished."""
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
"""Folder of what a run records for TensorBoard."""
WEIGHT_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
"""Of lone files of weights."""

_FOLDER = re.compile(r"step-(\d{8,})")
_OF_A_RUN = re.compile(r"best|last|checkpoints|step-\d+|.*\.(safetensors|bin|ckpt|json|onnx|pt2)")
"""Last parts of paths that are never models of the hub."""


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


def folder_of(run: Location, step: int) -> Location:
    """Return where the checkpoint after `step` optimizer steps is, or would be."""
    return run / CHECKPOINTS / checkpoint_name(step)


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint; None if it is not one's."""
    found = _FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def list_steps(run: Location) -> list[int]:
    """Return the steps of all finished checkpoints, ascending; they may be damaged since."""
    return [step for step in all_steps(run) if (folder_of(run, step) / DIGESTS_NAME).exists()]


def all_steps(run: Location) -> list[int]:
    """Return the steps of all checkpoints, ascending, finished or not."""
    steps = map(step_of, (run / CHECKPOINTS).list_folders())
    return sorted(step for step in steps if step is not None)


def pointed_step(run: Location, name: str) -> int | None:
    """Return the step that ``best`` or ``last`` names; None where there is none."""
    pointer = run / name
    if isinstance(pointer, LocalPath):
        target = os.readlink(pointer) if os.path.islink(pointer) else ""
    else:
        target = pointer.read_bytes().decode(errors="replace") if pointer.exists() else ""
    return step_of(target.strip().rpartition("/")[2])


def is_bare(checkpoint: str) -> bool:
    """Return whether it is a file of weights, which knows neither its network nor its classes."""
    return checkpoint.endswith(WEIGHT_SUFFIXES)


def find_checkpoint(checkpoint: str) -> str:
    """Return the folder, file or name of the hub that is meant; nothing is loaded.

    Of a run it is what ``best``, else ``last``, points to.

    Raises
    ------
    ConfigError
        If a file or folder is not there, or is none of a network; the hub is not asked.
    """
    if is_bare(checkpoint):
        if not locate(checkpoint).is_file():
            raise ConfigError(f"--checkpoint {checkpoint}: no such file")
        return checkpoint
    found = _resolve_run(locate(checkpoint))
    if found.is_dir():
        if isinstance(found, LocalPath) and not os.access(found, os.X_OK):
            raise ConfigError(f"--checkpoint {checkpoint}: {os.strerror(errno.EACCES)}")
        if not (found / NETWORK_NAME).exists():
            raise ConfigError(
                f"--checkpoint {checkpoint}: holds no {NETWORK_NAME}: it is neither a run nor a "
                "folder that transformers saved"
            )
    elif found.exists():
        raise ConfigError(
            f"--checkpoint {checkpoint}: is a file; give a run, a checkpoint folder, or a file of "
            f"weights ({', '.join(WEIGHT_SUFFIXES)})"
        )
    elif not may_be_on_hub(found.url):
        raise ConfigError(f"--checkpoint {checkpoint}: no such folder")
    return found.url


def has_processor(checkpoint: str) -> bool:
    """Return whether a checkpoint brings its own sizes; a name of the hub is not looked up."""
    found = locate(find_checkpoint(checkpoint))
    return not found.is_dir() or (found / PREPROCESS_NAME).is_file()


def may_be_on_hub(name: str) -> bool:
    """Return whether a name may be OWNER/NAME of the hub.

    It is not if OWNER is a local folder, or NAME is one that the checkpoints of runs have.
    """
    owner, slash, model = name.partition("/")
    if not (owner and slash and model) or "/" in model or locate(name).remote:
        return False
    return not (os.path.isdir(owner) or _OF_A_RUN.fullmatch(model))


def _resolve_run(checkpoint: Location) -> Location:
    for name in ("best", "last"):
        link = checkpoint / name
        if not link.exists():
            continue
        if link.is_dir():
            return link
        return checkpoint / link.read_bytes().decode(errors="replace").strip()
    if (checkpoint / CHECKPOINTS).is_dir():
        raise ConfigError(f"--checkpoint {checkpoint}: is a run without a finished checkpoint yet")
    return checkpoint
