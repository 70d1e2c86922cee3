"""What a checkpoint's weights began from, and which data they have seen."""

import hashlib
import os
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import DataError
from ..model import registry
from ..storage import locate
from .layout import STATE_NAME, is_bare
from .network import LoadedNetwork
from .state import read_state

_REMEDY = "remove it to export the weights without their provenance"


@dataclass(frozen=True, slots=True)
class Provenance:
    """As far as it is recorded."""

    base_model: str | None = None
    """The hub's name of the weights that training began from, or that were taken as they are."""
    weights: Literal["random", "nvlabs", "other", "unknown"] = "unknown"
    """What training began from: random weights, NVlabs' SegFormer, others of the hub that are no
    SegFormer, or nobody knows (other SegFormers of the hub may well go back to NVlabs')."""
    data_digest: str | None = None
    """SHA-256, in hex, of the SHA-256s of all training shards in their order, one a line."""
    shards: int = 0
    step: int | None = None
    """Optimizer steps done."""

    @classmethod
    def of(cls, loaded: LoadedNetwork) -> "Provenance":
        """Read the training state that lies beside a checkpoint, without its tensors.

        Raises
        ------
        DataError
            If there is one, and it cannot be read.
        """
        network: Any = loaded.network
        segformer = network.config.model_type == "segformer"
        if is_bare(loaded.origin):
            return cls()
        origin = locate(loaded.origin)
        if not origin.is_dir():
            return cls(loaded.origin, _kind(loaded.origin, segformer=segformer))
        file = origin / STATE_NAME
        if not file.is_file():
            return cls()
        try:
            state = read_state(file, lazy=True)
            name = str(state.settings["model.name"])
            shards = [str(digest) for digest in state.identity["shards"]]
        except KeyError as error:
            raise DataError(f"{file}: does not contain {error}; {_REMEDY}") from None
        except DataError as error:
            raise DataError(f"{origin}: {error}; {_REMEDY}") from None
        kind = _kind(name, segformer=segformer)
        known = kind in ("nvlabs", "other") or _on_hub(name)
        digest = hashlib.sha256("\n".join(shards).encode()).hexdigest()
        return cls(name if known else None, kind, digest, len(shards), state.step)


def _kind(name: str, *, segformer: bool) -> Literal["random", "nvlabs", "other", "unknown"]:
    if registry.is_random(name):
        return "random"
    if not _on_hub(name):
        return "unknown"
    if name.lower().startswith("nvidia/"):
        return "nvlabs"
    return "unknown" if segformer else "other"


def _on_hub(name: str) -> bool:
    """Return whether a model's name is one of the hub, OWNER/NAME; paths are absolute in a run."""
    parts = name.split("/")
    return (
        len(parts) == 2
        and all(parts)
        and parts[0] not in (".", "..", "~")
        and not (locate(name).remote or os.path.exists(name))
    )
