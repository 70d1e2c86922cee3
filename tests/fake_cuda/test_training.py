"""Copies and kernels of a training step on the fake CUDA device."""

import pytest

STEPS = {
    "bfloat16, channels-last, average": {"channels_last": True, "ema_decay": 0.99},
    "float16, clipped": {"amp_dtype": "float16", "clip_grad_norm": 1.0},
    "activation checkpointing, accumulated": {
        "activation_checkpointing": True,
        "micro_batches": 2,
    },
    "float32, frozen parts, SGD": {
        "use_amp": False,
        "freeze_backbone": True,
        "freeze_batch_norm": True,
        "optimizer": "sgd",
    },
    "two GPUs": {"world_size": 2, "amp_dtype": "float16"},
}
LONG = ("float16, clipped", "float32, frozen parts, SGD")
WEIGHTS = {"class_weights": [0.5] * 81}
LOSSES = {
    "ce": {"loss_type": "ce"},
    "dice": {"loss_type": "dice"},
    "focal": {"loss_type": "focal"},
    "weighted ce": {"loss_type": "ce", **WEIGHTS},
    "weighted ce_dice": {"loss_type": "ce_dice", **WEIGHTS},
    "weighted focal": {"loss_type": "focal", **WEIGHTS},
    "label smoothing": {"loss_type": "ce_dice", "label_smoothing": 0.1},
    "weighted label smoothing": {"loss_type": "ce", "label_smoothing": 0.1, **WEIGHTS},
    "ohem": {"loss_type": "ce_dice", "ohem": 0.25},
    "weighted ohem": {"loss_type": "ce", "ohem": 0.25, **WEIGHTS},
}
B5 = {"model": "segformer-b5", "size": 640, "batch": 4}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=[pytest.mark.long] * (name in LONG))
        for name, settings in STEPS.items()
    ],
)
def test_a_step_transfers_once_to_the_host_and_has_no_blocking_copy(count, settings):
    seen = count("training_step", **settings)
    assert len(seen.to_host) == 1, seen.to_host
    assert seen.blocking == []


@pytest.mark.parametrize("settings", LOSSES.values(), ids=LOSSES.keys())
def test_a_loss_has_no_transfer_to_the_host_and_no_blocking_copy(count, settings):
    seen = count("loss", **settings)
    assert seen.to_host == []
    assert seen.blocking == []


@pytest.mark.long
def test_a_b5_step_launches_no_more_kernels_than_plain_transformers(count):
    ours, plain = count("training_step", **B5), count("plain_step", **B5)
    assert len(ours.to_host) == 1, ours.to_host
    assert ours.blocking == []
    assert ours.kernels <= plain.kernels


def test_one_rank_alone_can_estimate_the_memory_of_synchronized_batch_norms(count):
    seen = count("memory_estimate", world_size=2)
    assert [op for op, _, _ in seen.launches if op.startswith("c10d")] == []
