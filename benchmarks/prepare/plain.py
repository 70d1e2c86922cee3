"""The plain way from COCO to shards, as people write it: the yardstick.

    python plain.py ANNOTATIONS IMAGES OUTPUT

`COCO`, `annToMask`, boolean paint, Pillow's PNG, `ShardWriter`. Larger instances first by the
JSON's `area`, which costs nothing and is right on COCO.
"""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO


def load(annotations: Path) -> COCO:
    """Load a COCO JSON, without its chatter."""
    with open(os.devnull, "w") as silence, contextlib.redirect_stdout(silence):
        return COCO(str(annotations))


def train_ids(coco: COCO) -> dict[int, int]:
    """Return train ids by category id: from 1 on, in ascending id."""
    return {category: i for i, category in enumerate(sorted(coco.getCatIds()), start=1)}


def paint(coco: COCO, image: dict[str, Any], ids: dict[int, int]) -> NDArray[np.uint8]:
    """Paint the mask of one image."""
    mask = np.zeros((image["height"], image["width"]), np.uint8)
    found = coco.loadAnns(coco.getAnnIds(image["id"]))
    for annotation in sorted(found, key=lambda one: -one["area"]):
        mask[coco.annToMask(annotation).astype(bool)] = ids[annotation["category_id"]]
    return mask


def encode(mask: NDArray[np.uint8]) -> bytes:
    """Encode a mask as Pillow does by default."""
    png = io.BytesIO()
    Image.fromarray(mask).save(png, "PNG")
    return png.getvalue()


def prepare(annotations: Path, images: Path, output: Path) -> None:
    """Do all of it."""
    coco = load(annotations)
    ids = train_ids(coco)
    output.mkdir(parents=True)
    with wds.ShardWriter(f"{output}/plain-%06d.tar", maxcount=1000, verbose=0) as sink:
        for image in coco.loadImgs(coco.getImgIds()):
            sink.write(
                {
                    "__key__": f"{image['id']:012d}",
                    "jpg": (images / image["file_name"]).read_bytes(),
                    "png": encode(paint(coco, image, ids)),
                }
            )


if __name__ == "__main__":
    prepare(*map(Path, sys.argv[1:]))
