"""`infer` and `eval` from disk, against their own forward passes and the plain way."""

# B batch, C classes, H W pixels of the image

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import TAXONOMY, Bench, ours_of, plain_network, rate
from cocoseg.checkpoint.folder import save_network
from cocoseg.infer.config import InferConfig
from cocoseg.infer.evaluate.run import evaluate
from cocoseg.infer.predict.run import predict
from cocoseg.infer.views import views_of
from cocoseg.model.config import ModelConfig
from cocoseg.model.precision import autocast, resolve_precision
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.view import View
from drawn import drawn_images, drawn_shards, image_count
from measure import Row, in_turn
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_BATCH = 8
_OVERHEAD = 1.25  # bar: times the forward passes of 6 views
_PLAIN = 8  # images of the plain way


class _Stopwatch:
    """Measures the steady pace of a command: between two of its batches, the GPU idle at both.

    The start (loading the network, the first kernels) and the end (reports) are left out.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        batches = image_count(bench) // _BATCH if not bench.tiny else 3
        self._first, self._last = (1, 2) if bench.tiny else (4, batches - 1)
        self._images = (self._last - self._first) * (2 if bench.tiny else _BATCH)

    def pace(self, command: Callable[[], object]) -> float:
        """Run a command; return its images/s."""
        real = Predictor.predictions
        stamps: list[float] = []
        calls = 0

        def predictions(predictor: Predictor, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            if calls in (self._first, self._last):
                self._bench.finish()
                stamps.append(time.perf_counter())
            calls += 1
            return real(predictor, *arguments, **options)

        Predictor.predictions = predictions  # type: ignore[method-assign]
        try:
            command()
        finally:
            Predictor.predictions = real  # type: ignore[method-assign]
        first, last = stamps
        return self._images / (last - first)


def infer(bench: Bench) -> Iterator[Row]:
    """Measure `infer` from files."""
    yield from _rows(bench, "infer", drawn_images(bench))


def evaluation(bench: Bench) -> Iterator[Row]:
    """Measure `eval` from shards."""
    yield from _rows(bench, "eval", drawn_shards(bench))


def _rows(bench: Bench, command: str, data: Path) -> Iterator[Row]:
    name, side = ("segformer-tiny", 32) if bench.tiny else ("segformer-b5", 640)
    theirs = plain_network(name).to(bench.device).eval()
    network = ours_of(theirs)
    checkpoint = bench.scratch / "inference"
    if not checkpoint.is_dir():
        checkpoint.mkdir()
        save_network(checkpoint, network, Preprocess(side), TAXONOMY)
    stopwatch = _Stopwatch(bench)
    precision = resolve_precision("auto", bench.device)
    paths = sorted(drawn_images(bench).iterdir())[: 2 if bench.tiny else _PLAIN]
    images = [np.asarray(Image.open(path)) for path in paths]
    for views in (1, 6):
        config = _config(bench, command, checkpoint, data, tta=views > 1)
        inputs = _inputs(bench, images, views_of(config))

        def ours(config: InferConfig = config) -> float:
            assert config.output is not None
            shutil.rmtree(config.output, ignore_errors=True)
            run = predict if command == "infer" else evaluate
            return stopwatch.pace(lambda: run(config, ModelConfig()))

        def forwards(inputs: list[Tensor] = inputs) -> float:
            with autocast(bench.device, precision), torch.inference_mode():
                return len(images) / bench.seconds(lambda: _forward(network, inputs), 1)

        def plain(dtype: torch.dtype, config: InferConfig = config) -> float:
            looks = views_of(config)
            with autocast(bench.device, dtype):
                return len(images) / bench.seconds(
                    lambda: _plain(bench, theirs, paths, looks, side)
                )

        functions: dict[str, Callable[[], float]] = {"ours": ours, "forwards": forwards}
        if command == "infer":
            functions["plain"] = lambda: plain(torch.float32)
            functions["plain, autocast"] = lambda: plain(precision)
        for what in ("forwards", "plain, autocast"):  # the first calls choose kernels
            with contextlib.suppress(KeyError):
                functions[what]()
        found = in_turn(functions, 1 if bench.tiny else 3)
        case = f"'{command}', {name}, {views} view{'s' * (views > 1)}"
        bar = 1 / _OVERHEAD if views > 1 and not bench.tiny else None
        yield rate(
            f"{case} (other: its forward passes alone)", found["forwards"], found["ours"], bar
        )
        for what, text in (("plain", "the plain way"), ("plain, autocast", "plain, autocast")):
            if what in found:
                yield rate(f"{case} (other: {text})", found[what], found["ours"])


def _config(bench: Bench, command: str, checkpoint: Path, data: Path, *, tta: bool) -> InferConfig:
    where = {"input": str(data)} if command == "infer" else {"shards": (str(data),)}
    return InferConfig(
        checkpoint=str(checkpoint),
        output=str(bench.scratch / f"{command}-{tta}"),
        use_tta=tta,
        batch_size=2 if bench.tiny else _BATCH,
        device=bench.device.type,
        **where,
    )


def _inputs(bench: Bench, images: list[Any], views: list[View]) -> list[Tensor]:
    """Return what the network sees of one batch, view by view, on the device."""
    side = 32 if bench.tiny else 640
    preprocess = Preprocess(side)
    normalize = preprocess.normalizer()
    found = []
    for view in views:
        small = np.stack([preprocess.resize(image, view.scale) for image in images])
        x = normalize(view.mirror(torch.from_numpy(small), 1, 2))
        found.append(x.to(bench.device))
    return found


def _forward(network: Any, inputs: list[Tensor]) -> None:
    for x in inputs:
        network(pixel_values=x)


@torch.inference_mode()
def _plain(bench: Bench, network: Any, paths: list[Path], views: list[View], side: int) -> None:
    """Predict one image and one view at a time, with full-resolution probabilities of each."""
    preprocess = Preprocess(side)
    normalize = preprocess.normalizer().to(bench.device)
    for number, path in enumerate(paths):
        image = np.asarray(Image.open(path))
        mean: Any = 0
        for view in views:
            small = torch.from_numpy(preprocess.resize(image, view.scale).copy())[None]
            x = view.mirror(normalize(small.to(bench.device)), 2, 3)
            logits = view.mirror(network(pixel_values=x).logits, 2, 3).float()
            large = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
            mean = mean + large.softmax(dim=1)
        mask = (mean / len(views)).argmax(dim=1)[0].byte().cpu().numpy()
        Image.fromarray(mask).save(bench.scratch / f"plain-{number}.png")
