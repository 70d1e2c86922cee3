"""Shared by the cases: the device, the classes, networks without weights."""

import functools

import torch
from cocoseg.checkpoint.network import start_network
from cocoseg.model.config import ModelConfig
from cocoseg.model.preprocess import Preprocess
from cocoseg.taxonomy import coco_taxonomy
from torch import nn

TAXONOMY = coco_taxonomy()
DEVICE = torch.device("cuda", 0)


@functools.cache
def template(model: str, size: int) -> tuple[nn.Module, Preprocess]:
    """Return a network without weights and its preprocessing; copy the network by `empty_copy`."""
    with torch.device("meta"):
        return start_network(ModelConfig(name=model, input_size=size), TAXONOMY, seed=0)
