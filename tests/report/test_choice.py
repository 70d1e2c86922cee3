"""Which samples are shown."""

import numpy as np
import pytest
from cocoseg.report.choice import diverse


def choose(shards, classes, count, excluded=()):
    """Choose among samples of shards that show classes, each with its share: ``{id: share}``."""
    pairs = [(i, c, share) for i, seen in enumerate(classes) for c, share in seen.items()]
    sample, train_id, share = zip(*pairs, strict=True) if pairs else ((), (), ())
    return diverse(
        np.array(shards, np.uint32),
        np.array(sample, np.int64),
        np.array(train_id, np.uint16),
        np.array(share, np.float64),
        np.isin(np.arange(len(shards)), excluded),
        count,
    )


def test_samples_with_classes_not_seen_yet_go_first():
    classes = [{1: 0.5}, {1: 0.5}, {1: 0.5, 2: 0.5}, {3: 0.5}, {}]
    assert choose([0] * 5, classes, 2) == [2, 3]


def test_a_class_of_a_few_pixels_is_still_worth_a_better_picture():
    assert choose([0] * 3, [{1: 0.0001, 2: 0.2}, {2: 0.2}, {1: 0.2}], 2) == [0, 2]


def test_shards_take_turns():
    rich = dict.fromkeys(range(1, 9), 0.1)
    shards = [0, 0, 0, 1, 2]
    chosen = choose(shards, [rich, rich, rich, {1: 0.1}, {}], 4)
    assert sorted(shards[i] for i in chosen) == [0, 0, 1, 2]


@pytest.mark.parametrize("count", [0, 2, 9])
def test_no_more_than_there_are_and_none_twice(count):
    chosen = choose([0, 0, 1, 1], [{1: 0.1}, {}, {2: 0.1}, {}], count, excluded=[2])
    assert len(chosen) == len(set(chosen)) == min(count, 3)
    assert 2 not in chosen


def test_samples_without_any_class_are_chosen_in_their_order():
    assert choose([0, 1, 1, 0], [{}, {}, {}, {}], 4) == [0, 1, 2, 3]
