"""Whether `eval` finds label errors: 5 % of the demo's instances deleted, 5 % given another class.

    python benchmarks/label_errors.py [SEEDS]

For each seed, the 400 training images of `cocoseg demo` are corrupted, a network is trained on them
with the demo's settings (4 minutes on 2 cores), and the same shards are evaluated. A suspicious
region is right if at least half of its pixels are ones that the corruption changed.
Printed is the share of right regions among the first 20, beside that of all regions: what a random
order of the same regions has on average. Instances of crowds are left as they are.
"""

import csv
import json
import statistics
import sys
import tempfile
from pathlib import Path

import cocoseg
import cv2
import numpy as np
from cocoseg.config import load
from cocoseg.demo.scenes import DemoDataset, draw_dataset
from cocoseg.settings import Settings
from cocoseg.shards.reader import ShardSet
from PIL import Image

FIRST = 20
DELETED = RENAMED = 0.05


def corrupt(clean: Path, wrong: Path, seed: int) -> tuple[int, int]:
    """Write annotations with label errors; return how many were deleted and renamed."""
    rng = np.random.default_rng(seed)
    content = json.loads(clean.read_text())
    plain = [one for one in content["annotations"] if not one["iscrowd"]]
    used = sorted({one["category_id"] for one in plain})
    order = rng.permutation(len(plain))
    deleted = {plain[k]["id"] for k in order[: round(DELETED * len(plain))]}
    renamed = order[len(deleted) : len(deleted) + round(RENAMED * len(plain))]
    for k in renamed:
        others = [one for one in used if one != plain[k]["category_id"]]
        plain[k]["category_id"] = int(rng.choice(others))
    content["annotations"] = [one for one in content["annotations"] if one["id"] not in deleted]
    wrong.write_text(json.dumps(content))
    return len(deleted), len(renamed)


def pack(annotations: Path, images: Path, output: Path) -> ShardSet:
    """Rasterize and pack one set of annotations."""
    cocoseg.prepare_shards(
        cocoseg.PrepareConfig(
            annotations=(str(annotations),), images=(str(images),), output=str(output)
        )
    )
    return ShardSet([str(output)])


def verdicts(scores: Path, clean: ShardSet, wrong: ShardSet) -> list[bool]:
    """Return for each region of labels.csv whether the corruption made it."""
    ids = {name: train_id for train_id, name in enumerate(wrong.taxonomy.names)}
    positions = {wrong.row(position).key: position for position in range(len(wrong))}
    found = []
    for row in csv.DictReader((scores / "labels.csv").open()):
        truth = wrong.read(positions[row["key"]]).mask
        changed = truth != clean.read(positions[row["key"]]).mask
        predicted = np.asarray(Image.open(scores / "predictions" / f"{row['key']}.png"))
        pair = (truth == ids[row["annotated"]]) & (predicted == ids[row["predicted"]])
        _, parts, stats, _ = cv2.connectedComponentsWithStats(pair.astype(np.uint8))
        box = [int(row[key]) for key in ("left", "top", "width", "height", "pixels")]
        (label,) = (n for n, one in enumerate(stats.tolist()) if n and one == box)
        found.append(bool(changed[parts == label].mean() >= 0.5))
    return found


def measure(seed: int, data: DemoDataset, folder: Path) -> tuple[float, float]:
    """Return the share of right regions among the first `FIRST`, and among all."""
    folder.mkdir()
    annotations = folder / "wrong.json"
    deleted, renamed = corrupt(data.train.annotations, annotations, seed)
    clean = pack(data.train.annotations, data.train.images, folder / "clean")
    wrong = pack(annotations, data.train.images, folder / "wrong")
    settings = load(Settings, "demo").value
    cocoseg.train_model(
        settings.train.model_copy(
            update={
                "shards": (str(folder / "wrong"),),
                "save_dir": str(folder / "run"),
                "seed": seed,
            }
        ),
        settings.model,
        settings.augment,
    )
    cocoseg.evaluate(
        settings.infer.model_copy(
            update={
                "checkpoint": str(folder / "run"),
                "shards": (str(folder / "wrong"),),
                "output": str(folder / "scores"),
                "save_predictions": True,
            }
        ),
        settings.model,
    )
    right = verdicts(folder / "scores", clean, wrong)
    first, every = statistics.mean(right[:FIRST]), statistics.mean(right)
    print(
        f"seed {seed}: {deleted} deleted, {renamed} renamed; of {len(right)} regions "
        f"{sum(right)} are right ({every:.3f}), of the first {FIRST} {first:.2f}",
        flush=True,
    )
    return first, every


def main(seeds: int) -> None:
    """Print one line for each seed, and the medians."""
    with tempfile.TemporaryDirectory(prefix="cocoseg-labels-") as scratch:
        data = draw_dataset(Path(scratch) / "data", train_images=400, val_images=1, seed=0)
        found = [measure(seed, data, Path(scratch) / str(seed)) for seed in range(seeds)]
    first, every = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"median of {seeds} seeds: {first:.2f} among the first {FIRST}, {every:.3f} at random")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 3)
