"""Settings of ``cocoseg prepare``."""

from typing import Annotated, Literal

from pydantic import NonNegativeInt, PositiveInt

from ..config import PathField, PathMarker, Section


class PrepareConfig(Section):
    """From annotations and images to shards."""

    annotations: tuple[PathField, ...] = ()
    """COCO JSON files, each paired with the folder at the same place in `images`."""
    images: tuple[PathField, ...] = ()
    """Image folders, one for each annotation file."""
    output: PathField | None = None
    """Folder (or URL) that receives the shards."""
    classes: Annotated[str, PathMarker(words=("auto", "coco"))] = "auto"
    """'auto' (COCO's 80 when the categories are COCO's, else the JSON's own), 'coco', or a YAML
    file."""
    overlap: Literal["area", "order"] = "area"
    """Where instances overlap: the smaller rasterized area wins, or the later annotation."""
    crowd: Literal["paint", "beneath", "ignore", "drop"] = "paint"
    """Crowd regions: as any instance, under all others, ignored where alone, or left out."""
    exif: Literal["auto", "apply", "raw"] = "auto"
    """Which orientation the annotations mean: the one whose size matches, upright, or as stored."""
    samples_per_shard: PositiveInt = 1000
    """Images a shard."""
    workers: NonNegativeInt = 0
    """Worker processes; 0 means one for each core."""
    engine: Literal["local", "ray"] = "local"
    """Where the workers run: processes on this machine, or a Ray cluster ('cocoseg[ray]')."""
    max_bad: NonNegativeInt = 0
    """Quarantined images beyond which the exit code is 4."""
