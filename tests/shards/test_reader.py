"""`ShardSet`: what was written comes back, and damage is an error, never a wrong sample."""

import io
import multiprocessing
import pickle
import shutil
import struct
import tarfile
import zlib

import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.decode import decode_mask
from cocoseg.shards.reader import ShardSet
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


def png(mode, size=(4, 3)):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def gray_png(bits):
    """A 4 x 3 grayscale PNG of fewer than 8 bits a pixel, which Pillow does not write."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 4, 3, bits, 0, 0, 0, 0)
    rows = zlib.compress(bytes(3 * (1 + 4 * bits // 8)))
    for kind, body in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png("RGB"), "mode RGB"),
        (png("P"), "mode P"),
        (png("LA"), "mode LA"),
        (png("1"), "mode 1"),
        (gray_png(4), "4 bits a pixel"),  # Pillow would read train ids 1, 2 as 17, 34
        (gray_png(2), "2 bits a pixel"),
        (png("L", (3, 4)), "differ in size"),
        (png("L")[:45], "mask"),
        (b"", "mask"),
        (b"\xff\xd8\xff", "mask"),
    ],
)
def test_only_a_gray_png_of_the_right_size_is_a_mask(content, message):
    with pytest.raises(DataError, match=message) as refused:
        decode_mask(content, "shard: key", expected=(3, 4))
    assert str(refused.value).startswith("shard: key: ")
