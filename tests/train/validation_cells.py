"""Run under torchrun: validates one network on several sets; prints all scores of each.

    torchrun --nproc-per-node W validation_cells.py CHECKPOINT FOLDERS

FOLDERS is a JSON list of folders of shards.
"""

import json
import sys

import torch
from cocoseg.checkpoint.network import load_network
from cocoseg.distributed.group import process_group
from cocoseg.model.config import ModelConfig
from cocoseg.shards.reader import ShardSet
from cocoseg.train.validation import validate


def main():
    checkpoint, folders = sys.argv[1:]
    with process_group("cpu") as group:
        loaded = load_network(checkpoint, ModelConfig())
        for folder in json.loads(folders):
            shards = ShardSet([folder])
            found = validate(
                loaded.network,
                loaded.preprocess,
                shards,
                group,
                batch_size=2,
                precision=torch.float32,
                check=lambda: None,
            )
            told = group.gather({**found.scores.to_dict(shards.taxonomy.names), "loss": found.loss})
            assert all(one == told[0] for one in told)  # every rank knows the same
            if group.leads:
                print(json.dumps(told[0]), flush=True)


if __name__ == "__main__":
    main()
