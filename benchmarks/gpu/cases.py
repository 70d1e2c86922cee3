"""What is checked and measured, in order, and how long each may take on one H100.

Names alone: the functions, which need torch, run in processes of their own (`child.py`).
"""

from dataclasses import dataclass

TOTAL = 530.0
"""Seconds after which nothing is left to begin: 9 minutes, and some to end."""


@dataclass(frozen=True, slots=True)
class Case:
    """One function that yields rows."""

    name: str
    """What a row is called if there is none of its own."""
    function: str
    """``module:function`` beside this file."""
    seconds: float
    """Reserved on one H100. A case may take longer if the others took less."""
    process: str
    """Cases of one process run in it one after the other; what one leaves there meets the next."""
    cuda: bool = False
    """Whether it means nothing on a CPU."""
    early: bool = False
    """Whether it prepares from the start, beside the others, and waits for its turn to measure."""


PARTS: dict[str, tuple[str, tuple[Case, ...]]] = {
    "parity": (
        "The GPU computes what a CPU does",
        (
            Case("training step", "parity:training_step", 35, "checks"),
            Case("masks", "parity:masks", 30, "checks"),
            Case("counts of eval", "parity:counts", 5, "checks"),
            Case("upsampling", "parity:upsampling", 5, "checks"),
        ),
    ),
    "sync": (
        "Synchronizations with the GPU, kernels and copies",
        (
            Case("synchronizations of a training step", "sync:training_step", 10, "checks"),
            Case("synchronizations of the training loop", "sync:training_loop", 10, "checks"),
            Case("synchronizations of inference", "sync:inference", 10, "checks"),
            Case("kernels and copies of a training step", "sync:step_kernels", 20, "checks"),
            Case("kernels and copies of inference", "sync:inference_kernels", 15, "checks"),
        ),
    ),
    "device": (
        "What only a GPU can show",
        (
            Case("TF32", "parity:upsampling_with_tf32", 3, "checks"),
            Case("SyncBatchNorm, NCCL and DDP", "device:nccl", 15, "device"),
            Case("half-precision checkpoints", "device:half_checkpoints", 8, "device"),
            Case("exported program", "device:exported_program", 25, "device", cuda=True),
            Case("validation and eval", "device:validation", 15, "device"),
            Case("out of memory in training", "device:training_memory", 10, "device"),
            Case("out of memory in inference", "device:inference_memory", 10, "device", cuda=True),
            Case("torch.compile", "compiling:ddp", 10, "compile", cuda=True, early=True),
        ),
    ),
    "resume": (
        "train.deterministic: an interrupted run ends with the same bits",
        (
            Case("uninterrupted run", "resume:first_process", 20, "resume-1"),
            Case("resumed run", "resume:second_process", 25, "resume-2"),
        ),
    ),
    "training": (
        "Training",
        (
            Case("compiled", "compiling:speed", 15, "compile", cuda=True, early=True),
            Case("batch 4", "training:batch_of_four", 35, "training"),
            Case("largest batch", "training:largest_batch", 75, "training", cuda=True),
            Case("waiting for data", "training:data_wait", 40, "loop"),
        ),
    ),
    "inference": (
        "Inference",
        (
            Case("infer", "inference:infer", 45, "inference"),
            Case("eval", "inference:evaluation", 30, "inference"),
        ),
    ),
}
"""Part → its title and cases."""
