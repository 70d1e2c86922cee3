"""Checks of ``cocoseg doctor`` on the network: it loads, learns, and is scored."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..checkpoint.network import LoadedNetwork, load_network, start_network
from ..distributed.group import Group
from ..errors import ConfigError
from ..figures import bytes_text
from ..model.config import ModelConfig
from ..model.device import pick_device
from ..model.precision import resolve_precision
from ..model.predictor import Predictor
from ..model.preprocess import Preprocess
from ..model.score import NetworkPredicts, totals_of
from ..train.batches import MicroBatch
from ..train.config import TrainConfig
from ..train.losses.step import StepLoss
from ..train.network import memory_of, prepare_network, train_mode
from ..train.optimizer import set_learning_rate
from ..train.step import TrainingStep
from .finding import Finding, ok, problem, warning
from .inspection import Inspection
from .machine import free_memory

_STEPS = 8  # on one batch
_FALLEN = 0.95  # of the first loss, at most, after them
_CPU_SIDE, _CPU_BATCH = 128, 2  # pixels, images: a trial step takes seconds, whatever the network
_TRIAL_SECONDS = 60.0  # after which no further step begins
_PREDICTED = 4  # samples
_TINY = "segformer-tiny"


@dataclass(slots=True)
class Trial:
    """Network, a few steps, scores, one after the other, on what the inspection opened."""

    train: TrainConfig
    model: ModelConfig
    inspected: Inspection
    checkpoint: str | None = None
    network: nn.Module | None = None
    preprocess: Preprocess | None = None
    loaded: LoadedNetwork | None = None

    def start(self) -> Iterator[Finding]:
        """Make the network that training would start from, and load the checkpoint."""
        if self.checkpoint is not None:
            self.loaded = load_network(self.checkpoint, self.model)
            names = self.loaded.taxonomy.names
            yield ok(f"{self.checkpoint}: {_size(self.loaded.network)}, {len(names)} classes")
            if self.inspected.shards is not None and names != self.inspected.shards.taxonomy.names:
                self.loaded = None
                yield problem(
                    "the checkpoint's classes are not those of the shards",
                    "its masks and scores would mean nothing on these shards",
                )
        if self.inspected.shards is None:
            return
        taxonomy, name = self.inspected.shards.taxonomy, self.model.name
        try:
            self.network, self.preprocess = start_network(self.model, taxonomy, self.train.seed)
        except ConfigError as error:
            yield warning(
                f"{str(error).splitlines()[0]}; {_TINY} stands in for it",
                "see 'hub' above; or a local folder as model.name",
            )
            name = _TINY
            self.model = self.model.model_copy(update={"name": name})
            self.network, self.preprocess = start_network(self.model, taxonomy, self.train.seed)
        yield ok(f"{name}: {_size(self.network)}, {taxonomy.num_classes} classes")
        device = pick_device(self.train.device)
        group = Group(0, 1, device)
        self.network = prepare_network(self.network, self.train, self.model.input_size, group)
        yield self._memory(self.network, device)

    def _memory(self, network: nn.Module, device: torch.device) -> Finding:
        """Compare what a training step will take with what is free."""
        config = self.train
        train_mode(network, config)
        need = memory_of(network, config, self.model.input_size, device)
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        text = (
            f"{bytes_text(need.total)} for steps of {config.batch_size} × "
            f"{self.model.input_size}², of them {bytes_text(need.activations)} activations; "
            f"{bytes_text(free)} are free ({device})"
        )
        if need.total > free:
            return problem(text, "docs/how-to.md, 'Out of memory'")
        return ok(text)

    def learn(self) -> Iterator[Finding]:
        """Take steps on one batch: the loss must fall."""
        if self.network is None or self.preprocess is None:
            return
        if (
            self.inspected.batch is None
            or self.inspected.loss is None
            or self.inspected.batch.denominators[0] == 0
        ):
            yield problem("no sample was read of which something could be learnt", "see above")
            return
        device = pick_device(self.train.device)
        batch = (
            self.inspected.batch
            if device.type == "cuda"
            else _small(self.inspected.batch, self.inspected.loss)
        )
        step = self._step(device)
        pixels, images = batch.denominators
        losses: list[float] = []
        norms: list[float] = []
        seconds: list[float] = []
        for number in range(_STEPS):
            if number > 1 and sum(seconds) > _TRIAL_SECONDS:
                break
            began = time.perf_counter()
            result = step(number, [batch], pixels, images)
            seconds.append(time.perf_counter() - began)
            losses.append(result.loss)
            if not result.overflowed:  # which is not a fault: float16's scale is found by them
                norms.append(result.grad_norm)
        size = f"{batch.images.shape[0]} × {batch.images.shape[1]}²"
        text = (
            f"loss {losses[0]:.4f} → {losses[-1]:.4f} in {len(losses)} steps on {size} ({device})"
        )
        if not all(map(math.isfinite, losses)):
            remedy = "a smaller train.learning_rate, train.use_amp=false"
            yield problem(f"{text}: the loss is not finite", remedy)
        elif not all(map(math.isfinite, norms)):
            yield problem(f"{text}: the gradient is not finite", "train.use_amp=false")
        elif not norms:
            yield problem(f"{text}: every gradient overflowed", "train.amp_dtype=bfloat16")
        elif norms[0] == 0:
            yield problem(f"{text}: the gradient is zero", "is everything frozen?")
        elif losses[-1] > _FALLEN * losses[0]:
            yield warning(
                f"{text}: it does not fall", "try another train.learning_rate (10 × more, or less)"
            )
        else:
            yield ok(f"{text}, gradient norm {norms[0]:.3g}")
        usual = float(np.median(seconds))
        taken = len(batch.keys) / usual
        yield ok(f"a step takes {1000 * usual:.0f} ms without its loader: {taken:.1f} images/s")
        if device.type == "cuda":  # elsewhere the batch was a small one
            yield ok(f"{bytes_text(torch.cuda.max_memory_allocated(device))} of memory at the peak")
            delivered = self.inspected.rate
            if delivered is not None and delivered < taken:
                yield warning(
                    f"the loader delivers {delivered:.1f} images/s, and the network waits for data",
                    "more train.workers; docs/how-to.md, 'Slow loader'",
                )

    def _step(self, device: torch.device) -> TrainingStep:
        assert (
            self.network is not None
            and self.preprocess is not None
            and self.inspected.loss is not None
        )
        group = Group(0, 1, device)
        step = TrainingStep.of(
            self.network,
            self.preprocess,
            self.inspected.loss,
            self.train.resolved(self.model),
            group,
        )
        set_learning_rate(step.optimizer, 1.0)
        return step

    def score(self) -> Iterator[Finding]:
        """Predict masks, and compare what the confusion matrix counts with the index."""
        network, preprocess = self.network, self.preprocess
        if self.loaded is not None:
            network, preprocess = self.loaded.network, self.loaded.preprocess
        if self.inspected.shards is None or network is None or preprocess is None:
            return
        shards, taxonomy = self.inspected.shards, self.inspected.shards.taxonomy
        count = min(_PREDICTED, len(shards))
        device = pick_device(self.train.device)
        precision = resolve_precision(self.model.inference_precision, device)
        predictor = Predictor(network.to(device).eval(), preprocess, precision=precision)
        predicts = NetworkPredicts(predictor, confidence=False)
        matrix = totals_of(predicts, shards, [range(count)]).confusion
        expected = np.zeros(taxonomy.num_classes, np.int64)
        for number in range(count):
            for train_id, pixels in self.inspected.shards.row(number).class_pixels:
                if train_id != taxonomy.ignore_index:
                    expected[train_id] += pixels
        if not np.array_equal(matrix.sum(axis=1), expected):
            yield problem(
                f"the confusion matrix counts {matrix.sum()} pixels, the index {expected.sum()}",
                "cocoseg verify DIR; if that finds nothing, this is a bug of cocoseg",
            )
        else:
            yield ok(f"{count} samples, {matrix.sum():,} pixels, as many as the index counts")


def _small(batch: MicroBatch, loss: StepLoss) -> MicroBatch:
    """Cut a batch for the CPU: few images, each its middle, and its most valid ones first."""
    side = min(_CPU_SIDE, batch.images.shape[1])
    begin = (batch.images.shape[1] - side) // 2
    images = batch.images[:, begin : begin + side, begin : begin + side]
    masks = batch.masks[:, begin : begin + side, begin : begin + side]
    parts = [loss.denominators.of(mask.numpy()) for mask in masks]
    chosen = sorted(range(len(parts)), key=lambda i: -parts[i][0])[:_CPU_BATCH]
    if parts[chosen[0]][0] == 0:  # valid pixels at the edges alone
        return batch
    return MicroBatch(
        images[chosen],
        masks[chosen],
        tuple(batch.keys[i] for i in chosen),
        tuple(batch.weights[i] for i in chosen),
        (sum(parts[i][0] for i in chosen), sum(parts[i][1] for i in chosen)),
    )


def _size(network: nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters"
