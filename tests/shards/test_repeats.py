"""Rare classes more often: exactly as often as the rule says, and nothing else moves."""

import math
import pickle
from collections import Counter

import msgspec
import numpy as np
import pytest
from cocoseg.errors import ConfigError
from cocoseg.shards.manifest import Index, IndexRow, build_index
from cocoseg.shards.order import BatchLayout, SampleOrder
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.repeats import Repeats, repeat_factors
from hypothesis import given, settings
from hypothesis import strategies as st

CLASSES, IGNORED = 6, 255

sizes_and_counts = st.lists(
    st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=9
).filter(any)
images = st.lists(
    st.lists(st.frozensets(st.sampled_from([0, 1, 2, 3, 4, 5, IGNORED]), max_size=5), max_size=9),
    min_size=1,
    max_size=5,
).filter(any)  # shard → image → what its mask holds


def row(present: frozenset[int] | tuple[int, ...]) -> IndexRow:
    return IndexRow(
        key="1", extension="jpg", offsets=(0, 0, 0), lengths=(1, 1, 1), digests=(b"0" * 16,) * 3,
        width=9, height=9, orientation=1,
        class_pixels=tuple((train_id, 7) for train_id in sorted(present)),
    )  # fmt: skip


class Shards:
    """What `Repeats.of` asks of a `ShardSet`, drawn on the spot: a folder for each list."""

    def __init__(self, *folders, num_classes=CLASSES):
        self.indices = tuple(build_index([map(row, shard) for shard in one]) for one in folders)
        self.shard_sizes = [len(shard) for one in folders for shard in one]
        self.manifests = ()
        self.taxonomy = type("Taxonomy", (), {"num_classes": num_classes})


def samples_of(repeats):
    return [repeats.sample(showing) for showing in range(len(repeats))]


@given(sizes_and_counts)
def test_every_sample_has_its_showings_side_by_side_in_its_own_shard(shards):
    counts = [count for shard in shards for count in shard]
    repeats = Repeats.counted(np.array(counts), [len(shard) for shard in shards])
    assert list(repeats.shard_sizes) == [sum(shard) for shard in shards]
    assert len(repeats) == sum(counts)
    expected = [sample for sample, count in enumerate(counts) for _ in range(count)]
    assert samples_of(repeats) == expected
    assert samples_of(pickle.loads(pickle.dumps(repeats))) == expected


@pytest.mark.parametrize("most", [1, 2, 255, 256, 70_000])
def test_beyond_blocks_and_bytes(most):
    rng = np.random.default_rng(most)
    counts = rng.integers(1, 3, 1500)
    counts[[0, 255, 256, 700, 1499]] = most
    repeats = Repeats.counted(counts, [0, 300, 0, 1100, 100, 0])
    ends = np.cumsum(counts)
    assert len(repeats) == ends[-1]
    showings = {0, len(repeats) - 1, *rng.integers(0, len(repeats), 3000).tolist()}
    for end in ends.tolist():
        showings |= {end - 1, min(end, len(repeats) - 1)}
    for showing in showings:
        sample = repeats.sample(showing)
        assert ends[sample] - counts[sample] <= showing < ends[sample]


@given(sizes_and_counts, st.integers(0, 99), st.integers(1, 4), st.integers(1, 3))
def test_an_epoch_of_the_plan_shows_every_sample_exactly_its_repeats(shards, seed, streams, block):
    counts = [count for shard in shards for count in shard]
    repeats = Repeats.counted(np.array(counts), [len(shard) for shard in shards])
    plan = SampleOrder(repeats.shard_sizes, seed, streams, block)
    for epoch in (0, 2):
        first = epoch * len(repeats)
        located = [plan.locate(first + offset) for offset in range(len(repeats))]
        assert {found for found, _ in located} == {epoch}
        assert len({showing for _, showing in located}) == len(
            repeats
        )  # each augmented differently
        shown = Counter(repeats.sample(showing) for _, showing in located)
        assert [shown[sample] for sample in range(len(counts))] == counts


@given(images, st.integers(0, 2**40), st.integers(0, 30))
def test_every_world_size_has_the_same_global_batches(shards, seed, step):
    def batch(world_size: int) -> list[tuple[int, int]]:
        repeats = Repeats.of(Shards(shards), 0.7, seed)  # each process works it out alone
        plan = SampleOrder(repeats.shard_sizes, seed)
        layout = BatchLayout(12 // world_size, world_size, 2)
        dealt = [layout.positions(step, rank) for rank in range(world_size)]
        located = {p: plan.locate(p) for own in dealt for micro in own for p in micro}
        return [(epoch, repeats.sample(showing)) for _, (epoch, showing) in sorted(located.items())]

    assert batch(1) == batch(2) == batch(3) == batch(4) == batch(12)


def rule(shards, threshold):
    """The factors, read off the paper, one image after the other."""
    flat = [present - {0, IGNORED} for shard in shards for present in shard]
    share = {c: sum(c in present for present in flat) / len(flat) for c in range(1, CLASSES)}
    return [
        max((max(1.0, math.sqrt(threshold / share[c])) for c in present), default=1.0)
        for present in flat
    ]


@given(images, st.floats(0.001, 1))
def test_the_factor_of_an_image_is_that_of_its_rarest_class(shards, threshold):
    expected = rule(shards, threshold)
    cut = len(shards) // 2  # as one folder or two
    for made in (Shards(shards), Shards(shards[:cut], shards[cut:])):
        found = repeat_factors(made.indices, CLASSES, threshold)
        assert found == pytest.approx(expected, rel=1e-12)


@given(images, st.floats(0.001, 1), st.integers(0, 2**40))
def test_an_image_is_shown_as_often_as_its_factor_rounded_down_or_up(shards, threshold, seed):
    repeats = Repeats.of(Shards(shards), threshold, seed)
    shown = Counter(samples_of(repeats))
    for sample, factor in enumerate(rule(shards, threshold)):
        assert math.floor(factor - 1e-9) <= shown[sample] <= math.ceil(factor + 1e-9)
    again = Repeats.of(Shards(shards), threshold, seed)
    assert samples_of(again) == samples_of(repeats)


def test_what_is_rounded_away_comes_back_on_average():
    # Class 1 in a tenth of 2,000 images; the others have no class at all.
    made = Shards([[(0, 1) if i % 10 == 0 else (0,) for i in range(200)] for _ in range(10)])
    threshold = 0.1 * 2.3**2  # so that the factor is 2.3
    totals = []
    for seed in range(20):
        shown = Counter(samples_of(Repeats.of(made, threshold, seed)))
        assert {shown[i] for i in range(2000) if i % 10} == {1}
        rare = [shown[i] for i in range(0, 2000, 10)]
        assert set(rare) == {2, 3}
        totals.append(sum(rare))
    assert len(set(totals)) > 5  # seeds differ
    deviation = math.sqrt(0.3 * 0.7 / (200 * 20))
    assert abs(sum(totals) / (200 * 20) - 2.3) < 4 * deviation


def test_which_samples_get_one_more_never_changes_between_versions():
    # Written down once: a change here silently changes what every resumed run sees.
    shards = [[(0, 1), (0,), (0, 1)], [], [(0, 2), (0, 1, 2), (2,), (0, 2), (1, 255), (255,)]]
    seventh, eighth = (Repeats.of(Shards(shards), 0.9, seed) for seed in (7, 8))
    assert samples_of(seventh) == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8]
    assert samples_of(eighth) == [0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8]
    assert list(seventh.shard_sizes) == [5, 0, 8]


@pytest.mark.parametrize("threshold", [0, 0.05])  # off, and below every class's share
def test_where_nothing_is_repeated_the_order_is_what_it_was(threshold):
    shards = [[(0, 1), (0, 2)], [], [(1, 2)] * 9]
    repeats = Repeats.of(Shards(shards), threshold, 1)
    assert list(repeats.shard_sizes) == [2, 0, 9]
    assert samples_of(repeats) == list(range(11))
    assert len(pickle.dumps(repeats)) < 500  # and costs nothing


def test_background_is_no_rare_class():
    shards = [[(1,)] * 99 + [(0, 1)]]
    assert len(Repeats.of(Shards(shards), 0.5, 0)) == 100
    assert len(Repeats.of(Shards([[(0,)] * 99 + [(0, 1)]]), 0.5, 0)) in (106, 107)  # √50 = 7.07


def test_many_classes_and_classes_in_any_order_of_the_index():
    # Sixteen bits, and records of the classes that lie in another order than the samples.
    made = Shards([[(0, 400), (0, 399), (399, 65535)]], num_classes=401)
    (index,) = made.indices
    samples, classes = index.samples.copy(), index.classes.copy()
    classes[[0, 1, 2, 3]] = classes[[2, 3, 0, 1]]
    samples["classes_start"][:2] = [2, 0]
    for one in (index, Index(samples, classes)):
        found = repeat_factors([one], 401, 0.9)
        assert found == pytest.approx([math.sqrt(2.7), math.sqrt(1.35), math.sqrt(1.35)])


def test_the_chunks_of_a_large_index_fit_together(monkeypatch):
    rng = np.random.default_rng(3)
    shards = [[tuple(set(rng.integers(0, 6, 3).tolist())) for _ in range(40)] for _ in range(5)]
    whole = samples_of(Repeats.of(Shards(shards), 0.8, 3))
    monkeypatch.setattr("cocoseg.shards.repeats._CHUNK", 7)
    assert samples_of(Repeats.of(Shards(shards), 0.8, 3)) == whole


def test_the_golden_set_agrees_with_its_masks(golden, stored):
    shards = ShardSet([str(golden.shards("train"))])
    masks = [sample.mask for sample in stored(golden.shards("train")).values()]
    present = [frozenset(np.unique(mask).tolist()) - {0, IGNORED} for mask in masks]
    share = Counter(c for one in present for c in one)
    expected = [max((math.sqrt(0.6 * 8 / share[c]) for c in one), default=0) for one in present]
    found = repeat_factors(shards.indices, 81, 0.6)
    assert found == pytest.approx([max(1, factor) for factor in expected])
    assert len(Repeats.of(shards, 0.6, 0)) > 8


def test_shards_of_other_programs_are_sampled_alike(golden, tmp_path, run_cocoseg):
    for path in golden.shards("train").glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    ran = run_cocoseg("index", tmp_path, "--classes", "coco")
    assert ran.code == 0, ran.err
    ours, theirs = (
        Repeats.of(ShardSet([str(folder)]), 0.6, 5) for folder in (golden.shards("train"), tmp_path)
    )
    assert samples_of(theirs) == samples_of(ours)


def test_without_masks_no_class_is_known(golden):
    shards = ShardSet([str(golden.shards("train"))])
    shards.manifests = (msgspec.structs.replace(shards.manifests[0], masks=False),)
    assert len(Repeats.of(shards, 0, 0)) == 8
    with pytest.raises(ConfigError, match="rare_class_sampling"):
        Repeats.of(shards, 0.1, 0)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, math.nan])
def test_a_share_is_between_nothing_and_all(threshold):
    with pytest.raises(ValueError, match="share"):
        Repeats.of(Shards([[(1,)]]), threshold, 0)


@pytest.mark.parametrize("counts", [[1, 0], [2, 2, 2], [3]])
def test_every_sample_is_shown(counts):
    with pytest.raises(ValueError, match="once at least"):
        Repeats.counted(np.array(counts), [2])


@pytest.mark.long
@settings(max_examples=3000)
@given(sizes_and_counts, st.integers(0, 2**70), st.integers(1, 9), st.integers(1, 5))
def test_three_thousand_plans_of_showings(shards, seed, streams, block):
    counts = [count for shard in shards for count in shard]
    repeats = Repeats.counted(np.array(counts), [len(shard) for shard in shards])
    plan = SampleOrder(repeats.shard_sizes, seed, streams, block)
    for epoch in range(3):
        positions = range(epoch * len(repeats), (epoch + 1) * len(repeats))
        shown = Counter(repeats.sample(plan.locate(position)[1]) for position in positions)
        assert [shown[sample] for sample in range(len(counts))] == counts
