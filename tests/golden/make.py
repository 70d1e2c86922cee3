"""Draw the golden data set and prepare its shards: ``python tests/golden/make.py``.

Twelve pictures of 64 x 48 pixels with everything that the mask contract speaks of. The result is
committed and stays as it is: later versions must still read it. Make it again only when the shard
format changes on purpose.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.taxonomy import COCO_CATEGORIES
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

FOLDER = Path(__file__).resolve().parent
WIDTH, HEIGHT = 64, 48
PERSON, CAR, CAT, BOTTLE, PIZZA = 1, 3, 17, 44, 59
COLORS = {
    PERSON: (214, 96, 77),
    CAR: (67, 99, 216),
    CAT: (245, 130, 49),
    BOTTLE: (60, 160, 75),
    PIZZA: (240, 220, 80),
}
TRAIN = range(101, 109)
VAL = range(201, 205)
CROWD, EMPTY, TURNED, PNG, HOLE, PARTS, ODD = 102, 104, 105, 106, 103, 107, 108


def polygon(sides, x, y, radius):
    """A regular polygon around (x, y), flat, in COCO's two decimals."""
    angles = 2 * np.pi * (np.arange(sides) + 0.25) / sides
    points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1)
    return points.ravel().round(2).tolist()


def pixels(outline, width, height):
    """The pixels of a polygon, bool (height, width)."""
    rles = coco_mask.frPyObjects([outline], height, width)
    return coco_mask.decode(rles[0]).astype(bool)


def counts(mask):
    """Run lengths of a mask down the columns, background first: COCO's uncompressed RLE."""
    flat = np.concatenate(([False], mask.ravel(order="F")))
    edges = np.flatnonzero(np.diff(flat)).tolist()
    return np.diff([0, *edges, mask.size]).tolist()


def instances(image_id, width, height):
    """(category, segmentation, crowd) of one picture, and the outlines to draw."""
    random = np.random.default_rng(image_id)
    x, y = width / 2, height / 2
    ring = pixels(polygon(12, x, y, 18), width, height) & ~pixels(
        polygon(12, x, y, 8), width, height
    )
    size = [height, width]
    if image_id == EMPTY:
        return []
    if image_id == HOLE:  # the car is seen through the pizza's hole
        return [
            (CAR, [polygon(4, x, y, 6)], 0),
            (PIZZA, {"size": size, "counts": counts(ring)}, 0),
        ]
    if image_id == CROWD:
        crowd = {"size": size, "counts": counts(pixels(polygon(5, x, y, 22), width, height))}
        return [
            (BOTTLE, [polygon(9, x - 6, y, 7)], 0),
            (PERSON, crowd, 1),
            (CAT, [polygon(3, x + 8, y, 8)], 0),
        ]
    if image_id == PARTS:
        compressed = coco_mask.encode(np.asfortranarray(ring.astype(np.uint8)))
        compressed["counts"] = compressed["counts"].decode()
        parts = [polygon(6, 12, 12, 8), polygon(6, 50, 36, 8)]
        return [(PIZZA, compressed, 0), (CAR, parts, 0)]
    if image_id == ODD:  # equal areas, over the border, no area, nothing at all, one id
        return [
            (CAR, [[10, 10, 30, 10, 30, 30, 10, 30]], 0),
            (CAT, [[20, 20, 40, 20, 40, 40, 20, 40]], 0),
            (BOTTLE, [polygon(8, width - 2, y, 9)], 0),
            (PERSON, [[5.2, 5.2, 5.3, 5.2, 5.3, 5.3]], 0),
            (PERSON, None, 0),
        ]
    kinds = random.permutation(list(COLORS))[:3]
    places = random.uniform((10, 10), (width - 10, height - 10), (3, 2))
    radii = random.uniform(7, 15, 3)
    return [
        (int(kind), [polygon(3 + int(kind) % 7, *place, radius)], 0)
        for kind, place, radius in zip(kinds, places, radii, strict=True)
    ]


def draw(image_id, found, width, height):
    """A picture: a gradient, and each instance as a flat color with some grain."""
    random = np.random.default_rng([image_id, 1])
    corners = random.uniform(90, 190, (2, 2, 3)).astype(np.uint8)
    sheet = Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)
    for category_id, segmentation, _ in sorted(found, key=lambda instance: -instance[2]):
        shape = Image.new("L", (width, height))
        if isinstance(segmentation, list):
            for outline in segmentation:
                ImageDraw.Draw(shape).polygon(outline, fill=255)
        elif segmentation is not None:
            rle = segmentation
            if isinstance(rle["counts"], list):
                rle = coco_mask.frPyObjects(rle, height, width)
            shape = Image.fromarray(coco_mask.decode(rle) * np.uint8(255))
        sheet.paste(COLORS[category_id], (0, 0), shape)
    grain = random.normal(0, 3, (height, width, 1))
    return Image.fromarray((np.asarray(sheet) + grain).clip(0, 255).astype(np.uint8))


def draw_split(name, image_ids):
    """Write the pictures and the JSON of one split."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    images, annotations = [], []
    for image_id in image_ids:
        width, height = (HEIGHT, WIDTH) if image_id == TURNED else (WIDTH, HEIGHT)
        found = instances(image_id, width, height)
        picture = draw(image_id, found, width, height)
        file_name = f"{image_id:012d}.{'png' if image_id == PNG else 'jpg'}"
        if image_id == TURNED:
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned clockwise: stored the other way
            picture.transpose(Image.Transpose.ROTATE_90).save(folder / file_name, exif=exif)
        else:
            picture.save(folder / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for category_id, segmentation, crowd in found:
            entry = {"id": ODD if image_id == ODD else len(annotations) + 1, "image_id": image_id}
            entry |= {"category_id": category_id, "segmentation": segmentation, "iscrowd": crowd}
            annotations.append(entry)
    categories = [{"id": i, "name": n, "supercategory": s} for i, n, s in COCO_CATEGORIES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (FOLDER / f"instances_{name}.json").write_text(json.dumps(content) + "\n")


def main():
    """Draw both splits and prepare them."""
    shutil.rmtree(FOLDER / "shards", ignore_errors=True)
    for name, image_ids in (("train", TRAIN), ("val", VAL)):
        draw_split(name, image_ids)
        prepare_shards(
            PrepareConfig(
                annotations=(str(FOLDER / f"instances_{name}.json"),),
                images=(str(FOLDER / name),),
                output=str(FOLDER / "shards" / name),
                samples_per_shard=3,
                engine="inline",
            )
        )
        for name_of_the_day in ("config.yaml", "prepare-report.html"):  # not read by anyone
            (FOLDER / "shards" / name / name_of_the_day).unlink()


if __name__ == "__main__":
    main()
