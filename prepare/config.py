"""Settings of ``cocoseg prepare``."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from ..config import Flag, PathField, PathMarker, Section
from ..shards.config import SplitText


class PrepareConfig(Section):
    """From annotations and images to shards."""

    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(("ann_file", "ann_files", "annotation", "json"), "annotations"),
            **dict.fromkeys(("image_dir", "img_dir", "image_root", "img_prefix"), "images"),
            **dict.fromkeys(("num_workers", "n_workers", "jobs"), "workers"),
            **dict.fromkeys(("shard_size", "maxcount"), "samples_per_shard"),
            **dict.fromkeys(("output_dir", "out"), "output"),
        }
    )

    annotations: Annotated[tuple[PathField, ...], Flag("JSON")] = ()
    """COCO JSON files, each paired with the images at the same place in `images`; none packs the
    images alone, without masks."""
    images: Annotated[tuple[PathField, ...], Flag("DIR")] = ()
    """Image folders, tars or zips, one for each annotation file or folder of masks."""
    masks: Annotated[tuple[PathField, ...], Flag("DIR")] = ()
    """Folders, tars or zips of label images (PNG …) instead of annotations, each paired with the
    images at the same place."""
    image_suffix: Annotated[str, Flag("TEXT")] = ""
    """What the names of images end in before the extension, as '_leftImg8bit'; with `masks`."""
    mask_suffix: Annotated[str, Flag("TEXT")] = ""
    """What the names of label images end in before the extension, as '_gtFine_labelIds'."""
    output: Annotated[PathField | None, Flag("SHARDS")] = None
    """Folder (or URL) that receives the shards."""
    classes: Annotated[
        str, PathMarker(words=("auto", "coco", "voc", "cityscapes")), Flag("auto|coco|FILE")
    ] = "auto"
    """'auto' (COCO's 80 when the categories are COCO's, else the JSON's own; the values of
    `masks`), 'coco', for masks 'voc' or 'cityscapes', or a file."""
    overlap: Annotated[Literal["area", "order"], Flag()] = "area"
    """Where instances overlap: the smaller rasterized area wins, or the later annotation."""
    crowd: Annotated[Literal["paint", "beneath", "ignore", "drop"], Flag()] = "paint"
    """Crowd regions: as any instance, under all others, ignored where alone, or left out."""
    boxes: Annotated[Literal["quarantine", "ignore", "background"], Flag()] = "quarantine"
    """Annotations with a box but no segmentation: leave their images out, mark the box as ignored
    where nothing else is painted, or paint nothing."""
    exif: Annotated[Literal["auto", "apply", "raw"], Flag()] = "auto"
    """Which orientation the annotations mean: the one whose size matches, upright, or as stored."""
    check_images: Annotated[Literal["header", "full"], Flag()] = "header"
    """How images are checked: header and end of the file, or every pixel decoded."""
    split: Annotated[SplitText | None, Flag("NAME=FRACTION,…")] = None
    """Distribute the images over folders below the output: 'train=0.9,val=0.1'."""
    group_by: Annotated[str | None, Flag("REGEX")] = None
    """Regex on the file name; images whose first group (or match) is equal get one split."""
    limit: Annotated[PositiveInt | None, Flag()] = None
    """Number of images to use, chosen by a hash of their keys."""
    only: Annotated[PathField | None, Flag("FILE")] = None
    """List of the images to use, a line each: key, image id or file name, or SHARDS/KEY as
    'cocoseg view' saves it."""
    skip_empty: Annotated[bool, Flag()] = False
    """Leave out images without annotations."""
    max_side: Annotated[PositiveInt | None, Flag()] = None
    """Shrink larger images to this longer side [pixels]; they are encoded again as JPEG."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of images that `max_side` shrinks; colors are not subsampled."""
    samples_per_shard: Annotated[PositiveInt, Flag()] = 1000
    """Images per shard."""
    workers: Annotated[NonNegativeInt, Flag()] = 0
    """Worker processes; 0 means one for each core."""
    engine: Annotated[Literal["local", "ray", "inline"], Flag()] = "local"
    """Where workers run: in processes on this machine, on a Ray cluster ('cocoseg[ray]'), or
    in the command's own process (for debuggers: a crash in a C library ends it)."""
    overwrite: Annotated[bool, Flag()] = False
    """Replace shards of other inputs or settings that the output holds."""
    max_bad: Annotated[NonNegativeInt, Flag()] = 0
    """Number of quarantined images above which the exit code is 4."""

    @field_validator("group_by")
    @classmethod
    def _group_by_compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from None
        return value
