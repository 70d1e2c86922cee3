"""The order of samples: every one once, the same for any number of ranks, resumable anywhere."""

import pytest
from cocoseg.shards.order import BatchLayout, SampleOrder, evaluation_batches, steps_for
from hypothesis import given, settings
from hypothesis import strategies as st

shard_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@st.composite
def plans(draw):
    return SampleOrder(
        draw(shard_sizes),
        seed=draw(st.integers(0, 2**40)),
        streams=draw(st.integers(1, 9)),
        block_shards=draw(st.integers(1, 5)),
    )


def epoch_of(plan, epoch):
    """The samples of one epoch, and proof that they are of that epoch."""
    located = [plan.locate(p) for p in range(epoch * plan.samples, (epoch + 1) * plan.samples)]
    assert {found for found, _ in located} == {epoch}
    return [sample for _, sample in located]


def fresh(plan):
    return SampleOrder(plan.shard_sizes, plan.seed, plan.streams, plan.block_shards)


@given(plans(), st.integers(0, 3))
def test_an_epoch_holds_every_sample_exactly_once(plan, epoch):
    assert sorted(epoch_of(plan, epoch)) == list(range(plan.samples))


@given(plans(), st.data())
def test_any_position_is_found_alone_as_it_is_in_sequence(plan, data):
    sequence = [plan.locate(position) for position in range(3 * plan.samples)]
    positions = st.lists(st.integers(0, len(sequence) - 1), min_size=1, max_size=20)
    other = fresh(plan)
    for position in data.draw(positions):  # in any order, as a resumed or a second reader asks
        assert other.locate(position) == sequence[position]


@given(plans(), st.integers(1, 4), st.integers(1, 4), st.integers(0, 20))
def test_ranks_and_micro_batches_share_each_global_batch_without_rest(plan, batch, world, first):
    layout = BatchLayout(batch_size=batch, world_size=world, accumulation_steps=3)
    for step in range(first, first + 3):
        dealt = [layout.positions(step, rank) for rank in range(world)]
        assert all([len(micro) for micro in own] == [batch] * 3 for own in dealt)
        positions = sorted(p for own in dealt for micro in own for p in micro)
        begin = step * layout.global_batch
        assert positions == list(range(begin, begin + layout.global_batch))
        assert all(plan.locate(position)[1] < plan.samples for position in positions)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_same_global_batch_whatever_the_world_size(world, accumulation):
    layout = BatchLayout(48 // world // accumulation, world, accumulation)
    assert layout.global_batch == 48
    for step in (0, 1, 7):
        slots = {
            step * 48 + slot: (slot % world, slot // world // layout.batch_size)
            for slot in range(48)
        }
        for rank in range(world):
            for number, micro in enumerate(layout.positions(step, rank)):
                assert all(slots[position] == (rank, number) for position in micro)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 9))
def test_an_evaluation_deals_every_sample_once_in_batches_that_no_world_size_changes(
    samples, batch_size, world_size
):
    canonical = evaluation_batches(samples, batch_size, 1, 0)
    dealt = [
        batch
        for rank in range(world_size)
        for batch in evaluation_batches(samples, batch_size, world_size, rank)
    ]
    assert sorted(dealt, key=lambda batch: batch.start) == canonical
    assert [sample for batch in canonical for sample in batch] == list(range(samples))
    assert all(len(batch) == batch_size for batch in canonical[:-1])
    counts = [
        len(evaluation_batches(samples, batch_size, world_size, rank)) for rank in range(world_size)
    ]
    assert max(counts) - min(counts) <= 1


@given(st.integers(1, 50), st.integers(1, 500), st.integers(1, 64))
def test_steps_cover_the_epochs_and_not_one_batch_more(epochs, samples, global_batch):
    steps = steps_for(epochs, samples, global_batch)
    assert steps * global_batch >= epochs * samples
    assert (steps - 1) * global_batch < epochs * samples


def test_part_of_an_epoch_has_a_step_at_least():
    assert steps_for(0.5, 100, 10) == 5
    assert steps_for(0.51, 100, 10) == 6
    assert steps_for(0.001, 10, 100) == 1


@pytest.mark.parametrize("sizes", [[1], [0, 1, 0], [0, 0, 5], [3], [1] * 30, [200, 1, 1]])
@pytest.mark.parametrize("streams", [1, 8])
def test_empty_and_single_and_uneven_shards_and_fewer_samples_than_streams(sizes, streams):
    plan = SampleOrder(sizes, seed=1, streams=streams)
    for epoch in (0, 1, 5):
        assert sorted(epoch_of(plan, epoch)) == list(range(sum(sizes)))


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [([], {}), ([0, 0], {}), ([-1, 3], {}), ([1], {"streams": 0}), ([1], {"block_shards": 0})],
)
def test_a_plan_of_nothing_is_refused(sizes, settings):
    with pytest.raises(ValueError, match=r"no samples|at least"):
        SampleOrder(sizes, seed=0, **settings)


def test_another_epoch_or_seed_is_another_order():
    plan, other = SampleOrder([50] * 8, seed=0), SampleOrder([50] * 8, seed=1)
    orders = [tuple(epoch_of(plan, epoch)) for epoch in range(4)]
    orders += [tuple(epoch_of(other, epoch)) for epoch in range(4)]
    assert len(set(orders)) == 8


def test_neighbors_in_a_shard_end_up_far_apart():
    order = epoch_of(SampleOrder([100] * 40, seed=3), 0)
    place = {sample: i for i, sample in enumerate(order)}
    apart = [abs(place[i] - place[i + 1]) for i in range(len(order) - 1) if (i + 1) % 100]
    assert sum(apart) / len(apart) > 100


def test_a_block_keeps_few_shards_alive_in_each_stream():
    sizes, streams, block_shards = [20] * 32, 4, 2
    order = epoch_of(SampleOrder(sizes, 0, streams, block_shards), 0)
    length = 20 * block_shards
    for stream in range(streams):
        own = order[stream::streams]
        lead = stream * length // streams  # the streams begin their blocks one after the other
        for start in range(-lead, len(own), length):
            shards = {sample // 20 for sample in own[max(start, 0) : start + length]}
            assert len(shards) <= block_shards + 1  # streams may begin inside a shard


@given(plans())
def test_no_more_samples_are_alive_than_it_says(plan):
    owner = [shard for shard, size in enumerate(plan.shard_sizes) for _ in range(size)]
    first, last = {}, {}
    for place, sample in enumerate(epoch_of(plan, 1)):
        first.setdefault(owner[sample], place)
        last[owner[sample]] = place
    alive = [
        sum(plan.shard_sizes[shard] for shard in first if first[shard] <= place <= last[shard])
        for place in range(plan.samples)
    ]
    assert max(alive) <= plan.samples_alive


def test_the_order_never_changes_between_versions():
    # Written down once: a change here silently changes what every resumed run sees.
    plan = SampleOrder([5, 0, 3, 6], seed=20, streams=3, block_shards=1)
    first, second = (
        [4, 8, 11, 2, 7, 10, 3, 6, 13, 1, 5, 12, 0, 9],
        [3, 11, 13, 0, 9, 5, 4, 8, 6, 2, 10, 7, 1, 12],
    )
    assert [plan.locate(position) for position in range(28)] == [
        *((0, sample) for sample in first),
        *((1, sample) for sample in second),
    ]


@st.composite
def runs(draw):
    """A plan, a global batch that several world sizes divide, and where a run ends."""
    plan = draw(plans())
    micro, accumulation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    epochs = draw(st.integers(1, 3))
    return plan, 12 * micro * accumulation, accumulation, epochs


def dealt(plan, layout, steps, end, workers):
    """The run as its ranks and loader processes see it: step → slot → (epoch, sample, weight).

    Micro-batches go to a rank's loader processes in turn, each with a plan of its own, and come
    back in turn, as PyTorch's loader does it.
    """
    found = {step: {} for step in steps}
    for rank in range(layout.world_size):
        own = [fresh(plan) for _ in range(max(1, workers))]
        batches = list(layout.micro_batches(rank, steps))
        assert len(batches) == len(steps) * layout.accumulation_steps  # equal on all ranks
        for number, positions in enumerate(batches):
            step = steps[number // layout.accumulation_steps]
            for position in positions:
                located = own[number % len(own)].locate(position)
                slot = position - step * layout.global_batch
                assert slot not in found[step]
                found[step][slot] = (*located, int(position < end))
    return found


def check_run(plan, global_batch, accumulation, epochs, world_size, workers, first):
    end = epochs * plan.samples
    steps = range(steps_for(epochs, plan.samples, global_batch))
    alone = BatchLayout(global_batch // accumulation, 1, accumulation)
    whole = dealt(plan, alone, steps, end, 0)
    flat = [whole[step][slot] for step in steps for slot in range(global_batch)]
    for epoch in range(epochs):  # every sample exactly once an epoch
        used = sorted(sample for e, sample, weight in flat if weight and e == epoch)
        assert used == list(range(plan.samples))
    assert sum(weight for *_, weight in flat) == end
    # A resume at any step, with another world size and any loader processes, continues the same.
    layout = BatchLayout(global_batch // world_size // accumulation, world_size, accumulation)
    resumed = range(min(first, len(steps)), len(steps))
    assert dealt(plan, layout, resumed, end, workers) == {step: whole[step] for step in resumed}


whole_runs = given(
    runs(),
    st.sampled_from([1, 2, 3, 4, 6, 12]),
    st.integers(0, 5),
    st.integers(0, 40),
)


@whole_runs
def test_a_run_is_the_same_for_every_world_size_worker_count_and_resume(run, world, workers, first):
    check_run(*run, world, workers, first)


@pytest.mark.long
@settings(max_examples=10_000)
@whole_runs
def test_ten_thousand_runs(run, world, workers, first):
    check_run(*run, world, workers, first)
