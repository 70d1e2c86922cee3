"""`ShardDataset`, for other people's code: exact length, any sampler, and an order to resume in."""

import os
import pickle
import shutil
import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from cocoseg import ShardDataset
from cocoseg.errors import ConfigError
from cocoseg.shards.reader import BadSample
from torch.utils.data import DataLoader, WeightedRandomSampler


def checksum(image, mask):
    """An item of a fixed size that tells samples apart."""
    return int(image.astype(np.int64).sum()), int(mask.astype(np.int64).sum())


@pytest.fixture
def path(golden):
    return str(golden.shards("train"))


def flat(batches):
    return [
        (int(a), int(b)) for images, masks in batches for a, b in zip(images, masks, strict=True)
    ]


def test_it_is_a_map_style_data_set_with_an_exact_length(path, stored):
    dataset = ShardDataset(path)
    expected = stored(path)
    assert len(dataset) == len(expected) == 8
    for number, sample in enumerate(expected.values()):
        image, mask = dataset[number]
        assert image.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert np.array_equal(mask, sample.mask)
        assert dataset.key(number) == sample.key
    assert np.array_equal(dataset[-1][1], dataset[7][1])
    with pytest.raises(IndexError):
        dataset[8]
    assert len(list(dataset)) == 8  # iteration ends by itself


@pytest.mark.parametrize("workers", [0, 2])
def test_any_sampler_of_pytorch_can_order_it(path, workers):
    dataset = ShardDataset(path, transform=checksum)
    items = {dataset[number] for number in range(8)}
    for settings in ({"shuffle": True}, {"sampler": WeightedRandomSampler([1.0] * 8, 8)}, {}):
        loader = DataLoader(dataset, batch_size=3, num_workers=workers, **settings)
        found = flat(loader)
        assert len(found) == 8
        assert set(found) <= items
    assert sorted(found) == sorted(items)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_loader_processes_may_start_in_any_way(path, method):
    dataset = ShardDataset(path, transform=checksum)
    here = [dataset[number] for number in range(8)]  # also opens what a fork must not share
    loader = DataLoader(dataset, batch_size=4, num_workers=1, multiprocessing_context=method)
    assert flat(loader) == here


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_take_every_sample_once_an_epoch(path, workers):
    dataset = ShardDataset(path, transform=checksum)
    items = Counter(dataset[number] for number in range(8))
    found = flat(islice(dataset.batches(4, workers), 6))
    for epoch in range(3):
        assert Counter(found[8 * epoch : 8 * epoch + 8]) == items
    assert found[:8] != found[8:16] != found[16:]
    assert dataset.state_dict()["position"] == 24


@pytest.mark.parametrize(("batch_size", "workers"), [(3, 0), (3, 2), (1, 0), (7, 0), (20, 1)])
@pytest.mark.parametrize("done", [1, *(pytest.param(n, marks=pytest.mark.long) for n in (0, 4))])
def test_it_goes_on_exactly_from_its_state_with_any_batch_size(path, done, batch_size, workers):
    whole = flat(islice(ShardDataset(path, checksum).batches(3), 30))
    first = ShardDataset(path, checksum)
    assert flat(islice(first.batches(3, workers), done)) == whole[: 3 * done]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = ShardDataset(path, checksum)
    second.load_state_dict(state)
    found = flat(islice(second.batches(batch_size, workers), 2))
    assert found == whole[3 * done : 3 * done + 2 * batch_size]


def test_the_state_of_other_shards_or_another_seed_is_refused(path, golden):
    state = ShardDataset(path).state_dict()
    for other in (ShardDataset(path, seed=1), ShardDataset(str(golden.shards("val")))):
        with pytest.raises(ConfigError, match="other shards, of another seed"):
            other.load_state_dict(state)


def test_processes_share_each_global_batch(path):
    alone = flat(islice(ShardDataset(path, checksum).batches(6), 4))
    script = (
        "import sys; from itertools import islice; sys.path.insert(0, sys.argv[1])\n"
        "from cocoseg import ShardDataset; from test_dataset import checksum, flat\n"
        "print(flat(islice(ShardDataset(sys.argv[2], checksum).batches(2), 4)))"
    )
    parts = []
    for rank in range(3):
        environment = os.environ | {"RANK": str(rank), "WORLD_SIZE": "3"}
        command = [sys.executable, "-c", script, os.path.dirname(__file__), path]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        parts.append(eval(ran.stdout))
    dealt = [parts[slot % 3][2 * step + slot // 3] for step in range(4) for slot in range(6)]
    assert dealt == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_named(path, tmp_path, workers):
    folder = shutil.copytree(path, tmp_path / "copied")
    (folder / "shard-000001.tar").unlink()
    dataset = ShardDataset(str(folder), checksum)
    with pytest.raises(BadSample, match=r"shard-000001\.tar: sample \d+: the shard is missing"):
        list(islice(dataset.batches(4, workers), 2))
    with pytest.raises(BadSample):
        dataset[3]
    assert torch.is_tensor(next(iter(DataLoader(dataset, batch_size=2)))[0])


def test_several_folders_are_one_data_set(golden):
    dataset = ShardDataset([str(golden.shards("train")), str(golden.shards("val"))])
    assert len(dataset) == 12
