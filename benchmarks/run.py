"""Ratios against the plain way, measured in one run (A B A B …, median): ``make bench``.

What is measured is drawn by `cocoseg demo`, or real COCO where COCOSEG_DATA names a folder with
``coco/annotations`` and ``coco/train2017``.
"""

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cocoseg.demo.scenes import draw_dataset
from cocoseg.prepare.build import prepare
from cocoseg.prepare.config import PrepareConfig
from cocoseg.taxonomy import COCO_CATEGORIES
from PIL import Image
from pycocotools.coco import COCO

ROUNDS = 5


def main() -> None:
    """Print the machine and the ratios."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        annotations, images, name = data(Path(scratch))
        plain, ours = pair(
            lambda i: plain_prepare(annotations, images, Path(scratch) / f"plain-{i}"),
            lambda i: our_prepare(annotations, images, Path(scratch) / f"ours-{i}"),
        )
        count = len(json.loads(annotations.read_text())["images"])
    print(f"prepare, {name}, {count} images, one process, CPU time, median of {ROUNDS}:")
    print(f"  plain pycocotools + tarfile  {1000 * plain / count:6.2f} ms an image")
    print(f"  cocoseg                      {1000 * ours / count:6.2f} ms an image")
    print(f"  ratio                        {plain / ours:6.2f}")
    fresh, kept = (loss_time(flag) for flag in ("fresh", "kept"))
    print("ce_dice, 8 x 81 x 160 x 160, forward and backward, median of 15:")
    print(f"  memory returned to the system  {1000 * fresh:6.1f} ms")
    print(f"  memory kept                    {1000 * kept:6.1f} ms")
    print(f"  ratio                          {fresh / kept:6.2f}")


def data(scratch: Path) -> tuple[Path, Path, str]:
    """Return the annotations, the image folder and a name for what is measured."""
    real = Path(os.environ.get("COCOSEG_DATA", "")) / "coco"
    if (real / "annotations").is_dir():
        return real / "annotations" / "instances_train2017.json", real / "train2017", "real COCO"
    drawn = draw_dataset(scratch / "data", train_images=100, val_images=1, seed=0)
    return drawn.train.annotations, drawn.train.images, "drawn"


def pair(a: Callable[[int], None], b: Callable[[int], None]) -> tuple[float, float]:
    """Return the median CPU seconds of a and b, run in turn."""
    a(-1), b(-1)  # warm: imports, page cache
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(ROUNDS):
        for kept, function in zip(times, (a, b), strict=True):
            start = time.process_time()
            function(i)
            kept.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def plain_prepare(annotations: Path, images: Path, output: Path) -> None:
    """Do what people write by hand: COCO(), annToMask, boolean paint, Pillow PNG, tar."""
    import tarfile

    train_ids = {category: i for i, (category, _, _) in enumerate(COCO_CATEGORIES, start=1)}
    silent, sys.stdout = sys.stdout, io.StringIO()
    coco = COCO(str(annotations))
    sys.stdout = silent
    output.mkdir()
    with tarfile.open(output / "plain.tar", "w") as tar:
        for image in coco.loadImgs(coco.getImgIds()):
            mask = np.zeros((image["height"], image["width"]), np.uint8)
            layers = [
                (coco.annToMask(one).astype(bool), train_ids[one["category_id"]])
                for one in coco.loadAnns(coco.getAnnIds(image["id"]))
            ]
            for pixels, train_id in sorted(layers, key=lambda layer: -layer[0].sum()):
                mask[pixels] = train_id
            png = io.BytesIO()
            Image.fromarray(mask).save(png, "PNG")
            photo = (images / image["file_name"]).read_bytes()
            for name, content in (
                (f"{image['id']}.jpg", photo),
                (f"{image['id']}.png", png.getvalue()),
            ):
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))


def our_prepare(annotations: Path, images: Path, output: Path) -> None:
    """Do all of it: digests, checks of every photo and annotation, index, manifest."""
    prepare(
        PrepareConfig(
            annotations=(str(annotations),), images=(str(images),), output=str(output), workers=1
        )
    )


_LOSS = """
import statistics, sys, time, torch
from cocoseg.model.device import keep_freed_memory
from cocoseg.train.losses import ce_dice
if sys.argv[1] == "kept":
    keep_freed_memory()
torch.manual_seed(0)
small = torch.randn(8, 81, 40, 40)
target = torch.randint(0, 81, (8, 4, 4)).repeat_interleave(40, 1).repeat_interleave(40, 2)
times = []
for _ in range(16):
    start = time.perf_counter()
    logits = small.clone().requires_grad_()
    up = torch.nn.functional.interpolate(logits, (160, 160), mode="bilinear")
    ce_dice(up, target, 255).mean(torch.tensor(1e5), torch.tensor(8.0)).backward()
    times.append(time.perf_counter() - start)
print(statistics.median(times[1:]))
"""


def loss_time(memory: str) -> float:
    """Return the seconds of one loss in a process of its own, as the setting is the process's."""
    done = subprocess.run(
        [sys.executable, "-c", _LOSS, memory], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


if __name__ == "__main__":
    main()
