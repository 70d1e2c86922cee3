"""Masks from photographs: against the network's own forward passes, and against the plain way."""

import json
from collections.abc import Iterator

from measure import Row, last_line

_START = """
import copy, json, sys, time
import numpy as np
import torch
from torch.nn import functional as F
from measure import high_water, in_turn
from transformers import AutoModelForSemanticSegmentation
from cocoseg.infer.config import InferConfig
from cocoseg.infer.views import views_of
from cocoseg.model.classes import label_settings
from cocoseg.model.encoder import lighten_encoder
from cocoseg.model.head import fold_head
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.registry import architecture
from cocoseg.processes import keep_freed_memory
from cocoseg.taxonomy import coco_taxonomy

torch.set_num_threads(1)
keep_freed_memory()
torch.manual_seed(0)
settings = architecture(sys.argv[1])
settings.update(label_settings(coco_taxonomy()))
theirs = AutoModelForSemanticSegmentation.from_config(settings).eval()
network = copy.deepcopy(theirs)
assert fold_head(network) and lighten_encoder(network)
preprocess = Preprocess(512)
views = views_of(InferConfig())

def ready(views):
    return Predictor(network, preprocess, views)

def photo(height, width, seed):
    noise = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed))
    large = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)[0]
    return (large.permute(1, 2, 0).numpy() * 255).astype(np.uint8)

def tensors(images, view):
    small = np.stack([preprocess.resize(image, view.scale) for image in images])
    return preprocess.normalizer()(view.mirror(torch.from_numpy(small), 1, 2))
"""
_SPEED = (
    _START
    + """
def clock(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start

def forwards(inputs):
    with torch.inference_mode():
        for x in inputs:
            network(pixel_values=x)

def plain(images, views):
    with torch.inference_mode():
        for image in images:
            mean = 0
            for view in views:
                logits = view.mirror(theirs(pixel_values=tensors([image], view)).logits, 2, 3)
                large = F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)
                mean = mean + large.softmax(dim=1)
            masks.append((mean / len(views)).argmax(dim=1)[0].byte().numpy())

rounds, batch = int(sys.argv[2]), int(sys.argv[3])
one, many = [photo(480, 640, 0)], [photo(480, 640, i) for i in range(batch)]
found = {}
plain_view = views_of(InferConfig(use_tta=False))
for what, images, looks in (("tta", one, views), ("batch", many, plain_view)):
    inputs = [tensors(images, view) for view in looks]
    ours, masks = ready(looks), []
    expected = ours.predict(images)
    plain(images, looks)
    found[f"{what} differs"] = max(float((a != b).mean()) for a, b in zip(masks, expected))
    found[what] = in_turn(
        {
            "forwards": lambda: clock(lambda: forwards(inputs)),
            "ours": lambda: clock(lambda: ours.predict(images)),
            "plain": lambda: clock(lambda: plain(images, looks)),
        },
        rounds,
    )
print(json.dumps(found))
"""
)
_MEMORY = (
    _START
    + """
image = photo(2000, 3000, 0)
if sys.argv[2] == "forwards":
    with torch.inference_mode():
        for view in views:
            network(pixel_values=tensors([image], view))
else:
    ready(views).predict([image])
print(high_water() / 1e6)
"""
)
_MAIN_THREAD = (
    _START
    + """
from types import SimpleNamespace
from cocoseg.model import fuse
from cocoseg.model import predictor as module
from cocoseg.model.pipeline import read_ahead

class Free(torch.nn.Module):
    # Costs nothing: the logits are there already.
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.logits = {}

    def forward(self, pixel_values):
        batch, _, height, width = pixel_values.shape
        if pixel_values.shape not in self.logits:
            shape = batch, 81, height // 4, width // 4
            self.logits[pixel_values.shape] = torch.randn(shape)
        return SimpleNamespace(logits=self.logits[pixel_values.shape])

strips = 0.0

def clocked(*arguments, **options):
    global strips
    start = time.thread_time()
    found = fuse.read_strips(*arguments, **options)
    strips += time.thread_time() - start
    return found

module.read_strips = clocked
batch, rounds = 8, 8
predictor = Predictor(Free(), preprocess, views, batch_size=batch)
images = [photo(480, 640, i) for i in range(batch)]

def inputs(_):
    return predictor.inputs(images)

took = []
for _, content in read_ahead(range(rounds), inputs, predictor.device):
    strips, start = 0.0, time.thread_time()
    for one in predictor.predictions(content):
        one.to_host().wait()
    took.append((time.thread_time() - start - strips) / batch)
print(1000 * sorted(took)[len(took) // 2])
"""
)
# Name, rounds, images of a batch, and what the forward passes must reach of ours: views, batch.
_CASES = (("segformer-b0", 5, 8, None, None), ("segformer-b5", 3, 4, 1 / 1.25, 1 / 1.15))
_PIXELS, _CLASSES = 2000 * 3000, 81


def rows() -> Iterator[Row]:
    """Measure 480 × 640 photographs at 512², one thread, and memory at 2000 × 3000."""
    for name, rounds, batch, of_views, of_batch in _CASES:
        found = json.loads(last_line(_SPEED, name, rounds, batch))
        for what, bar, told in (
            ("tta", of_views, "6 views"),
            ("batch", of_batch, f"one view, batches of {batch}"),
        ):
            differs = f"{found[f'{what} differs']:.1e} of the pixels differ"
            times = {side: 1000 * seconds for side, seconds in found[what].items()}
            yield Row.speed(
                f"{name}, {told}: the forward passes alone",
                times["forwards"],
                times["ours"],
                bar,
                "ms",
            )
            yield Row.speed(
                f"{name}, {told}: the plain way ({differs})",
                times["plain"],
                times["ours"],
                1.5,
                "ms",
            )
    yield Row.limit(
        "main thread, a network that costs nothing, 6 views: CPU per image outside the strips",
        float(last_line(_MAIN_THREAD, "segformer-tiny")),
        3,
        "ms",
    )
    alone, ours = (float(last_line(_MEMORY, "segformer-b0", side)) for side in ("forwards", "ours"))
    full_map = 4 * _CLASSES * _PIXELS / 1e6
    yield Row.limit(
        f"6 views of 2000 × 3000: peak memory above the forward passes', full-resolution maps of "
        f"{full_map:.0f} MB",
        (ours - alone) / full_map,
        1.5,
        "maps",
        f"{alone:.0f} MB",
    )
