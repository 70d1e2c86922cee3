"""Real COCO: every mask against the plain oracle, and against COCO's own panoptic masks."""

import json
from pathlib import Path

import numpy as np
import pytest
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from PIL import Image

SPLITS = {"train": 274, "val": 69}


def instances_file(real_data, split):
    return real_data / "coco" / "annotations" / f"instances_{split}2017.json"


@pytest.mark.parametrize("split", SPLITS)
def test_every_mask_equals_the_oracle_and_every_photo_is_untouched(
    real_data, tmp_path, stored, oracle, split, record_property
):
    annotation_file = instances_file(real_data, split)
    photos = real_data / "coco" / f"{split}2017"
    prepare_shards(
        PrepareConfig(
            annotations=(str(annotation_file),),
            images=(str(photos),),
            output=str(tmp_path / "shards"),
            samples_per_shard=50,
            workers=2,
        )
    )

    content = json.loads(annotation_file.read_text())
    train_ids = oracle.coco_train_ids(content["categories"])
    instances = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        instances[annotation["image_id"]].append(annotation)
    samples = stored(tmp_path / "shards")
    assert len(samples) == len(content["images"]) == SPLITS[split]

    wrong_pixels = 0
    for image in content["images"]:
        sample = samples[f"{image['id']:012d}"]
        truth = oracle.paint(instances[image["id"]], train_ids, image["height"], image["width"])
        assert sample.mask.dtype == np.uint8
        assert sample.mask.shape == truth.shape
        wrong_pixels += int((sample.mask != truth).sum())
        assert sample.photo == (photos / image["file_name"]).read_bytes()
        assert sample.extension == "jpg"
    differ = f"coco {split}: {len(samples)} masks, {wrong_pixels} pixels differ from the oracle"
    record_property("figure", differ)
    assert wrong_pixels == 0


# DESIGN.md, §3: the rule that COCO's annotators used themselves is "crowd beneath".
@pytest.mark.parametrize(
    ("settings", "wrong_pixels"),
    [
        ({"overlap": "area", "crowd": "paint"}, 53),
        ({"overlap": "area", "crowd": "beneath"}, 0),
        ({"overlap": "area", "crowd": "drop"}, 15_350),
        ({"overlap": "order", "crowd": "paint"}, 34_056),
    ],
    ids=["area", "crowd-beneath", "crowd-dropped", "annotation-order"],
)
def test_wrong_pixels_against_the_official_panoptic_masks(
    panoptic_truth, panoptic_sources, tmp_path, stored, settings, wrong_pixels, record_property
):
    prepare_shards(PrepareConfig(**panoptic_sources, **settings, output=str(tmp_path), workers=2))
    samples = stored(tmp_path)
    assert len(samples) == len(panoptic_truth) == 50

    counted = valid_pixels = 0
    for sample in samples.values():
        truth, valid = panoptic_truth[sample.meta["image_id"]]
        counted += int((sample.mask != truth)[valid].sum())
        valid_pixels += int(valid.sum())
    rules = f"--overlap {settings['overlap']} --crowd {settings['crowd']}"
    record_property("figure", f"panoptic, {rules}: {counted} of {valid_pixels} pixels are wrong")
    assert valid_pixels == 13_111_198
    assert counted == wrong_pixels


@pytest.fixture(scope="module")
def panoptic_truth(real_data, oracle):
    """COCO's panoptic masks as train ids: image id → (mask, valid); id 0 is unlabeled."""
    folder = real_data / "panoptic"
    content = json.loads((folder / "panoptic_train2017.json").read_text())
    train_ids = oracle.coco_train_ids([c for c in content["categories"] if c["isthing"]])
    truths = {}
    for annotation in content["annotations"]:
        with Image.open(folder / "panoptic_train2017" / annotation["file_name"]) as png:
            red, green, blue = np.moveaxis(np.array(png.convert("RGB"), np.uint32), -1, 0)
        segments = red + 256 * green + 65536 * blue
        truth = np.zeros(segments.shape, np.uint8)
        for segment in annotation["segments_info"]:
            truth[segments == segment["id"]] = train_ids.get(segment["category_id"], 0)
        truths[annotation["image_id"]] = (truth, segments != 0)
    return truths


@pytest.fixture(scope="module")
def panoptic_sources(real_data, panoptic_truth, tmp_path_factory):
    """The instances of these images alone, split as their photographs are."""
    folder = tmp_path_factory.mktemp("panoptic")
    annotations, images = [], []
    for split in SPLITS:
        content = json.loads(instances_file(real_data, split).read_text())
        content["images"] = [i for i in content["images"] if i["id"] in panoptic_truth]
        content["annotations"] = [
            a for a in content["annotations"] if a["image_id"] in panoptic_truth
        ]
        path = Path(folder / f"{split}.json")
        path.write_text(json.dumps(content))
        annotations.append(str(path))
        images.append(str(real_data / "coco" / f"{split}2017"))
    return {"annotations": tuple(annotations), "images": tuple(images)}
