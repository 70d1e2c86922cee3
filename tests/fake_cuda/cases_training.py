"""Cases of training: a step of cocoseg, and the same step in plain transformers."""

# B batch, C classes, H W pixels, h w of the network's output

import contextlib
from collections.abc import Iterator
from typing import Any

import cocoseg.train.step as training
import torch
import torch.distributed as dist
from cases_common import DEVICE, TAXONOMY, template
from cocoseg.distributed.group import Group
from cocoseg.model import switches
from cocoseg.model.classes import label_settings
from cocoseg.model.meta import empty_copy
from cocoseg.model.preprocess import IMAGENET_MEAN, IMAGENET_STD
from cocoseg.model.registry import architecture
from cocoseg.train.batches import MicroBatch, on_device
from cocoseg.train.config import TrainConfig
from cocoseg.train.ema import MovingAverage
from cocoseg.train.losses.step import StepLoss
from cocoseg.train.network import memory_of, prepare_network, train_mode
from cocoseg.train.optimizer import build_optimizer
from counter import Counter
from device import fake_device
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import SegformerForSemanticSegmentation


def training_step(
    counter: Counter,
    *,
    model: str = "segformer-tiny",
    size: int = 64,
    batch: int = 2,
    micro_batches: int = 1,
    world_size: int = 1,
    **settings: Any,
) -> None:
    """Run one step, from the batch on the host to the optimizer and the moving average.

    Parameters
    ----------
    settings
        Of `TrainConfig`.
    """
    config = TrainConfig(batch_size=batch, accumulation_steps=micro_batches, **settings)
    network, preprocess = template(model, size)
    group = Group(0, world_size, DEVICE)
    with _fake_group(world_size), fake_device():
        network = prepare_network(empty_copy(network, "cuda"), config, size, group)
        train_mode(network, config)
        average = MovingAverage(network, config.ema_decay) if config.ema_decay else None
        step = training.TrainingStep.of(network, preprocess, _loss(config), config, group)
        step.connect()
        _fill(step.optimizer)
        # As the loader of a run does; in the counter, which only then knows of it.
        pinned = (_micro_batch(batch, size).pin_memory() for _ in range(micro_batches))
        steps = (one for one in map(list, [pinned]))
        with counter:
            for batches in on_device(steps, DEVICE):
                step(1, batches, float(batch * size**2), float(batch))
                if average is not None:
                    average.update(network, 1)


def loss(counter: Counter, *, size: int = 64, batch: int = 2, **settings: Any) -> None:
    """Compute the loss of logits, forward and backward."""
    with fake_device():
        step_loss = _loss(TrainConfig(**settings)).on(DEVICE)
        shape = (batch, TAXONOMY.num_classes, size // 4, size // 4)
        logits = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
        masks = torch.empty(batch, size, size, dtype=torch.int64, device=DEVICE)
        with counter:
            step_loss(logits, masks, 1.0, 1.0).backward()


def memory_estimate(counter: Counter, *, world_size: int = 2, **settings: Any) -> None:
    """Estimate the memory of a step, which rank 0 does alone."""
    config = TrainConfig(**settings)
    network, _ = template("segformer-tiny", 64)
    with _fake_group(world_size), fake_device():
        network = prepare_network(
            empty_copy(network, "cuda"), config, 64, Group(0, world_size, DEVICE)
        )
        train_mode(network, config)
        with counter:
            assert memory_of(network, config, 64, DEVICE).activations > 0


class _Wrapped(nn.Module):
    """Replaces DDP, whose C++ reducer reads the memory of tensors."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


@contextlib.contextmanager
def _fake_group(world_size: int) -> Iterator[None]:
    """Join a process group whose collectives do nothing; a single process needs none."""
    if world_size == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    before, training.DistributedDataParallel = training.DistributedDataParallel, _Wrapped
    try:
        yield
    finally:
        training.DistributedDataParallel = before
        dist.destroy_process_group()


def plain_step(
    counter: Counter, *, model: str = "segformer-tiny", size: int = 64, batch: int = 2
) -> None:
    """Run the same step with the network of transformers and plainly written losses.

    bfloat16, cross entropy and Dice; the optimizer is that of cocoseg.
    """
    settings = architecture(model)
    settings.update(label_settings(TAXONOMY))
    with torch.device("meta"):
        network = SegformerForSemanticSegmentation(settings)
    with fake_device():
        network = empty_copy(network, "cuda").train()
        optimizer = build_optimizer(network, switches.backbone_of(network), TrainConfig())
        mean, std = (
            torch.tensor(values, device=DEVICE).view(1, 3, 1, 1)
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        _fill(optimizer)
        micro_batch = _micro_batch(batch, size)
        with counter:
            images = micro_batch.images.to(DEVICE, non_blocking=True).permute(0, 3, 1, 2)
            x = (images.float() / 255 - mean) / std
            truth = micro_batch.masks.to(DEVICE, non_blocking=True).long()
            with torch.autocast("cuda", torch.bfloat16):
                logits = network(pixel_values=x).logits
            loss = _plain_loss(logits.float(), truth)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def _plain_loss(logits_BChw: Tensor, truth_BHW: Tensor) -> Tensor:
    """Return cross entropy + 1 − Dice; Dice per image, over the classes that are present."""
    ignored = TAXONOMY.ignore_index
    logits_BCHW = F.interpolate(logits_BChw, truth_BHW.shape[1:], mode="bilinear")
    cross_entropy = F.cross_entropy(logits_BCHW, truth_BHW, ignore_index=ignored)
    valid_B1HW = (truth_BHW != ignored)[:, None]
    p_BCHW = logits_BCHW.softmax(1) * valid_B1HW
    truth_BHW = torch.where(truth_BHW == ignored, 0, truth_BHW)
    truth_BCHW = F.one_hot(truth_BHW, TAXONOMY.num_classes).permute(0, 3, 1, 2) * valid_B1HW
    overlap_BC = (p_BCHW * truth_BCHW).sum((2, 3))
    size_BC = truth_BCHW.sum((2, 3))
    dice_BC = (2 * overlap_BC + 1) / (p_BCHW.sum((2, 3)) + size_BC + 1)
    shown_BC = size_BC > 0
    dice_B = ((1 - dice_BC) * shown_BC).sum(1) / shown_BC.sum(1).clamp(min=1)
    return cross_entropy + dice_B.mean()


def _loss(config: TrainConfig) -> StepLoss:
    weights = None if config.class_weights == "none" else config.class_weights
    return StepLoss.of(config, TAXONOMY, weights)


def _micro_batch(batch: int, size: int) -> MicroBatch:
    images = torch.zeros(batch, size, size, 3, dtype=torch.uint8)
    masks = torch.zeros(batch, size, size, dtype=torch.uint8)
    return MicroBatch(images, masks, ("key",) * batch, (1,) * batch, (1.0, 1.0))


def _fill(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer its state of after the first step; any fake tensors will do."""
    for group in optimizer.param_groups:
        step = torch.empty((), device=DEVICE if group.get("fused") else "cpu")
        for one in group["params"]:
            optimizer.state[one] = {"step": step, "exp_avg": one, "exp_avg_sq": one}
            optimizer.state[one]["momentum_buffer"] = one
