"""Run under torchrun: one optimizer step, cut in every way; prints its loss, saves the gradient.

    torchrun --nproc-per-node W exact_cells.py BATCH.pt OUT CELLS

BATCH.pt holds images (uint8) and masks of the whole global batch and the weights of a network;
CELLS is JSON, [[accumulation steps, {settings of TrainConfig}], …]. Slot s goes to rank s mod W, as
in training. The learning rate is 1: a weight loses its gradient.
"""

import json
import sys

import torch
from cocoseg.checkpoint.network import start_network
from cocoseg.distributed.group import process_group
from cocoseg.model.config import ModelConfig
from cocoseg.model.preprocess import Preprocess
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train.batches import MicroBatch
from cocoseg.train.config import TrainConfig
from cocoseg.train.losses.step import StepLoss
from cocoseg.train.step import TrainingStep
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class Double(nn.Module):
    """Takes the float32 images of training."""

    def __init__(self, network):
        super().__init__()
        self.inner = network

    def forward(self, pixel_values):
        return self.inner(pixel_values=pixel_values.double())


def micro_batches(images, masks, loss, group, accumulation_steps):
    """This rank's part of the global batch."""
    own = range(group.rank, len(images), group.world_size)
    size = len(own) // accumulation_steps
    for first in range(0, len(own), size):
        slots = list(own[first : first + size])
        divisors = [loss.denominators.of(masks[slot].numpy()) for slot in slots]
        yield MicroBatch(
            images[slots],
            masks[slots],
            tuple(map(str, slots)),
            (1,) * size,
            (sum(pixels for pixels, _ in divisors), sum(images for _, images in divisors)),
        )


def run_cell(group, stored, accumulation_steps, settings):
    config = TrainConfig(**settings)
    taxonomy = coco_taxonomy()
    network, _ = start_network(ModelConfig(name="segformer-tiny", input_size=32), taxonomy, 0)
    network.load_state_dict(stored["weights"])
    network.double().eval()  # frozen statistics, no dropout
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wrapped = Double(network)
    if group.world_size > 1:
        wrapped = DistributedDataParallel(wrapped)
    weights = None if config.class_weights == "none" else config.class_weights
    loss = StepLoss.of(config, taxonomy, weights)
    learn = TrainingStep(
        network=network,
        wrapped=wrapped,
        preprocess=Preprocess(32),
        normalize=Preprocess(32).normalizer(),
        loss=loss,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        amp=torch.autocast("cpu", torch.bfloat16, enabled=False),
        group=group,
        seed=0,
        clip_grad_norm=0.0,
        channels_last=False,
    )
    batches = list(
        micro_batches(stored["images"], stored["masks"], loss, group, accumulation_steps)
    )
    told = torch.tensor([batch.denominators for batch in batches], dtype=torch.float64).sum(dim=0)
    pixels, images = group.sum(told).tolist()
    result = learn(0, batches, pixels, images)
    after = network.state_dict()
    return result, {name: before[name] - after[name] for name in before}


def main():
    stored_at, out, cells = sys.argv[1:]
    stored = torch.load(stored_at, weights_only=True)
    with process_group("cpu") as group:
        for i, (accumulation_steps, settings) in enumerate(json.loads(cells)):
            result, gradient = run_cell(group, stored, accumulation_steps, settings)
            if group.leads:
                torch.save(gradient, f"{out}-{i}.pt")
                print(json.dumps([i, result.loss, result.grad_norm, result.skipped]), flush=True)


if __name__ == "__main__":
    main()
