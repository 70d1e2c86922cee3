"""What only a real GPU can show: NCCL, memory that runs out, programs that are moved to it."""

# B batch, C channels or classes, H W pixels

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from bench import (
    GOLDEN,
    NO_DROPOUT,
    TAXONOMY,
    Bench,
    Learner,
    at_most,
    draw_image,
    equal,
    exactly,
    ours_of,
    plain_network,
)
from cocoseg.checkpoint.folder import save_network
from cocoseg.checkpoint.network import load_network
from cocoseg.errors import ExitCode
from cocoseg.infer.config import InferConfig
from cocoseg.infer.evaluate.run import evaluate
from cocoseg.infer.export.config import ExportConfig
from cocoseg.infer.export.graph import FORMATS, export_graph
from cocoseg.infer.views import views_of
from cocoseg.model.config import ModelConfig
from cocoseg.model.memory import OutOfMemory
from cocoseg.model.precision import tf32
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.sync_batchnorm import SyncBatchNorm2d
from cocoseg.train.step import TrainingStep
from measure import Row
from sync import small_run, synchronizations
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@contextlib.contextmanager
def process_group_of_one(bench: Bench) -> Iterator[None]:
    """Join a group of this process alone: NCCL on a GPU, gloo on a CPU."""
    dist.init_process_group(
        "nccl" if bench.on_gpu else "gloo",
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        device_id=bench.device if bench.on_gpu else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def nccl(bench: Bench) -> Iterator[Row]:
    """Reduce, normalize and train in a group of one: its results are those without a group."""
    backend = "NCCL" if bench.on_gpu else "gloo"
    with process_group_of_one(bench):
        values = torch.arange(1000.0, device=bench.device)
        dist.all_reduce(values)
        same = torch.equal(values.cpu(), torch.arange(1000.0))
        yield equal(f"all-reduce by {backend}, one process", same)
        for dtype in (torch.float32, torch.bfloat16) if bench.on_gpu else (torch.float32,):
            yield from _batch_norm(bench, dtype)
        yield from _parallel(bench, backend)


def _batch_norm(bench: Bench, dtype: torch.dtype) -> Iterator[Row]:
    """Compare the synchronized batch norm of one process with plain batch norm in float64."""
    name = str(dtype).removeprefix("torch.")
    # 1000 is known to 6e-5 in float32, in whatever order it is computed.
    bar = 3e-4 if dtype is torch.float32 else 1e-2
    generator = torch.Generator().manual_seed(0)
    x = (1000 * (dtype is torch.float32) + torch.randn(4, 16, 8, 8, generator=generator)).to(dtype)
    d = torch.randn(x.shape, generator=generator).to(dtype)
    plain, synchronized = nn.BatchNorm2d(16).double(), SyncBatchNorm2d(16).to(bench.device)
    exact = _through(plain, plain, x.double(), d.double())
    # In a group of one its forward is that of plain batch norm: this is what several ranks run.
    forward = synchronized._synchronized
    _through(synchronized, forward, x.to(bench.device), d.to(bench.device))
    synchronized.reset_running_stats()
    synchronized.zero_grad()
    with synchronizations(bench) as found:
        mine = _through(synchronized, forward, x.to(bench.device), d.to(bench.device))
    errors = [
        float((ours.cpu().double() - theirs).norm() / theirs.norm())
        for ours, theirs in zip(mine, exact, strict=True)
    ]
    of_large_mean = ", mean = 1000 × std" * (dtype is torch.float32)
    yield at_most(
        f"SyncBatchNorm, {name}{of_large_mean}: relative error of output, gradients and statistics",
        max(errors),
        bar,
    )
    if bench.on_gpu:
        yield exactly(
            f"SyncBatchNorm, {name}, forward and backward: synchronizations", len(found), 0
        )


def _through(
    module: Any, forward: Callable[[Tensor], Tensor], x_BCHW: Tensor, d_BCHW: Tensor
) -> list[Tensor]:
    """Go forward and back; return the output, the gradients and the running statistics."""
    x_BCHW = x_BCHW.detach().requires_grad_()
    out = forward(x_BCHW)
    out.backward(d_BCHW)
    found = (out, x_BCHW.grad, module.weight.grad, module.bias.grad)
    return [one.detach() for one in (*found, module.running_mean, module.running_var)]


def _parallel(bench: Bench, backend: str) -> Iterator[Row]:
    """Take steps under DDP, which has nobody to wait for, and without it."""
    theirs = plain_network("segformer-tiny", **NO_DROPOUT)
    side, steps = (32, 1) if bench.tiny else (64, 3)
    losses = []
    for parallel in (False, True):
        learner = Learner(ours_of(theirs), 2, side, bench.device, use_amp=False)
        if parallel:
            learner.step.wrapped = DistributedDataParallel(
                learner.network,
                device_ids=[bench.device] if bench.on_gpu else None,
                gradient_as_bucket_view=True,
            )
        losses.append([learner() for _ in range(steps)])
    plain, ours = losses
    difference = max(abs(a - b) / abs(a) for a, b in zip(plain, ours, strict=True))
    yield at_most(
        f"DDP by {backend}, one process, {steps} steps of AdamW: relative difference of the losses",
        difference,
        1e-4,
    )


def half_checkpoints(bench: Bench) -> Iterator[Row]:
    """Load weights that are stored in half precision, as a folder and as a bare file."""
    side = 32 if bench.tiny else 128
    network = ours_of(plain_network("segformer-tiny")).eval()
    model = ModelConfig(name="segformer-tiny", input_size=side)
    images = [draw_image(side, 2 * side, seed) for seed in range(2)]
    for dtype in (torch.bfloat16,) if bench.tiny else (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        folder = bench.scratch / f"half-{name}"
        folder.mkdir()
        halved = ours_of(plain_network("segformer-tiny")).to(dtype)
        save_network(folder, halved, Preprocess(side), TAXONOMY)
        file = bench.scratch / f"half-{name}.pt"
        torch.save(halved.state_dict(), file)
        rounded = {key: value.to(dtype).float() for key, value in network.state_dict().items()}
        for what, path in (("folder", folder), (".pt file", file)):
            loaded = load_network(str(path), model).network
            float32 = all(p.dtype is torch.float32 for p in loaded.parameters())
            kept = all(
                torch.equal(value.float(), rounded[key])
                for key, value in loaded.state_dict().items()
            )
            yield equal(f"{name} checkpoint, {what}: weights, float32 in memory", float32 and kept)
            with tf32(False):
                expected = Predictor(loaded, Preprocess(side)).predict(images)
                loaded.to(bench.device)
                found = Predictor(loaded, Preprocess(side)).predict(images)
            differing = [float((a != b).mean()) for a, b in zip(expected, found, strict=True)]
            yield at_most(
                f"{name} checkpoint, {what}: pixels whose mask differs from the CPU's",
                max(differing),
                2e-3,
            )


def exported_program(bench: Bench) -> Iterator[Row]:
    """Run a ``.pt2`` on the device: no device is recorded in it."""
    for kind, side in (("logits", 64), ("mask", 32)):  # of any size, of one size
        folder = bench.scratch / f"exported-{kind}"
        folder.mkdir()
        save_network(folder, plain_network("segformer-tiny"), Preprocess(side), TAXONOMY)
        path = bench.scratch / f"exported-{kind}.pt2"
        config = ExportConfig(checkpoint=str(folder), output=str(path), output_type=kind)
        export_graph(FORMATS["program"], config, ModelConfig(input_size=side))
        images = torch.from_numpy(np.stack([draw_image(side, side, seed) for seed in range(3)]))
        program: Any = torch.export.load(path).module()
        with torch.no_grad(), tf32(False):
            expected = program(images)
            found = program.to(bench.device)(images.to(bench.device)).cpu()
        if kind == "logits":
            error = float((found - expected).abs().max() / expected.abs().max())
            yield at_most("exported program, logits: error over the largest logit", error, 1e-4)
        else:
            share = float((found != expected).float().mean())
            yield at_most("exported program, mask: pixels that differ from the CPU's", share, 2e-3)


def validation(bench: Bench) -> Iterator[Row]:
    """Train with validation in half precision; `eval --no-tta` must give the same score."""
    steps = 2 if bench.tiny else 6
    for precision in ("bfloat16", "float16") if bench.on_gpu else ("bfloat16",):
        folder = bench.scratch / f"validated-{precision}"
        settings = {
            "val_shards": (str(GOLDEN / "val"),),
            "amp_dtype": precision,
            "log_every": 1,
            "val_every": steps,
            "val_batch_size": 2,
        }
        small_run(bench, folder, steps, **settings)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if line.get("loss") is not None]
        yield equal(f"'train' in {precision}: every loss is finite", len(losses) == steps)
        (scored,) = (line["val_mIoU"] for line in lines if "val_mIoU" in line)
        config = InferConfig(
            checkpoint=str(folder / "last"),
            shards=(str(GOLDEN / "val"),),
            output=str(bench.scratch / f"scored-{precision}"),
            use_tta=False,
            batch_size=2,
            device=bench.device.type,
        )
        again = evaluate(config, ModelConfig()).scores.miou
        yield at_most(
            f"'eval --no-tta' after 'train' in {precision}: difference from the mIoU of "
            f"validation, {scored:.4f}",
            abs(again - scored),
            1e-3 if bench.on_gpu else 0.0,  # cuDNN may choose other convolutions than in 'train'
        )


def training_memory(bench: Bench) -> Iterator[Row]:
    """Let memory run out in the third step: two are saved, and the command says what to do."""
    from cocoseg import cli

    folder = bench.scratch / "no-memory"
    real = TrainingStep.__call__

    def step(self: TrainingStep, number: int, *arguments: Any) -> Any:
        if number == 2 and bench.on_gpu:
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(bench.device).total_memory
            free = 2**20
            torch.cuda.set_per_process_memory_fraction(
                (torch.cuda.memory_reserved() + free) / total, bench.device
            )
        elif number == 2:
            raise torch.OutOfMemoryError("rehearsed")
        return real(self, number, *arguments)

    side = 32 if bench.tiny else 256
    arguments = ["train", "--shards", str(GOLDEN / "train"), "--output", str(folder)]
    for setting in (
        f"train.device={bench.device.type}",
        "train.workers=0",
        "train.max_steps=4",
        "train.batch_size=8",
        "train.accumulation_steps=1",
        "model.name=segformer-tiny",
        f"model.input_size={side}",
    ):
        arguments += ["--set", setting]
    TrainingStep.__call__ = step  # type: ignore[method-assign]
    try:
        code, text = _command(cli, arguments)
    finally:
        TrainingStep.__call__ = real  # type: ignore[method-assign]
        if bench.on_gpu:
            torch.cuda.set_per_process_memory_fraction(1.0, bench.device)
    what = "'train' out of memory in the third step"
    yield exactly(f"{what}: exit code", code, int(ExitCode.FAILURE))
    saved = (folder / "checkpoints" / "step-00000002" / "model.safetensors").is_file()
    yield equal(f"{what}: the two steps are saved", saved)
    named = "out of memory" in text and "train.batch_size" in text and "Traceback" not in text
    yield equal(f"{what}: the message names train.batch_size, without a traceback", named)


def _command(cli: Any, arguments: list[str]) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and what it wrote to stderr."""
    import sys

    before, sys.argv = sys.argv, ["cocoseg", *arguments]
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            cli.main()
    except SystemExit as ended:
        return int(ended.code or 0), errors.getvalue()
    finally:
        sys.argv = before
        logging.getLogger("cocoseg").handlers.clear()


class _Texts(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what cocoseg warns of."""
    logger, heard = logging.getLogger("cocoseg"), _Texts()
    logger.addHandler(heard)
    try:
        yield heard.texts
    finally:
        logger.removeHandler(heard)


T = TypeVar("T")


def peak_memory(bench: Bench, function: Callable[[], T]) -> tuple[T, int]:
    """Call a function; return its result, and the most memory of the GPU that it took [bytes]."""
    bench.finish()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = function()
    return result, torch.cuda.max_memory_allocated() - before


@contextlib.contextmanager
def memory_left(bench: Bench, left: float) -> Iterator[None]:
    """Leave this process so much memory of the GPU beside what it holds already [bytes]."""
    bench.finish()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    fraction = (torch.cuda.memory_reserved() + left) / total
    torch.cuda.set_per_process_memory_fraction(fraction, bench.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, bench.device)


def inference_memory(bench: Bench) -> Iterator[Row]:
    """Leave too little memory for the strips, then for a batch: masks are made all the same."""
    network = ours_of(plain_network("segformer-b0")).to(bench.device).eval()
    six = views_of(InferConfig())
    cases = (
        # Of a small input and a large image, the strips take most; of many inputs, the network.
        ("strips", "strips of half the size", 128, six, [draw_image(1500, 2000, 0)]),
        ("a batch", "batches of", 512, six[:1], [draw_image(480, 640, seed) for seed in range(16)]),
    )
    for what, expected, side, views, images in cases:
        whole = Predictor(network, Preprocess(side), views, batch_size=16)
        short = Predictor(network, Preprocess(side), views, batch_size=16)
        case = f"too little memory for {what}"
        with tf32(False):
            masks, peak = peak_memory(bench, partial(whole.predict, images))
            try:
                with memory_left(bench, 0.6 * peak), _warnings() as texts:
                    found = short.predict(images)
            except OutOfMemory as error:
                yield exactly(case, f"out of memory: {error}", "halved")
                continue
        halved = any(expected in text for text in texts)
        yield exactly(case, "halved" if halved else "fits", "halved")
        differing = [float((a != b).mean()) for a, b in zip(masks, found, strict=True)]
        yield at_most(f"{case}: share of the pixels that differ", max(differing), 1e-3)
