"""What all cases use: the device, networks, batches, clocks and rows."""

# B batch, C classes, S side of a training crop

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cocoseg.distributed.group import Group
from cocoseg.model.classes import label_settings
from cocoseg.model.encoder import lighten_encoder
from cocoseg.model.head import fold_head
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.registry import architecture
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train.batches import MicroBatch
from cocoseg.train.config import TrainConfig
from cocoseg.train.losses.step import StepLoss
from cocoseg.train.network import prepare_network, train_mode
from cocoseg.train.step import TrainingStep
from measure import Row
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSemanticSegmentation

TAXONOMY = coco_taxonomy()
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden" / "shards"
CPU = torch.device("cpu")
NOT_ON_CPU = "skipped: only a GPU shows it"


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a case runs."""

    device: torch.device
    tiny: bool
    """A rehearsal: small shapes, few rounds."""
    scratch: Path
    """A folder for files; all cases share it."""
    function: str = ""
    """Of the case: ``module:function``."""

    @classmethod
    def of(cls, device: str, tiny: bool, scratch: Path, function: str = "") -> "Bench":
        """Return it for a type of device; a GPU is the first one."""
        if device == "cuda":
            torch.cuda.set_device(0)
            return cls(torch.device("cuda", 0), tiny, scratch, function)
        torch.set_num_threads(1)
        return cls(CPU, tiny, scratch, function)

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def finish(self) -> None:
        """Wait until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def turn(self) -> None:
        """Wait until the cases before this one are done, and nothing else is measured."""
        while line := sys.stdin.readline():
            if line.split() == ["turn", self.function]:
                return

    def seconds(self, function: Callable[[], object], times: int = 1) -> float:
        """Return the mean time of a call, the device's work included [s]."""
        self.finish()
        start = time.perf_counter()
        for _ in range(times):
            function()
        self.finish()
        return (time.perf_counter() - start) / times


def at_most(
    what: str, found: float, bar: float, *, other: str = "", unit: str = "", and_also: bool = True
) -> Row:
    """Return a row of a figure that may not exceed `bar`.

    Parameters
    ----------
    and_also
        Another condition for the bar to be met, which `what` names.
    """
    return Row(
        what,
        other,
        f"{found:.2g}{unit}",
        "",
        f"≤ {bar:.2g}{unit}",
        bool(found <= bar and and_also),
    )


def exactly(what: str, found: object, expected: object, other: str = "") -> Row:
    """Return a row of what must be so."""
    return Row(what, other, str(found), "", str(expected), found == expected)


def equal(what: str, same: bool) -> Row:
    """Return a row of two results that must be equal."""
    return Row(what, "", "equal" if same else "different", "", "equal", same)


def without_bar(what: str, found: str, other: str = "", ratio: float | None = None) -> Row:
    """Return a row without a bar."""
    return Row(what, other, found, "" if ratio is None else f"{ratio:.2f}")


def rate(what: str, other: float, ours: float, bar: float | None = None) -> Row:
    """Return a row of two rates [images/s]; the ratio must reach `bar`."""
    shown = "" if bar is None else f"≥ {bar:.3g}"
    met = None if bar is None else ours / other >= bar
    texts = (f"{value:.1f} images/s" for value in (other, ours))
    return Row(what, *texts, f"{ours / other:.2f}", shown, met)


def plain_network(name: str, **settings: Any) -> nn.Module:
    """Return transformers' own network, randomly initialized from one seed, with COCO's classes."""
    torch.manual_seed(0)
    configuration = architecture(name)
    configuration.update({**label_settings(TAXONOMY), **settings})
    network: nn.Module = AutoModelForSemanticSegmentation.from_config(configuration)
    return network


def ours_of(theirs: nn.Module) -> nn.Module:
    """Return a copy of transformers' network as cocoseg runs it."""
    network = copy.deepcopy(theirs)
    assert fold_head(network)
    assert lighten_encoder(network)
    return network


NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout_prob": 0.0,
    "drop_path_rate": 0.0,
}
"""Settings of a network that draws nothing: a CPU and a GPU would draw different numbers."""


def draw_image(height: int, width: int, seed: int, grain: float = 0.0) -> NDArray[np.uint8]:
    """Draw soft blobs, uint8 RGB; `grain` is the deviation of noise over them, 0…255."""
    random = np.random.default_rng(seed)
    noise = torch.from_numpy(random.random((1, 3, 12, 16), np.float32))
    large = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0]
    pixels = large.permute(1, 2, 0).numpy() * 255
    if grain:
        pixels = pixels + random.normal(0, grain, (height, width, 1))
    drawn: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return drawn


def draw_mask(height: int, width: int, seed: int, classes: int = TAXONOMY.num_classes) -> Tensor:
    """Draw a mask of blocks, int64 (H, W), with 5 % of ignored pixels."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, classes, (1, 1, 8, 8), generator=generator).double()
    whole = F.interpolate(blocks, (height, width), mode="nearest")[0, 0].long()
    whole[torch.rand(whole.shape, generator=generator) < 0.05] = TAXONOMY.ignore_index
    return whole


def micro_batch(batch: int, side: int, loss: StepLoss, *, pinned: bool = False) -> MicroBatch:
    """Draw a micro-batch; from the fifth image on they repeat."""
    count = min(batch, 4)
    images = np.stack([draw_image(side, side, seed, grain=8) for seed in range(count)])
    masks = torch.stack([draw_mask(side, side, seed) for seed in range(count)]).to(torch.uint8)
    places = torch.arange(batch) % count
    divisors = [loss.denominators.of(one.numpy()) for one in masks[places]]
    made = MicroBatch(
        torch.from_numpy(images)[places],
        masks[places],
        tuple(map(str, range(batch))),
        (1,) * batch,
        (sum(pixels for pixels, _ in divisors), sum(images for _, images in divisors)),
    )
    return made.pin_memory() if pinned else made


class Learner:
    """Takes training steps on one batch, as `train` takes them.

    Parameters
    ----------
    network
        Of `ours_of`; it is moved to the device.
    settings
        Of `TrainConfig`.
    """

    def __init__(
        self,
        network: nn.Module,
        batch: int,
        side: int,
        device: torch.device,
        group: Group | None = None,
        **settings: Any,
    ) -> None:
        self.config = TrainConfig(batch_size=batch, accumulation_steps=1, **settings)
        group = group or Group(0, 1, device)
        weights = self.config.class_weights
        given = None if isinstance(weights, str) else weights
        loss = StepLoss.of(self.config, TAXONOMY, given)
        self.network = prepare_network(network, self.config, side, group)
        train_mode(self.network, self.config)
        self.step = TrainingStep.of(self.network, Preprocess(side), loss, self.config, group)
        self.batch = micro_batch(batch, side, loss, pinned=device.type == "cuda")
        self.steps = 0

    def __call__(self) -> float:
        """Take a step; return its loss."""
        result = self.step(self.steps, [self.batch], *self.batch.denominators)
        self.steps += 1
        return result.loss


class PlainLearner:
    """Takes the same steps plainly: transformers, F.interpolate, cross entropy and Dice, AdamW."""

    def __init__(self, network: nn.Module, batch: int, side: int, device: torch.device) -> None:
        self.network = network.to(device).train()
        self.network.zero_grad()  # what a step that did not fit has left
        fused = True if device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=6e-5, fused=fused)
        loss = StepLoss.of(TrainConfig(loss_type="ce_dice"), TAXONOMY, None)
        self.batch = micro_batch(batch, side, loss, pinned=device.type == "cuda")
        self._device = device
        preprocess = Preprocess(side)
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (preprocess.mean, preprocess.std)
        )

    def __call__(self) -> None:
        """Take a step."""
        images = self.batch.images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        x = (images.float() / 255 - self._mean) / self._std
        truth = self.batch.masks.to(self._device, non_blocking=True).long()
        model: Any = self.network
        with torch.autocast(self._device.type, torch.bfloat16):
            logits = model(pixel_values=x).logits
        plain_loss(logits.float(), truth).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def plain_loss(logits_BChw: Tensor, truth_BHW: Tensor) -> Tensor:
    """Return cross entropy + 1 − Dice, of each image over the classes that it shows."""
    ignored = TAXONOMY.ignore_index
    size = truth_BHW.shape[1:]
    logits_BCHW = F.interpolate(logits_BChw, size, mode="bilinear", align_corners=False)
    valid_B1HW = (truth_BHW != ignored)[:, None]
    truth_B1HW = torch.where(valid_B1HW, truth_BHW[:, None], 0)
    # In float32 from the start: the int64 of F.one_hot takes twice the memory, and more time.
    truth_BCHW = torch.zeros_like(logits_BCHW).scatter_(1, truth_B1HW, valid_B1HW.float())
    p_BCHW = logits_BCHW.softmax(1) * valid_B1HW
    sizes_BC = truth_BCHW.sum((2, 3))
    overlap_BC = (p_BCHW * truth_BCHW).sum((2, 3))
    dice_BC = (2 * overlap_BC + 1) / (p_BCHW.sum((2, 3)) + sizes_BC + 1)
    shown_BC = sizes_BC > 0
    dice_B = ((1 - dice_BC) * shown_BC).sum(1) / shown_BC.sum(1).clamp(min=1)
    cross_entropy = F.cross_entropy(logits_BCHW, truth_BHW, ignore_index=ignored)
    return cross_entropy + dice_B.mean()


@contextlib.contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Let cuDNN try which convolutions are fastest, as `train` does, for both sides."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
