"""Which few samples to show of very many: spread over the shards, and rich in classes."""

import numpy as np
from numpy.typing import NDArray

_CLEARLY = 0.01  # the share of a picture from which on a class is seen at a glance


def diverse(
    shard: NDArray[np.integer],
    sample: NDArray[np.integer],
    train_id: NDArray[np.integer],
    share: NDArray[np.floating],
    excluded: NDArray[np.bool_],
    count: int,
) -> list[int]:
    """Choose samples, each for the classes that it shows more clearly than those before.

    Every next one is of a shard that has given the fewest. N samples, M (sample, class) pairs; no
    loop runs over either: 118,000 images take 0.1 s.

    Parameters
    ----------
    shard
        Of each sample, shape (N,).
    sample, train_id, share
        Of each pair, shape (M,): the sample's place, the class, and the part of the picture that it
        covers, 0…1. Classes that do not count (background) are left out by the caller.
    excluded
        Samples that must not be chosen, shape (N,).
    count
        How many; fewer if there are not enough.

    Returns
    -------
    list of int
        Places of the samples in the order of the choice; ties go to the earlier one.
    """
    seen = np.minimum(share / _CLEARLY, 1)  # how clearly each class is seen in each sample
    best = np.zeros(int(train_id.max(initial=0)) + 1)  # and in the samples chosen so far
    free = ~excluded
    given = np.zeros(int(shard.max(initial=0)) + 1, np.int64)
    chosen: list[int] = []
    while len(chosen) < count and free.any():
        left = np.bincount(shard[free], minlength=len(given)) > 0
        candidates = free & (given[shard] == given[left].min())
        # Where nothing new is to be seen, the richest picture will do.
        gain = np.maximum(seen - best[train_id], 0) + seen / 100
        score = np.bincount(sample, gain, minlength=len(shard))
        place = int(np.where(candidates, score, -1).argmax())
        pairs = sample == place
        np.maximum.at(best, train_id[pairs], seen[pairs])
        free[place] = False
        given[shard[place]] += 1
        chosen.append(place)
    return chosen
