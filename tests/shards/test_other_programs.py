"""Any WebDataset program can read the shards: webdataset itself, and plain `tarfile`."""

import io
import tarfile

import numpy as np
import pytest
import webdataset
from cocoseg.shards.reader import ShardSet
from PIL import Image


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdataset_gives_the_same_bytes_under_the_same_keys(golden, stored, split):
    urls = sorted(map(str, golden.shards(split).glob("*.tar")))
    pipeline = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
    found = {sample["__key__"]: sample for sample in pipeline}
    expected = stored(golden.shards(split))
    assert list(found) == list(expected)
    for key, sample in expected.items():
        members = {name for name in found[key] if not name.startswith("__")}
        assert members == {sample.extension, "png", "json"}
        assert found[key][sample.extension] == sample.photo
        assert found[key]["png"] == sample.mask_file


@pytest.mark.parametrize("split", ["train", "val"])
def test_webdatasets_own_decoder_finds_image_and_json(golden, split):
    urls = sorted(map(str, golden.shards(split).glob("*.tar")))
    for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"):
        photo = sample["jpg"] if "jpg" in sample else sample["image.png"]
        assert photo.size in ((64, 48), (48, 64))
        assert sample["json"]["image_id"] == int(sample["__key__"])


def test_tars_are_plain_with_nothing_of_the_machine_in_them(golden):
    for path in golden.shards("train").glob("*.tar"):
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                assert info.isreg()
                assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
                assert (info.uname, info.gname, info.pax_headers) == ("", "", {})
                key, _, extension = info.name.partition(".")
                assert key.isdecimal()
                assert extension in ("jpg", "image.png", "png", "json")


def test_opencv_and_pillow_read_train_ids_from_a_mask(golden, stored):
    cv2 = pytest.importorskip("cv2")
    shards = ShardSet([str(golden.shards("train"))])
    for position, sample in enumerate(stored(golden.shards("train")).values()):
        raw = np.frombuffer(sample.mask_file, np.uint8)
        by_opencv = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
        by_pillow = np.array(Image.open(io.BytesIO(sample.mask_file)))
        assert np.array_equal(by_opencv, by_pillow)
        assert np.array_equal(by_pillow, shards.read(position).mask)
