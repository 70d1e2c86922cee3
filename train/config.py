"""Settings of ``cocoseg train``."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..config import PathField, Section
from ..shards.config import ReadConfig


class AugmentConfig(Section):
    """Training transforms, in this order; validation only resizes."""

    scale_range: tuple[PositiveFloat, PositiveFloat] = (0.25, 1.0)
    """Area of the random crop as a fraction of the image."""
    ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Width to height of the random crop."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    color_jitter: float = Field(0.8, ge=0, le=1)
    """Probability of a colour jitter."""
    brightness: float = Field(0.3, ge=0, le=1)
    """Largest relative change."""
    contrast: float = Field(0.3, ge=0, le=1)
    """Largest relative change."""
    saturation: float = Field(0.3, ge=0, le=1)
    """Largest relative change."""
    hue: float = Field(0.05, ge=0, le=0.5)
    """Largest turn of the colour circle; 0.5 is half of it."""
    blur: float = Field(0.1, ge=0, le=1)
    """Probability of a Gaussian blur."""


class TrainConfig(ReadConfig):
    """From shards to a run: checkpoints, metrics and logs."""

    shards: tuple[PathField, ...] = ()
    """Folders of training shards."""
    val_shards: tuple[PathField, ...] = ()
    """Folders of validation shards; without any, `monitor` falls back to the latest checkpoint."""
    save_dir: PathField | None = None
    """Folder of the run."""
    resume: Literal["auto", "never"] = "auto"
    """Go on from the newest checkpoint of `save_dir`, or refuse a `save_dir` that holds one."""
    seed: NonNegativeInt = 0
    """Seed of the order of samples, augmentation, dropout and new weights."""
    epochs: PositiveFloat = 20
    """Passes through the training shards; ends at ceil(epochs · samples / global batch) steps."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, instead of `epochs`."""
    batch_size: PositiveInt = 4
    """Images a process and micro-batch; the global batch is batch_size · processes ·
    accumulation_steps."""
    accumulation_steps: PositiveInt = 2
    """Micro-batches an optimizer step."""
    workers: NonNegativeInt = 2
    """Loader processes for each training process; 0 loads in the training process."""
    loss_type: Literal["ce", "dice", "ce_dice", "focal"] = "ce_dice"
    """Cross entropy, Dice, their sum, or focal loss (gamma 2)."""
    optimizer: Literal["adamw"] = "adamw"
    """AdamW."""
    learning_rate: PositiveFloat = 6e-4
    """Peak learning rate of the decode head."""
    backbone_lr_ratio: NonNegativeFloat = 0.1
    """Learning rate of the backbone, relative to the head's."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices and convolutions; norms and biases have none."""
    scheduler: Literal["poly"] = "poly"
    """Linear warmup, then (1 - progress) ** power, by optimizer step."""
    power: PositiveFloat = 1.0
    """Exponent of the decay."""
    warmup_steps: NonNegativeInt = 1500
    """Optimizer steps of linear warmup; at most a tenth of all steps is used."""
    clip_grad_norm: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    use_amp: bool = True
    """Mixed precision on a GPU (a CPU always computes in float32)."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Precision of `use_amp`: bfloat16 where the GPU has it, else float16 with loss scaling."""
    sync_batchnorm: bool = True
    """Synchronise batch norm over GPUs; plain batch norm on a CPU, which has no other."""
    max_bad: NonNegativeInt = 0
    """Samples that may turn out damaged: nothing is learnt from them, and bad-samples.jsonl lists
    them; one more ends the run."""
    streams: PositiveInt = 8
    """Places of the data set that are read in turn (see docs/order.md)."""
    block_shards: PositiveInt = 4
    """Shards whose samples are shuffled together."""
    val_every: NonNegativeInt = 0
    """Optimizer steps between validations; 0 means once an epoch."""
    checkpoint_every: NonNegativeInt = 0
    """Optimizer steps between checkpoints; 0 means with each validation."""
    val_batch_size: PositiveInt = 8
    """Images a validation batch."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    keep_last: PositiveInt = 3
    """Newest checkpoints to keep, besides 'best' and 'last'."""
    monitor: Literal["val_mIoU"] = "val_mIoU"
    """The score whose best checkpoint is 'best'."""
    device: str = "auto"
    """'auto' (a GPU where there is one), 'cpu', 'cuda' …"""
