"""Cases of the scoring loop, which validation and ``eval`` share."""

import torch
from cases_common import template
from cocoseg.infer.config import InferConfig
from cocoseg.infer.views import views_of
from cocoseg.model.meta import empty_copy
from cocoseg.model.predictor import Predictor
from cocoseg.model.score import NetworkPredicts, scored
from cocoseg.shards.order import evaluation_batches
from cocoseg.shards.reader import ShardSet
from counter import ROOT, Counter
from device import fake_device


def scoring(
    counter: Counter, *, tta: bool = False, confidence: bool = False, precision: str = "bfloat16"
) -> None:
    """Score the golden validation shards: as validation does, or as ``eval`` with `confidence`."""
    network, preprocess = template("segformer-tiny", 64)
    shards = ShardSet([str(ROOT / "tests" / "golden" / "shards" / "val")])
    with fake_device():
        predictor = Predictor(
            empty_copy(network, "cuda").eval(),
            preprocess,
            views_of(InferConfig(use_tta=tta)),
            precision=getattr(torch, precision),
        )
        predicts = NetworkPredicts(
            predictor, confidence=confidence, loss=not confidence and not tta
        )
        with counter:
            batches = evaluation_batches(len(shards), 4, 1, 0)
            assert len(list(scored(predicts, shards, batches, lambda one: None))) == len(shards)
