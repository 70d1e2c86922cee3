"""One optimizer step, exact over all processes and micro-batches."""

import contextlib
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed.group import Group
from ..model import switches
from ..model.preprocess import Normalize, Preprocess
from .batches import MicroBatch
from .config import TrainConfig
from .losses.step import StepLoss
from .network import precision
from .optimizer import build_optimizer

_NO_BUFFERS: dict[str, Any] = {  # in each forward pass; since PyTorch 2.13 the older name warns
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step; the same on every process, but for `suspects`."""

    loss: float
    """Of the whole step: all processes, all micro-batches."""
    grad_norm: float
    """Euclidean norm of the whole gradient, before clipping."""
    skipped: bool
    """Whether the loss, or without loss scaling the gradient, was not finite: then nothing
    was changed, batch norm statistics included."""
    overflowed: bool
    """Whether loss scaling found the gradient out of float16's range: no fault, nothing was learnt
    and the scale is lowered. Once it is below 1, the gradient itself is not a number: a fault."""
    suspects: tuple[str, ...] = ()
    """Keys of this process's samples whose part of the loss was not finite."""


@dataclass(slots=True)
class TrainingStep:
    """Forward, backward and update.

    The loss of a step is one fraction, Σ over all pixels of all processes and micro-batches ÷ what
    they add up to, and likewise over images. The divisors depend on the masks alone, so each part
    is divided by the step's divisor before its backward pass: gradients of parts just add up, and
    sums are never out of float16's range.
    """

    network: nn.Module
    wrapped: nn.Module
    """The network as it is trained: under DDP, compiled, or itself."""
    preprocess: Preprocess
    normalize: Normalize
    loss: StepLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    amp: torch.autocast
    group: Group
    seed: int
    clip_grad_norm: float
    """0 does not clip."""
    channels_last: bool
    updating: bool = False
    """Whether weights are being changed: if that fails, some are and some are not."""

    @classmethod
    def of(
        cls,
        network: nn.Module,
        preprocess: Preprocess,
        loss: StepLoss,
        config: TrainConfig,
        group: Group,
    ) -> "TrainingStep":
        """Return the steps of a configuration, for a network that `prepare_network` has seen.

        Several processes call `connect` before the first step.
        """
        dtype = precision(config, group.device)
        return cls(
            network=network,
            wrapped=switches.compiled(network) if config.compile else network,
            preprocess=preprocess,
            normalize=preprocess.normalizer().to(group.device),
            loss=loss.on(group.device),
            optimizer=build_optimizer(network, switches.backbone_of(network), config),
            scaler=torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16),
            amp=torch.autocast(group.device.type, dtype, enabled=dtype != torch.float32),
            group=group,
            seed=config.seed,
            clip_grad_norm=config.clip_grad_norm,
            channels_last=config.channels_last,
        )

    def connect(self) -> None:
        """Let processes exchange their gradients; all of them call it together."""
        if self.group.world_size > 1:
            self.wrapped = DistributedDataParallel(
                self.wrapped,
                device_ids=[self.group.device] if self.group.device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Running statistics are equal on all ranks, or shared where they are used.
                **_NO_BUFFERS,
            )

    def __call__(
        self, step: int, batches: Sequence[MicroBatch], pixels: float, images: float
    ) -> StepResult:
        """Learn from this process's micro-batches of a step; all processes call it together.

        Parameters
        ----------
        step
            Optimizer steps done before it: decides dropout, with seed and rank.
        pixels, images
            The divisors of the whole step.

        Raises
        ------
        Exception
            Of any kind, such as out of memory. Unless `updating`, everything is then as it was
            before the step.
        """
        self._seed_dropout(step)
        statistics = [
            (buffer, buffer.clone())
            for module in self.network.modules()
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.training
            for buffer in module.buffers(recurse=False)
        ]
        try:
            parts = [
                self._backward(batch, pixels, images, last=i == len(batches) - 1)
                for i, batch in enumerate(batches)
            ]
            self.scaler.unscale_(self.optimizer)
            gradients = [
                parameter.grad
                for group in self.optimizer.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            norm = nn.utils.get_total_norm(gradients)
            # The one time a step that the device is waited for.
            *own, grad_norm = torch.stack([*parts, norm.to(parts[0])]).tolist()
        except Exception:
            _restore(statistics)
            self.optimizer.zero_grad(set_to_none=True)
            raise
        loss = float(self.group.sum(torch.tensor(own, dtype=torch.float64).sum()))
        overflowed = (
            self.scaler.is_enabled()
            and not math.isfinite(grad_norm)
            and self.scaler.get_scale() >= 1.0
        )
        skipped = not math.isfinite(loss) or not (math.isfinite(grad_norm) or overflowed)
        suspects: tuple[str, ...] = ()
        if skipped:
            _restore(statistics)
            bad = [
                batch for batch, part in zip(batches, own, strict=True) if not math.isfinite(part)
            ]
            suspects = tuple(key for batch in bad or batches for key in batch.keys)
        else:
            if self.clip_grad_norm:
                parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
                nn.utils.clip_grads_with_norm_(parameters, self.clip_grad_norm, norm)
            self.updating = True
            self.scaler.step(self.optimizer)
            self.updating = False
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return StepResult(loss, grad_norm, skipped, overflowed and not skipped, suspects)

    def _backward(self, batch: MicroBatch, pixels: float, images: float, last: bool) -> Tensor:
        """Add one micro-batch's gradient; return its part of the loss, a scalar on the device."""
        device = self.group.device
        photos = batch.images.to(device, non_blocking=True)
        masks = batch.masks.to(device, non_blocking=True).long()
        with contextlib.nullcontext() if last else self._no_sync():
            x = self.normalize(photos)
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            with self.amp:
                logits = self.wrapped(pixel_values=x).logits
            part = self.loss(logits, masks, pixels, images)
            # DDP averages gradients over the processes, whose parts are to be added.
            summed = part * self.group.world_size if self.group.world_size > 1 else part
            self.scaler.scale(summed).backward()
        return part.detach()

    def _seed_dropout(self, step: int) -> None:
        """Make dropout a function of (seed, step, rank): there is no random state to save."""
        words = np.random.SeedSequence((self.seed, step, self.group.rank)).generate_state(1)
        torch.manual_seed(int(words[0]))

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()


def _restore(statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Undo what a step did to the statistics of the batch norms."""
    for buffer, before in statistics:
        buffer.copy_(before)
