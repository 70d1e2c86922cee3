"""torch.compile: with DDP and activation checkpointing, and how fast it makes training.

Both compile from the start, beside the other parts, as it takes minutes; what is measured waits for
its turn.
"""

import time
from collections.abc import Iterator

import torch
from bench import (
    NO_DROPOUT,
    Bench,
    Learner,
    at_most,
    fastest_convolutions,
    ours_of,
    plain_network,
    rate,
    without_bar,
)
from cocoseg.model import switches
from device import process_group_of_one
from measure import Row, in_turn
from torch.nn.parallel import DistributedDataParallel


def ddp(bench: Bench) -> Iterator[Row]:
    """Take steps compiled, under DDP with activation checkpointing, and plainly."""
    theirs = plain_network("segformer-tiny", **NO_DROPOUT)
    with process_group_of_one(bench):
        plain = Learner(ours_of(theirs), 2, 64, bench.device, use_amp=False)
        expected = [plain() for _ in range(3)]
        learner = Learner(
            ours_of(theirs), 2, 64, bench.device, use_amp=False, activation_checkpointing=True
        )
        learner.step.wrapped = DistributedDataParallel(
            switches.compiled(learner.network),
            device_ids=[bench.device],
            gradient_as_bucket_view=True,
        )
        found = [learner() for _ in range(3)]
    difference = max(abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True))
    yield at_most(
        f"torch.compile with DDP and activation checkpointing, torch {torch.__version__}, 3 steps: "
        "relative difference of the losses",
        difference,
        1e-3,
    )


def speed(bench: Bench) -> Iterator[Row]:
    """Train B5 compiled and not, in turn."""
    batch, side = 4, 640
    theirs = plain_network("segformer-b5")
    with fastest_convolutions():
        plain = Learner(ours_of(theirs), batch, side, bench.device, amp_dtype="bfloat16")
        learner = Learner(
            ours_of(theirs), batch, side, bench.device, amp_dtype="bfloat16", compile=True
        )
        start = time.perf_counter()
        for step in (learner, plain):
            for _ in range(3):
                step()
        bench.finish()
        took = time.perf_counter() - start
        bench.turn()
        seconds = in_turn(
            {
                "plain": lambda: bench.seconds(plain, 2),
                "compiled": lambda: bench.seconds(learner, 2),
            },
            6,
        )
    case = f"segformer-b5, {batch} × {side}², bfloat16"
    yield rate(
        f"{case}: train.compile (other: without)",
        batch / seconds["plain"],
        batch / seconds["compiled"],
    )
    yield without_bar(f"{case}: time to compile, beside other work", f"{took:.0f} s")
