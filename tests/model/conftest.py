"""Tiny SegFormers, made by transformers alone."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never ask the hub, whatever a test does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run tiny networks on one thread: with more, busy cores cost them threefold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny_config(num_labels: int, **more: object) -> SegformerConfig:
    return SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=num_labels,
        **more,
    )


def sharpened(network: SegformerForSemanticSegmentation) -> SegformerForSemanticSegmentation:
    """Give a random network opinions that vary from pixel to pixel.

    At its random start all logits are within 0.1 of each other, one class wins everywhere, and
    that hides every mistake. Statistics of the batch norm from noise undo it.
    """
    head = network.decode_head
    with torch.no_grad():
        head.batch_norm.momentum = None
        noise = F.interpolate(torch.randn(8, 3, 8, 8), (64, 64), mode="bilinear")
        network.eval()
        head.batch_norm.train()
        network(pixel_values=noise)
        head.classifier.weight.normal_(std=0.7)
        head.classifier.bias.normal_(std=0.1)
    return network.eval()


@pytest.fixture(scope="session")
def make_network() -> Callable[..., SegformerForSemanticSegmentation]:
    """Build a tiny SegFormer of `num_labels` classes whose predictions vary."""

    def make(num_labels: int = 5, seed: int = 0, **more: object):
        torch.manual_seed(seed)
        return sharpened(SegformerForSemanticSegmentation(tiny_config(num_labels, **more)))

    return make


@pytest.fixture(scope="session")
def ade_folder(make_network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub's ADE20K checkpoints are, but tiny: 150 classes, a processor that reduces."""
    folder = tmp_path_factory.mktemp("hub") / "ade"
    names = {i: f"thing {i}" for i in range(150)}
    network = make_network(150, id2label=names, label2id={n: i for i, n in names.items()})
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": true,'
        ' "size": {"height": 96, "width": 96}, "image_mean": [0.1, 0.2, 0.3],'
        ' "image_std": [0.4, 0.5, 0.6]}'
    )
    return folder
