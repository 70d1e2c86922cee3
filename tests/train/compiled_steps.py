"""Run under torchrun: the same steps by a plain and a compiled network; rank 0 prints JSON.

    torchrun --nproc-per-node W compiled_steps.py BACKEND SETTINGS

SETTINGS is JSON, of `TrainConfig`.
"""

import json
import sys
import warnings

import torch
import torch._inductor.config
from cocoseg.checkpoint.network import start_network
from cocoseg.distributed.group import process_group
from cocoseg.model.config import ModelConfig
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train import step as step_module
from cocoseg.train.batches import MicroBatch
from cocoseg.train.config import TrainConfig
from cocoseg.train.losses.step import StepLoss
from cocoseg.train.network import prepare_network, train_mode
from cocoseg.train.step import TrainingStep
from torch.nn.parallel import DistributedDataParallel

SIZE, STEPS = 64, 3


class SeveralBuckets(DistributedDataParallel):
    """Gradients of 2 MB do not fill a bucket of the usual size."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, bucket_cap_mb=1, **more)


def micro_batch(generator):
    images = torch.randint(0, 256, (2, SIZE, SIZE, 3), generator=generator).byte()
    masks = torch.randint(0, 81, (2, SIZE, SIZE), generator=generator).byte()
    return MicroBatch(images, masks, ("key",) * 2, (1,) * 2)


def losses_of(group, settings, *, compiled):
    config = TrainConfig(compile=compiled, learning_rate=1e-3, **settings)
    network, preprocess = start_network(
        ModelConfig(name="segformer-tiny", input_size=SIZE), coco_taxonomy(), 0
    )
    network = prepare_network(network, config, SIZE, group)
    train_mode(network, config)
    loss = StepLoss.of(config, coco_taxonomy(), None)
    learn = TrainingStep.of(network, preprocess, loss, config, group)
    learn.connect()
    generator = torch.Generator().manual_seed(group.rank)
    images = 4 * group.world_size
    found = []
    for step in range(STEPS):
        batches = [micro_batch(generator) for _ in range(2)]
        result = learn(step, batches, float(images * SIZE**2), float(images))
        found.append([result.loss, result.grad_norm])
    return found


def main():
    backend, settings = sys.argv[1], json.loads(sys.argv[2])
    compile_plain = torch.compile
    torch.compile = lambda network: compile_plain(network, backend=backend)
    torch._inductor.config.fallback_random = True  # dropout draws what it draws without
    step_module.DistributedDataParallel = SeveralBuckets
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
    torch.set_num_threads(1)
    with process_group("cpu") as group:
        plain = losses_of(group, settings, compiled=False)
        found = losses_of(group, settings, compiled=True)
        if group.leads:
            from torch._dynamo.utils import counters

            print(
                json.dumps(
                    {
                        "plain": plain,
                        "compiled": found,
                        "graphs": counters["stats"]["unique_graphs"],
                        "breaks": list(counters["graph_break"]),
                    }
                )
            )


if __name__ == "__main__":
    main()
