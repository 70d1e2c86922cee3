"""A tiny checkpoint whose predictions vary, and photographs to try it on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cocoseg.checkpoint.folder import save_network
from cocoseg.model.preprocess import Preprocess
from cocoseg.taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.utils import logging

logging.disable_progress_bar()

SIDE = 64  # input size [pixels]


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


@pytest.fixture(scope="session")
def make_network() -> Callable[..., SegformerForSemanticSegmentation]:
    """Build a tiny SegFormer of `num_labels` classes whose predictions vary."""

    def make(num_labels: int = 5, seed: int = 0) -> SegformerForSemanticSegmentation:
        torch.manual_seed(seed)
        config = SegformerConfig(
            hidden_sizes=[8, 16, 24, 32],
            depths=[1, 1, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            num_labels=num_labels,
        )
        network = SegformerForSemanticSegmentation(config).eval()
        head = network.decode_head  # one class wins everywhere at a random start: undo that
        head.batch_norm.momentum = None
        head.batch_norm.train()
        with torch.no_grad():
            noise = F.interpolate(torch.randn(8, 3, 8, 8), (SIDE, SIDE), mode="bilinear")
            network(pixel_values=noise)
            head.classifier.weight.normal_(std=0.7)
        return network.eval()

    return make


@pytest.fixture(scope="session")
def make_checkpoint(make_network, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a tiny network of some classes as a checkpoint folder."""

    def make(taxonomy: Taxonomy, **preprocess: object) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        network = make_network(taxonomy.num_classes)
        network.config.id2label = dict(enumerate(taxonomy.names))
        save_network(folder, network, Preprocess(SIDE, **preprocess), taxonomy)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint(make_checkpoint) -> Path:
    """A checkpoint of COCO's 81 classes."""
    return make_checkpoint(coco_taxonomy())


@pytest.fixture(scope="session")
def three_classes(make_checkpoint) -> Path:
    """A checkpoint of three classes."""
    return make_checkpoint(
        Taxonomy((SemanticClass("background"), SemanticClass("cat"), SemanticClass("dog")))
    )


@pytest.fixture(scope="session")
def draw() -> Callable[..., NDArray[np.uint8]]:
    """Draw a photograph of soft blobs: uint8 RGB, shape (height, width, 3)."""

    def blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))

    return blobs
