"""Run under torchrun: every cell of the matrix in one process group; prints what rank 0 gathered.

    torchrun --nproc-per-node W ddp_cells.py FOLDER GLOBAL_BATCH EPOCHS CELLS

CELLS is JSON, [[samples, workers], …]; FOLDER/SAMPLES holds shards. Each step does what training
does: counts are summed over the ranks, and a wrapped network takes a backward pass.
"""

import json
import math
import sys

import torch
from cocoseg.distributed.group import process_group
from cocoseg.shards.order import BatchLayout, SampleOrder, steps_for
from cocoseg.shards.reader import ShardSet
from cocoseg.train.batches import TrainingSamples, micro_batches
from cocoseg.train.config import AugmentConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

SIZE, SEED, STREAMS, BLOCK_SHARDS = 8, 3, 3, 2


def run_cell(group, folder, global_batch, epochs, count, workers):
    shards = ShardSet([f"{folder}/{count}"])
    plan = SampleOrder(shards.shard_sizes, SEED, STREAMS, BLOCK_SHARDS)
    layout = BatchLayout(global_batch // group.world_size // 2, group.world_size, 2)
    end = math.ceil(epochs * count)
    samples = TrainingSamples(shards, plan, AugmentConfig(), SIZE, end)
    network = nn.Conv2d(3, 1, 1)
    if group.world_size > 1:
        network = DistributedDataParallel(network)
    used = []
    steps = steps_for(epochs, count, layout.global_batch)
    for step in micro_batches(samples, layout, group.rank, 0, steps, workers, pin_memory=False):
        for batch in step:
            network(batch.images.permute(0, 3, 1, 2).float()).sum().backward()
        own = [(batch.keys[i], batch.weights[i]) for batch in step for i in range(len(batch.keys))]
        total = group.sum(torch.tensor([sum(weight for _, weight in own)]))
        used.append((group.gather(own), int(total)))
    return used


def main():
    folder, global_batch, epochs, cells = sys.argv[1:]
    with process_group("cpu") as group:
        for count, workers in json.loads(cells):
            used = run_cell(group, folder, int(global_batch), float(epochs), count, workers)
            if group.leads:
                print(json.dumps([count, workers, used]), flush=True)


if __name__ == "__main__":
    main()
