"""Shards as a webdataset pipeline: the pixels of our own reader, and no shard that ends early."""

import io
import itertools
import shutil
import tarfile

import numpy as np
import pytest
import torch
import webdataset as wds
from cocoseg import stream_webdataset
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.reader import ShardSet


@pytest.fixture
def folder(golden, tmp_path):
    return shutil.copytree(golden.shards("train"), tmp_path / "shards")


def same(found, expected):
    assert len(found) == len(expected)
    for (image, mask), sample in zip(found, expected, strict=True):
        assert np.array_equal(image, sample.image)
        assert np.array_equal(mask, sample.mask)
        assert (image.dtype, mask.dtype) == (np.uint8, np.uint8)


def test_it_yields_what_our_own_reader_reads_in_the_order_of_the_shards(folder):
    same(list(stream_webdataset(str(folder))), ShardSet([str(folder)]).read_many(range(8)))


def test_exif_is_applied_and_the_mask_is_no_rgb(coco_set, tmp_path):
    coco_set.photo(1, 40, 30, annotated=(30, 40), orientation=6)
    coco_set.annotate(1, [[2, 2, 20, 2, 20, 35, 2, 35]])
    coco_set.prepare(tmp_path / "out")
    ((image, mask),) = stream_webdataset(str(tmp_path / "out"))
    (sample,) = ShardSet([str(tmp_path / "out")]).read_many([0])
    assert image.shape[:2] == mask.shape == sample.mask.shape
    assert np.array_equal(image, sample.image)


def test_processes_and_loader_workers_share_the_shards(folder, monkeypatch):
    whole = sorted(int(mask.sum()) for _, mask in stream_webdataset(str(folder)))
    parts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        parts.append([int(mask.sum()) for _, mask in stream_webdataset(str(folder))])
    assert all(parts)
    assert sorted(itertools.chain(*parts)) == whole
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    loader = torch.utils.data.DataLoader(
        stream_webdataset(str(folder)), batch_size=None, num_workers=2
    )
    assert sorted(int(mask.sum()) for _, mask in loader) == whole


def test_a_seed_shuffles_the_shards_and_stages_can_be_appended(folder):
    plain = [int(mask.sum()) for _, mask in stream_webdataset(str(folder))]
    orders = {
        tuple(int(mask.sum()) for _, mask in stream_webdataset(str(folder), seed=seed))
        for seed in range(6)
    }
    assert len(orders) > 1
    assert all(sorted(order) == sorted(plain) for order in orders)
    pipeline = stream_webdataset(str(folder))
    pipeline.append(wds.map(lambda pair: int(pair[1].sum())))
    assert list(pipeline) == plain


def rewrite(shard, keep):
    """Write a tar again with those members for which `keep` returns their bytes."""
    with tarfile.open(shard) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(shard, "w") as tar:
        for number, (info, content) in enumerate(members):
            content = keep(number, info, content)
            if content is not None:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def first_shard(folder):
    return folder / "shard-000000.tar"


def test_a_shard_cut_between_two_samples_is_an_error(folder):
    """webdataset by itself ends without a word."""
    shard = first_shard(folder)
    rewrite(shard, lambda number, info, content: content if number < 3 else None)
    stream = iter(stream_webdataset(str(folder)))
    next(stream)
    with pytest.raises(DataError, match=r"shard-000000\.tar: ends early: \d of its \d samples"):
        list(stream)


def test_a_shard_cut_amid_a_sample_is_an_error(folder):
    shard = first_shard(folder)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DataError, match=r"shard-000000\.tar"):
        list(stream_webdataset(str(folder)))


def test_a_member_that_was_exchanged_is_an_error(folder):
    def exchange(number, info, content):
        return content[:-1] + b"x" if info.name.endswith("png") and number < 3 else content

    rewrite(first_shard(folder), exchange)
    with pytest.raises(DataError, match=r"sample \d+: its mask differs from the index"):
        list(stream_webdataset(str(folder)))


def test_a_sample_that_the_index_does_not_know_is_an_error(folder):
    def twice(number, info, content):
        info.name = (
            info.name.replace(info.name.split(".")[0], "000000000999") if number < 3 else info.name
        )
        return content

    rewrite(first_shard(folder), twice)
    with pytest.raises(DataError, match="sample 000000000999: is not in the index"):
        list(stream_webdataset(str(folder)))


def test_shards_without_masks_are_refused(coco_set, tmp_path):
    coco_set.photo(1)
    coco_set.prepare(tmp_path / "out", annotations=())
    with pytest.raises(ConfigError, match="without annotations and has no masks"):
        stream_webdataset(str(tmp_path / "out"))


def test_an_object_store_is_streamed_too(store, golden):
    url = store.upload(golden.shards("train"), "streamed")
    same(list(stream_webdataset(url)), ShardSet([str(golden.shards("train"))]).read_many(range(8)))
