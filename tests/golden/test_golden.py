"""What was prepared once is read by every later version, and prepared alike again."""

import json
import platform
from importlib.metadata import version

import numpy as np
import pytest
from cocoseg import photo
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
from PIL import Image, ImageOps

both_splits = pytest.mark.parametrize(("split", "samples"), [("train", 8), ("val", 4)])


@both_splits
def test_verify_finds_nothing_wrong_with_the_golden_shards(golden, split, samples):
    result = verify(str(golden.shards(split)))
    assert result.problems == ()
    assert result.samples == samples


@both_splits
def test_the_reader_gives_the_golden_photographs_upright_and_their_masks(
    golden, stored, split, samples
):
    shards = ShardSet([str(golden.shards(split))])
    plain = stored(golden.shards(split))
    assert len(shards) == len(plain) == samples
    for position, (key, expected) in enumerate(plain.items()):
        sample = shards.read(position)
        path = golden.images(split) / expected.meta["file_name"]
        assert sample.key == key
        with Image.open(path) as image:
            upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
        assert np.array_equal(sample.image, upright)
        assert np.array_equal(sample.mask, expected.mask)
        assert expected.photo == path.read_bytes()


@both_splits
def test_the_golden_masks_are_the_oracles(golden, stored, oracle, split, samples):
    content = json.loads(golden.annotations(split).read_text())
    train_ids = oracle.coco_train_ids(content["categories"])
    plain = stored(golden.shards(split))
    for image in content["images"]:
        instances = [
            annotation
            for annotation in content["annotations"]
            if annotation["image_id"] == image["id"] and annotation["segmentation"] is not None
        ]
        truth = oracle.paint(instances, train_ids, image["height"], image["width"])
        assert np.array_equal(plain[f"{image['id']:012d}"].mask, truth)


@both_splits
def test_prepared_again_every_mask_is_the_same_and_so_are_the_bytes_of_equal_versions(
    golden, stored, tmp_path, split, samples
):
    prepare_shards(
        PrepareConfig(
            annotations=(str(golden.annotations(split)),),
            images=(str(golden.images(split)),),
            output=str(tmp_path),
            samples_per_shard=3,
            engine="inline",
        )
    )
    then, now = stored(golden.shards(split)), stored(tmp_path)
    assert list(now) == list(then)
    for key, sample in now.items():
        assert np.array_equal(sample.mask, then[key].mask)
        assert sample.photo == then[key].photo
        assert sample.meta == then[key].meta
    versions = json.loads((golden.shards(split) / "manifest.json").read_text())["versions"]
    alike = all(version(name) == there for name, there in versions.items())
    if alike and platform.machine() == "x86_64":  # a compressor may choose by processor
        for path in golden.shards(split).iterdir():
            assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_golden_set_holds_every_case_that_it_is_there_for(golden):
    manifest = json.loads((golden.shards("train") / "manifest.json").read_text())
    assert manifest["counts"] == {
        "crowds": 1,
        "duplicate_annotation_ids": 4,
        "instances": 21,
        "no_segmentation": 1,
        "out_of_bounds": 2,
        "turned_by_exif": 1,
        "without_annotations": 1,
        "zero_area": 1,
    }
    content = json.loads(golden.annotations("train").read_text())
    forms = [annotation["segmentation"] for annotation in content["annotations"]]
    assert {type(form) for form in forms} == {list, dict, type(None)}
    assert {type(form["counts"]) for form in forms if isinstance(form, dict)} == {list, str}
    assert len(content["categories"]) == 80
    photos = [photo.inspect(path.read_bytes()) for path in golden.images("train").iterdir()]
    assert {info.extension for info in photos} == {"jpg", "image.png"}
    assert {info.orientation for info in photos} == {1, 6}


def test_the_golden_set_stays_small(golden):
    files = [path for path in golden.folder.rglob("*") if path.suffix not in (".py", ".pyc")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 200_000
