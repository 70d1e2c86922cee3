"""Other tools' exports, and thousands of classes: every mask as the oracle paints it."""

import json

import numpy as np
import pytest
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
from PIL import Image


def painted_by_the_oracle(oracle, content, image, train_ids):
    annotations = [a for a in content["annotations"] if a["image_id"] == image["id"]]
    drawn = [a for a in annotations if a.get("segmentation")]
    return oracle.paint(drawn, train_ids, image["height"], image["width"])


@pytest.mark.parametrize(
    ("export", "annotations", "images", "samples"),
    [
        ("fruits_labelme", "data/trainval.json", "data", 18),
        ("cvat_cars", "annotations/instances_default.json", "images", 6),
    ],
)
def test_every_mask_of_an_export_is_the_oracles(
    real_data, tmp_path, run_cocoseg, stored, oracle, export, annotations, images, samples
):
    folder = real_data / "exports" / export
    flags = ("--annotations", folder / annotations, "--images", folder / images)
    ran = run_cocoseg("prepare", *flags, "--output", tmp_path / "shards", "--engine", "inline")
    assert ran.code == 0, ran.err
    content = json.loads((folder / annotations).read_text())
    train_ids = oracle.coco_train_ids(content["categories"])
    found = {sample.meta["image_id"]: sample for sample in stored(tmp_path / "shards").values()}
    assert len(found) == samples == len(content["images"])
    for image in content["images"]:
        truth = painted_by_the_oracle(oracle, content, image, train_ids)
        assert np.array_equal(found[image["id"]].mask, truth)
        assert truth.any()
    assert verify(str(tmp_path / "shards")).problems == ()


def test_tacos_odd_annotations_are_the_oracles_too(real_data, coco_set, tmp_path, stored, oracle):
    """Ids from 0, duplicate ids, polygons beyond the border; only its photos are not at hand."""
    source = real_data / "exports" / "taco_json" / "data" / "annotations.json"
    content = json.loads(source.read_text())
    by_image = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    chosen = [image for image in content["images"] if image["width"] * image["height"] < 4e6][:40]
    ids = {image["id"] for image in chosen}
    assert 0 in {image["id"] for image in content["images"]}
    content["images"] = chosen
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    for image in chosen:
        path = coco_set.images / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (image["width"], image["height"])).save(path, "JPEG")
    coco_set.content = content
    result = coco_set.prepare(tmp_path / "shards")
    assert result.quarantined == ()
    train_ids = oracle.coco_train_ids(content["categories"])
    for sample in stored(tmp_path / "shards").values():
        image = next(i for i in chosen if i["id"] == sample.meta["image_id"])
        truth = painted_by_the_oracle(oracle, content, image, train_ids)
        assert np.array_equal(sample.mask, truth)


def test_thousands_of_classes_make_16_bit_masks_that_read_back(coco_set, tmp_path, stored):
    coco_set.content["categories"] = [{"id": i, "name": f"lvis {i}"} for i in range(1, 1204)]
    random = np.random.default_rng(0)
    truth = {}
    for image_id in range(6):
        coco_set.photo(image_id, 64, 48)
        ids = random.choice(np.arange(1, 1204), 8, replace=False).tolist()
        for place, category_id in enumerate(ids):
            left = 8 * place
            box = [left, 0, left + 8, 0, left + 8, 48, left, 48]
            coco_set.annotate(image_id, [box], category_id)
        truth[image_id] = np.repeat(np.array(ids, np.uint16), 8)
    result = coco_set.prepare(tmp_path / "shards")
    assert result.manifest.classes.ignore_index == 65535
    samples = stored(tmp_path / "shards")
    shards = ShardSet([str(tmp_path / "shards")])
    for position, sample in enumerate(samples.values()):
        expected = np.broadcast_to(truth[sample.meta["image_id"]], (48, 64))
        assert sample.mask.dtype == np.uint16
        assert np.array_equal(sample.mask, expected)
        assert np.array_equal(shards.read(position).mask, expected)
    assert result.manifest.class_instances[0] == 0
    assert sum(result.manifest.class_instances) == 48
