"""`ShardSet`: what was written comes back, and damage is an error, never a wrong sample."""

import io
import multiprocessing
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.config import IndexConfig
from cocoseg.shards.index import index_shards
from cocoseg.shards.reader import BadSample, ShardSet
from PIL import Image


def folders(golden):
    return [str(golden.shards("train")), str(golden.shards("val"))]


def read_keys(shards):
    return [shards.read(position).key for position in range(len(shards))]


def test_several_folders_are_one_sequence(golden, stored):
    shards = ShardSet(folders(golden))
    assert len(shards) == 12
    assert shards.shard_sizes == [3, 3, 2, 3, 1]
    keys = [key for folder in folders(golden) for key in stored(folder)]
    assert read_keys(shards) == keys
    assert [shards.row(position).key for position in range(12)] == keys


@pytest.mark.parametrize("position", [-1, 12, 10**9])
def test_a_position_outside_is_an_index_error(golden, position):
    shards = ShardSet(folders(golden))
    with pytest.raises(IndexError):
        shards.read(position)
    with pytest.raises(IndexError):
        shards.row(position)


def test_a_sample_is_rgb_and_train_ids_of_the_same_size(golden):
    shards = ShardSet(folders(golden))
    for position in range(len(shards)):
        sample = shards.read(position)
        assert sample.image.dtype == sample.mask.dtype == np.uint8
        assert sample.image.shape == (*sample.mask.shape, 3)
        assert sample.image.flags.c_contiguous
        row = shards.row(position)
        assert (row.height, row.width) == sample.mask.shape
        values, counts = np.unique(sample.mask, return_counts=True)
        assert dict(row.class_pixels) == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_it_travels_to_a_spawned_process(golden):
    shards = ShardSet(folders(golden))
    assert read_keys(pickle.loads(pickle.dumps(shards))) == read_keys(shards)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        sample = pool.apply(shards.read, (5,))
    assert np.array_equal(sample.mask, shards.read(5).mask)


def test_no_folder_or_one_that_is_not_there_is_a_usage_error(tmp_path):
    with pytest.raises(ConfigError):
        ShardSet([])
    with pytest.raises(ConfigError, match="no such folder"):
        ShardSet([str(tmp_path / "absent")])


def test_folders_of_different_classes_do_not_mix(golden, coco_set, tmp_path):
    coco_set.photo(1)
    coco_set.prepare(tmp_path / "other")
    with pytest.raises(ConfigError, match="different classes"):
        ShardSet([*folders(golden), str(tmp_path / "other")])


@pytest.fixture
def copied(golden, tmp_path):
    """The golden training shards, to be damaged; the first holds samples 0, 1, 2."""
    return shutil.copytree(golden.shards("train"), tmp_path / "copied")


def test_a_missing_shard_is_an_error_where_it_is_read(copied):
    (copied / "shard-000000.tar").unlink()
    shards = ShardSet([str(copied)])
    with pytest.raises(DataError, match=r"shard-000000\.tar: sample \d+: the shard is missing"):
        shards.read(0)
    assert shards.read(3).mask.any()


def test_a_shard_that_cannot_be_opened_is_an_error_of_its_samples(copied):
    path = copied / "shard-000000.tar"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(BadSample, match=r"shard-000000\.tar: sample \d+: the shard cannot be read"):
        ShardSet([str(copied)]).read(0)


def test_masks_of_both_depths_are_read_alike(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, kind in (("a", np.uint8), ("b", np.uint16)):
            for name, pixels in (
                ("jpg", np.zeros((3, 4), np.uint8)),
                ("png", np.ones((3, 4), kind)),
            ):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "JPEG" if name == "jpg" else "PNG")
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)
    index_shards(str(tmp_path), IndexConfig(classes="coco", workers=1))
    masks = [sample.mask for sample in ShardSet([str(tmp_path)]).read_many([0, 1])]
    assert [mask.dtype for mask in masks] == [np.uint8, np.uint8]
    assert np.array_equal(masks[0], masks[1])


def test_a_shard_cut_at_a_member_boundary_is_an_error(copied, stored):
    shards = ShardSet([str(copied)])
    path = copied / "shard-000000.tar"
    header = shards.row(2).offsets[0] - tarfile.BLOCKSIZE
    path.write_bytes(path.read_bytes()[:header])
    assert len(stored(copied)) == 7  # other programs read on, without any error
    assert shards.read(1).key == shards.row(1).key
    with pytest.raises(DataError, match=r"shard-000000\.tar.*ends inside"):
        shards.read(2)


@pytest.mark.parametrize("member", [0, 1])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit_is_an_error(copied, member, place):
    shards = ShardSet([str(copied)])
    row, path = shards.row(1), copied / "shard-000000.tar"
    inside = {"first": 0, "middle": row.lengths[member] // 2, "last": row.lengths[member] - 1}
    content = bytearray(path.read_bytes())
    content[row.offsets[member] + inside[place]] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"sample {row.key}.*differs from the index"):
        shards.read(1)
    assert shards.read(0).key == shards.row(0).key


def test_the_mask_of_another_sample_is_an_error(copied):
    swap_masks(copied, ShardSet([str(copied)]))
    with pytest.raises(DataError, match="mask"):
        ShardSet([str(copied)]).read(0)


def swap_masks(folder, shards):
    """Exchange the masks of the first two samples, in a tar that other programs read happily."""
    path = folder / "shard-000000.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    first, second = members[1][1], members[4][1]
    contents = [content for _, content in members]
    contents[1], contents[4] = second, first
    rewrite(path, [info for info, _ in members], contents)


def rewrite(path, infos, contents):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for info, content in zip(infos, contents, strict=True):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
