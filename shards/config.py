"""Settings of ``cocoseg index``, and of every command that reads shards."""

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ByteSize, NonNegativeInt

from ..config import Flag, PathField, PathMarker, Section


class ReadConfig(Section):
    """Where the bytes of shards come from; local folders are read in place."""

    remote: Literal["cache", "range"] = "cache"
    """Shards in an object store: fetch each whole into `cache_dir`, once a machine, or read every
    sample by a request of its own."""
    cache_dir: PathField = "~/.cache/cocoseg"
    """Folder of fetched shards and indices, which processes and runs share."""
    cache_bytes: ByteSize = ByteSize(64_000_000_000)
    """Most bytes of shards in `cache_dir` ('200GB'); the longest unused go first."""


def _adds_up(split: str) -> str:
    parse_split(split)
    return split


SplitText = Annotated[str, AfterValidator(_adds_up)]
"""``train=0.9,val=0.1``; see `parse_split`."""


class IndexConfig(Section):
    """From shards that another program wrote to ones that can be trained on."""

    classes: Annotated[str | None, PathMarker(words=("coco",)), Flag("coco|FILE")] = None
    """Classes of the train ids in the masks: 'coco' (81 classes), or a YAML or JSON file with the
    names in train-id order."""
    exif: Annotated[Literal["auto", "apply", "raw"], Flag()] = "auto"
    """Which orientation the masks follow: the one whose size matches, upright, or as stored."""
    split: Annotated[SplitText | None, Flag("NAME=FRACTION,…")] = None
    """Distribute whole shards, by a hash of their names, over folders below: 'train=0.9,val=0.1'.
    The folders hold hard links to them."""
    workers: Annotated[NonNegativeInt | None, Flag()] = None
    """Worker processes; 0 and 1 mean the command's own process; by default one per core."""


def parse_split(text: str) -> dict[str, float]:
    """Read ``train=0.9,val=0.1``.

    Returns
    -------
    dict
        Folder name → fraction of the images, in the order given; they add up to 1.

    Raises
    ------
    ValueError
        If it says anything else.
    """
    fractions: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            fraction = float(number)
        except ValueError:
            fraction = math.nan
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name) or name in fractions or not fraction > 0:
            raise ValueError(f"{part.strip()!r}: write it as train=0.9,val=0.1")
        fractions[name] = fraction
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise ValueError(f"the fractions add up to {sum(fractions.values()):g}, not to 1")
    return fractions
