"""Images and shards that the benchmark draws: 480 × 640, as large as COCO's in bytes."""

import json
from pathlib import Path

import numpy as np
from bench import Bench, draw_image
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.taxonomy import COCO_CATEGORIES
from PIL import Image

_DISTINCT = 32
_GRAIN = 12.0  # deviation of the noise: such a JPEG takes about 100 kB, decoding as long as COCO's


def image_count(bench: Bench) -> int:
    """Return how many images there are."""
    return 6 if bench.tiny else 192


def drawn_images(bench: Bench) -> Path:
    """Return the folder of images; they are drawn once for all cases."""
    folder = bench.scratch / "drawn" / "images"
    if folder.is_dir():
        return folder
    part = folder.with_name("part")
    part.mkdir(parents=True)
    height, width = _size(bench)
    drawn: list[bytes] = []
    for number in range(image_count(bench)):
        path = part / f"{number:06d}.jpg"
        if number < _DISTINCT:
            pixels = draw_image(height, width, number, _GRAIN)
            Image.fromarray(pixels).save(path, quality=90)
            drawn.append(path.read_bytes())
        else:
            path.write_bytes(drawn[number % _DISTINCT])
    part.rename(folder)
    return folder


def drawn_shards(bench: Bench) -> Path:
    """Return the folder of shards of these images, each with a few instances."""
    folder = bench.scratch / "drawn" / "shards"
    if (folder / "manifest.json").is_file():
        return folder
    images = drawn_images(bench)
    height, width = _size(bench)
    content = {
        "images": [
            {"id": number, "file_name": path.name, "width": width, "height": height}
            for number, path in enumerate(sorted(images.iterdir()), 1)
        ],
        "annotations": [],
        "categories": [
            {"id": category, "name": name, "supercategory": above}
            for category, name, above in COCO_CATEGORIES
        ],
    }
    random = np.random.default_rng(0)
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    for image in content["images"]:
        for _ in range(6):
            center = random.uniform((0, 0), (width, height))
            radii = random.uniform(0.1, 0.3) * height * random.uniform(0.7, 1.3, len(angles))
            x = (center[0] + radii * np.cos(angles)).clip(0, width)
            y = (center[1] + radii * np.sin(angles)).clip(0, height)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": int(random.choice(COCO_CATEGORIES)[0]),
                    "segmentation": [np.stack([x, y], axis=1).ravel().round(2).tolist()],
                    "iscrowd": 0,
                }
            )
    annotations = bench.scratch / "drawn" / "instances.json"
    annotations.write_text(json.dumps(content))
    prepare_shards(
        PrepareConfig(
            annotations=(str(annotations),),
            images=(str(images),),
            output=str(folder),
            samples_per_shard=32,
            engine="inline",
        )
    )
    return folder


def _size(bench: Bench) -> tuple[int, int]:
    return (48, 64) if bench.tiny else (480, 640)
