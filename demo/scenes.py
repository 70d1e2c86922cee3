"""`cocoseg demo`: draws scenes and writes them as a COCO data set.

Every image has a generator of its own, seeded by (seed, split, index): asking for more images
leaves the first ones as they are.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..storage import locate
from ..taxonomy import COCO_CATEGORIES
from .annotations import annotate
from .composition import draw_scene
from .objects import KINDS, Kind

SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class DemoSplit:
    """Where one split lies."""

    name: str
    annotations: Path
    """COCO JSON."""
    images: Path
    """Folder of JPEGs."""

    @classmethod
    def at(cls, folder: Path, name: str) -> "DemoSplit":
        """Return where a split of the data set in `folder` lies, drawn already or not."""
        return cls(name, folder / "annotations" / f"instances_{name}.json", folder / name)


@dataclass(frozen=True, slots=True)
class DemoDataset:
    """A drawn data set: `folder/{train,val}/*.jpg` and `folder/annotations/instances_*.json`."""

    folder: Path
    train: DemoSplit
    val: DemoSplit

    @classmethod
    def at(cls, folder: Path) -> "DemoDataset":
        """Return where the parts of the data set in `folder` lie, drawn already or not."""
        return cls(folder, *(DemoSplit.at(folder, name) for name in SPLITS))


def draw_dataset(folder: Path, *, train_images: int, val_images: int, seed: int) -> DemoDataset:
    """Draw a small COCO data set.

    Parameters
    ----------
    folder
        Where to write; made if it is missing, same names are overwritten.
    train_images, val_images
        How many images, each at least 1. A few hundred teach a small SegFormer the categories.
    seed
        Same arguments and same library versions: same bytes.

    Raises
    ------
    ValueError
        If a split would be empty or the seed is negative.
    """
    if train_images < 1 or val_images < 1:
        raise ValueError(f"each split needs an image: got {train_images} and {val_images}")
    if seed < 0:
        raise ValueError(f"the seed must not be negative: got {seed}")
    data = DemoDataset.at(folder)
    _draw_split(data.train, 0, train_images, seed)
    _draw_split(data.val, 1, val_images, seed)
    return data


def _draw_split(place: DemoSplit, split: int, count: int, seed: int) -> None:
    place.images.mkdir(parents=True, exist_ok=True)
    category_ids = {category: number for number, category, _ in COCO_CATEGORIES}
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.default_rng((seed, split, index))
        scene = draw_scene(rng, _anchor(seed, split, index), index)
        image_id = 100_000 * (split + 1) + index
        file_name = f"{image_id:012d}.jpg"
        jpeg = io.BytesIO()
        Image.fromarray(scene.rgb).save(jpeg, "JPEG", quality=int(rng.integers(86, 95)))
        (place.images / file_name).write_bytes(jpeg.getvalue())
        height, width = scene.owner.shape
        records.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1}
        )
        for annotation in annotate(scene, rng):
            annotation |= {
                "id": 1_000_000 * (split + 1) + len(annotations),
                "image_id": image_id,
                "category_id": category_ids[str(annotation.pop("category"))],
            }
            annotations.append(annotation)
    content = {
        "info": {"description": f"cocoseg demo, {place.name}", "version": "1.0", "seed": seed},
        "licenses": [{"id": 1, "name": "drawn by cocoseg demo, free to use", "url": ""}],
        "images": records,
        "annotations": annotations,
        "categories": [
            {"id": number, "name": category, "supercategory": group}
            for number, category, group in COCO_CATEGORIES
        ],
    }
    # Written last: being there, it says that the images are too.
    locate(place.annotations).publish_bytes(json.dumps(content).encode())


def _anchor(seed: int, split: int, index: int) -> Kind:
    """Deal the categories to the images from shuffled decks, so that each is met equally often."""
    deck = np.random.default_rng((seed, split, index // len(KINDS), 1)).permutation(len(KINDS))
    return KINDS[int(deck[index % len(KINDS)])]
