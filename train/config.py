"""Settings of ``cocoseg train``."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

from ..config import Flag, PathField, Section
from ..model.config import ModelConfig
from ..model.registry import is_random
from ..shards.config import ReadConfig
from .losses import LOSSES


class AugmentConfig(Section):
    """Training transforms, in this order; validation only resizes."""

    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(("augment", "augmentation", "augmentations"), "enabled"),
            **dict.fromkeys(("crop_scale", "scale", "random_scale"), "scale_range"),
            **dict.fromkeys(("hflip", "horizontal_flip", "random_flip", "fliplr"), "flip"),
            **dict.fromkeys(("rotate", "degrees"), "rotation"),
            **dict.fromkeys(("colorjitter", "jitter"), "color_jitter"),
        }
    )

    enabled: bool = True
    """False turns all of them off: images are resized to input_size², as for validation."""
    scale_range: tuple[PositiveFloat, PositiveFloat] = (0.25, 1.0)
    """Area of the random crop as a fraction of the image, which it never leaves."""
    ratio_range: tuple[PositiveFloat, PositiveFloat] = (0.75, 4 / 3)
    """Width to height of the random crop."""
    scale_jitter: tuple[PositiveFloat, PositiveFloat] | None = None
    """Instead of the crop by `scale_range` and `ratio_range`: the image is resized so that its
    shorter side is input_size times a random factor of this range, and input_size² is cut out;
    where it is smaller, it is padded and the padding ignored. (0.5, 2.0) in SegFormer's recipe."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Largest angle of a random rotation, either way [degrees]; corners that come from outside the
    crop are ignored. 0 is off."""
    color_jitter: float = Field(0.8, ge=0, le=1)
    """Probability of a color jitter."""
    brightness: float = Field(0.3, ge=0, le=1)
    """Largest relative change."""
    contrast: float = Field(0.3, ge=0, le=1)
    """Largest relative change."""
    saturation: float = Field(0.3, ge=0, le=1)
    """Largest relative change."""
    hue: float = Field(0.05, ge=0, le=0.5)
    """Largest turn of the color circle; 0.5 is half of it."""
    blur: float = Field(0.1, ge=0, le=1)
    """Probability of a Gaussian blur."""
    extra: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """Further transforms by name, each with its probability; see docs/training.md."""

    @field_validator("scale_range", "ratio_range", "scale_jitter")
    @classmethod
    def _ascending(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError("the first number is the smaller one")
        return value

    @field_validator("scale_range")
    @classmethod
    def _inside(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("a crop has at most the area of the image, 1.0; see scale_jitter")
        return value


class TrainConfig(ReadConfig):
    """From shards to a run: checkpoints, metrics and logs."""

    fixed_keys: ClassVar[tuple[str, ...]] = (
        *("seed", "streams", "block_shards", "rare_class_sampling"),
        *("loss_type", "class_weights", "label_smoothing", "ohem"),
        *("optimizer", "no_weight_decay", "freeze_backbone", "freeze_batch_norm", "monitor"),
    )

    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(("lr", "base_lr", "initial_lr", "lr0", "max_lr"), "learning_rate"),
            **dict.fromkeys(("loss", "loss_fn", "criterion"), "loss_type"),
            **dict.fromkeys(("bs", "batch", "per_device_train_batch_size"), "batch_size"),
            **dict.fromkeys(("samples_per_gpu", "ims_per_batch"), "batch_size"),
            **dict.fromkeys(("num_workers", "n_workers", "workers_per_gpu"), "workers"),
            "dataloader_num_workers": "workers",
            **dict.fromkeys(("grad_accum", "accumulate_grad_batches"), "accumulation_steps"),
            "gradient_accumulation_steps": "accumulation_steps",
            **dict.fromkeys(("num_epochs", "max_epochs", "num_train_epochs"), "epochs"),
            **dict.fromkeys(("iters", "iterations", "max_iters", "max_iter"), "max_steps"),
            **dict.fromkeys(("steps", "num_steps", "total_steps"), "max_steps"),
            **dict.fromkeys(("opt", "optim"), "optimizer"),
            "wd": "weight_decay",
            **dict.fromkeys(("lr_scheduler", "lr_policy", "lr_scheduler_type"), "scheduler"),
            **dict.fromkeys(("warmup", "warmup_iters", "num_warmup_steps"), "warmup_steps"),
            **dict.fromkeys(("grad_clip", "clip_grad", "max_grad_norm"), "clip_grad_norm"),
            "gradient_clip_val": "clip_grad_norm",
            **dict.fromkeys(("amp", "fp16", "mixed_precision"), "use_amp"),
            **dict.fromkeys(("bf16", "precision", "dtype"), "amp_dtype"),
            "gradient_checkpointing": "activation_checkpointing",
            "torch_compile": "compile",
            **dict.fromkeys(("sync_bn", "syncbn"), "sync_batchnorm"),
            **dict.fromkeys(("class_weight", "weights"), "class_weights"),
            **dict.fromkeys(("data", "dataset", "data_root", "data_dir"), "shards"),
            "train_shards": "shards",
            **dict.fromkeys(("output", "output_dir", "work_dir", "log_dir"), "save_dir"),
            **dict.fromkeys(("resume_from", "resume_from_checkpoint"), "resume"),
            **dict.fromkeys(("random_seed", "manual_seed"), "seed"),
            "ema": "ema_decay",
            **dict.fromkeys(("eval_every", "eval_interval", "eval_steps"), "val_every"),
            **dict.fromkeys(("val_interval", "check_val_every_n_epoch"), "val_every"),
            **dict.fromkeys(("save_every", "save_steps", "save_interval"), "checkpoint_every"),
            **dict.fromkeys(("checkpoint_interval", "checkpoint_freq"), "checkpoint_every"),
            **dict.fromkeys(("log_interval", "logging_steps", "print_freq"), "log_every"),
            **dict.fromkeys(("save_total_limit", "max_keep_ckpts"), "keep_last"),
            **dict.fromkeys(("early_stopping", "early_stopping_patience"), "patience"),
            **dict.fromkeys(("metric", "metric_for_best_model", "save_best"), "monitor"),
            **dict.fromkeys(("gpu", "gpus"), "device"),
        }
    )

    shards: Annotated[tuple[PathField, ...], Flag("SHARDS")] = ()
    """Folders of training shards."""
    val_shards: Annotated[tuple[PathField, ...], Flag("SHARDS", commands=("train",))] = ()
    """Folders of validation shards; without them there is no 'best' checkpoint, only 'last'."""
    save_dir: Annotated[PathField | None, Flag("RUN", commands=("train",), name="--output")] = None
    """Folder of the run."""
    resume: Annotated[Literal["auto", "never"], Flag(commands=("train",))] = "auto"
    """Resume from the newest checkpoint of `save_dir`, or refuse a `save_dir` that holds one."""
    seed: NonNegativeInt = 0
    """Seed of the order of samples, augmentation, dropout and new weights."""
    epochs: PositiveFloat = 20
    """Passes through the training shards; ends at ceil(epochs · samples / global batch) steps."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, instead of `epochs`."""
    batch_size: PositiveInt = 4
    """Images per process and micro-batch; the global batch is batch_size · processes ·
    accumulation_steps."""
    accumulation_steps: PositiveInt = 2
    """Micro-batches per optimizer step."""
    workers: NonNegativeInt = 2
    """Loader processes for each training process; 0 loads in the training process."""
    loss_type: Annotated[str, Field(json_schema_extra={"enum": list(LOSSES)})] = "ce_dice"
    """Cross entropy 'ce', 'dice', their sum 'ce_dice', or 'focal' loss (gamma 2)."""
    class_weights: Literal["none", "auto"] | tuple[NonNegativeFloat, ...] = "none"
    """Weights of the classes in cross entropy and focal loss, by train id; 'auto' derives them from
    the training shards' pixel counts."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target in cross entropy that is spread evenly over all classes."""
    ohem: float = Field(1.0, gt=0, le=1)
    """Share of an image's valid pixels, the hardest, that cross entropy learns from; 1 is all."""
    rare_class_sampling: float = Field(0.0, ge=0, lt=1)
    """Images with a class that fewer than this share of the images have are shown more often in an
    epoch (see docs/order.md); 0 shows each once."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Of SGD."""
    learning_rate: PositiveFloat = 6e-4
    """Peak learning rate of the decode head."""
    backbone_lr_ratio: NonNegativeFloat = 0.1
    """Learning rate of the backbone, relative to the head's. If it is not given, 1.0 for a network
    with random weights ('segformer-b0' …); a resumed run keeps its own."""
    freeze_backbone: bool = False
    """Train the decode head alone."""
    freeze_batch_norm: bool = False
    """Keep the batch norms' statistics as they were loaded."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay (decoupled in AdamW) of matrices and convolutions; norms, biases and what
    `no_weight_decay` names have none."""
    no_weight_decay: tuple[str, ...] = ()
    """Patterns of further parameter names without decay, such as '*.patch_embeddings.*'."""
    ema_decay: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what is scored, saved
    and exported; 0 keeps none."""
    scheduler: Literal["poly"] = "poly"
    """Linear warmup, then (1 - progress) ** power, by optimizer step."""
    power: PositiveFloat = 1.0
    """Exponent of the decay."""
    warmup_steps: NonNegativeInt = 1500
    """Optimizer steps of linear warmup; at most a tenth of all steps is used."""
    clip_grad_norm: NonNegativeFloat = 0.0
    """Largest norm of the gradient; 0 does not clip."""
    use_amp: bool = True
    """Mixed precision; see `amp_dtype`."""
    amp_dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    """Precision of `use_amp`: 'auto' is bfloat16 where a GPU has it, float16 with loss scaling on
    other GPUs, and float32 on a CPU."""
    channels_last: bool = False
    """Keep convolutions' tensors in the channels-last memory format."""
    compile: bool = False
    """Compile the network with torch.compile; pays off in long runs on a GPU."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    recompute_mlp: bool = True
    """Recompute the wide half of each of SegFormer's blocks in the backward pass: about a third
    less memory for activations, for a few percent more time. False keeps it in memory."""
    sync_batchnorm: bool = True
    """Batch norms see the batches of all processes, and not of their own only."""
    deterministic: bool = False
    """The same kernels and order of sums at every run, where PyTorch has them; slower. On a CPU a
    run is deterministic in any case. See docs/training.md."""
    max_skipped: NonNegativeInt = 5
    """Steps in a row whose loss may be not finite: nothing is learnt from them; one more ends
    the run."""
    max_bad: NonNegativeInt = 0
    """Damaged or missing samples that may be left out of training; bad-samples.jsonl lists
    them; one more ends the run."""
    streams: PositiveInt = 8
    """Places of the data set that are read in turn (see docs/order.md)."""
    block_shards: PositiveInt = 4
    """Shards whose samples are shuffled together."""
    val_every: NonNegativeInt = 0
    """Optimizer steps between validations; 0 means once an epoch, but at most 50 times per run."""
    checkpoint_every: NonNegativeInt = 0
    """Optimizer steps between checkpoints; 0 means with each validation."""
    val_batch_size: PositiveInt = 8
    """Images per validation batch."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics.jsonl and TensorBoard."""
    keep_last: PositiveInt = 3
    """Newest checkpoints to keep, besides 'best' and 'last'."""
    monitor: Literal["val_mIoU", "val_mIoU_foreground"] = "val_mIoU"
    """The score whose best checkpoint is 'best': with or without background."""
    patience: NonNegativeInt = 0
    """Validations without a better score after which training ends early; 0 never does."""
    pictures: NonNegativeInt = 4
    """Number of validation images in TensorBoard, with ground truth and prediction."""
    device: str = "auto"
    """'auto' (a GPU where there is one), 'cpu', 'cuda' …"""

    @field_validator("loss_type")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        if name not in LOSSES:
            raise ValueError(f"losses are {', '.join(LOSSES)}")
        return name

    def resolved(
        self, model: ModelConfig, begun: Mapping[str, Any] = MappingProxyType({})
    ) -> "TrainConfig":
        """Return these settings with the defaults that depend on others.

        Parameters
        ----------
        begun
            ``section.key`` → value of the run to resume, if there is one; see `RunPlan.settings`.
        """
        key = "backbone_lr_ratio"
        if key in self.model_fields_set:
            return self
        usual = 1.0 if is_random(model.name) else self.backbone_lr_ratio
        return self.model_copy(update={key: begun.get(f"train.{key}", usual)})
