"""The full pipeline on a drawn data set: draw → prepare → train → infer → eval → contact sheet."""

import io
import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .. import __version__
from ..colors import visualize_prediction
from ..errors import ConfigError
from ..infer.evaluate.run import Evaluation, evaluate
from ..infer.predict.run import predict
from ..meter import ShowProgress
from ..metrics import Scores
from ..prepare.build import prepare_shards
from ..prepare.config import PrepareConfig
from ..results import Result
from ..settings import Settings
from ..shards.decode import decode_mask
from ..shards.manifest import Manifest
from ..shards.reader import ShardSet
from ..storage import LocalPath, locate
from ..train.run import train_model
from .scenes import DemoDataset, draw_dataset

TRAIN_IMAGES, VAL_IMAGES, SEED = 400, 80, 0
SHEET_IMAGES, SHEET_COLUMNS = 16, 2


@dataclass(frozen=True, slots=True)
class DemoPlan(Result):
    """Where everything goes, and what is trained."""

    settings: Settings
    folder: Path
    train_images: int
    val_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run`` prints."""
        return {
            "output": str(self.folder),
            "train_images": self.train_images,
            "val_images": self.val_images,
            "network": self.settings.model.name,
            "input_size": self.settings.model.input_size,
            "steps": self.settings.train.max_steps or f"{self.settings.train.epochs:g} epochs",
        }


@dataclass(frozen=True, slots=True)
class DemoResult(Result):
    """What the demo made and how good it is."""

    folder: Path
    evaluation: Evaluation
    background_miou: float
    """mIoU of a prediction that is background everywhere."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that ``--json`` prints."""
        return {
            "output": str(self.folder),
            "mIoU": self.evaluation.scores.miou,
            "background_only_mIoU": self.background_miou,
            "seconds": round(self.seconds, 1),
            "contact_sheet": str(self.folder / "contact-sheet.png"),
        }

    def text(self) -> str:
        """Return the closing words: what was made and where to look."""
        folder = self.folder
        shown = (folder / "shards" / "val", folder / "eval", folder / "run")
        return "\n".join(
            (
                self.evaluation.text(),
                "",
                f"mIoU {self.evaluation.scores.miou:.3f} on images that training never saw; "
                f"predicting background only gives {self.background_miou:.3f}.",
                f"All of it took {self.seconds:.0f} s. Look at:",
                f"  {folder / 'contact-sheet.png'}   image, ground truth, prediction, errors",
                f"  {folder / 'data'}                the drawn COCO data set",
                f"  {folder / 'shards'}              masks and images, packed by prepare",
                f"  {folder / 'run'}                 checkpoints; tensorboard --logdir of it",
                f"  {folder / 'predictions'}         label PNGs, color/ and overlay/ for people",
                f"  {folder / 'eval' / 'report.html'}    IoU of every class, the worst images",
                "In a browser, every image with its masks, the mistakes and the run:",
                f"  cocoseg view {shlex.join(map(str, shown))}",
            )
        )


def plan_demo(
    settings: Settings,
    output: str,
    train_images: int = TRAIN_IMAGES,
    val_images: int = VAL_IMAGES,
) -> DemoPlan:
    """Decide what the demo does.

    Raises
    ------
    ConfigError
        If `output` is not a local folder.
    """
    folder = locate(output)
    if not isinstance(folder, LocalPath):
        raise ConfigError(f"--output {output}: the demo needs a local folder")
    return DemoPlan(settings, Path(folder).absolute(), train_images, val_images)


def run_demo(plan: DemoPlan, progress: ShowProgress, say: Callable[[str], None]) -> DemoResult:
    """Run the full pipeline; finished stages of an earlier run are kept.

    Parameters
    ----------
    say
        Receives a line before each stage.
    """
    began = time.perf_counter()
    folder = plan.folder
    say(f"1/5 drawing {plan.train_images} + {plan.val_images} pictures with COCO annotations")
    data = _draw(plan)
    say("2/5 prepare: painting masks, packing shards")
    shards = {}
    for split in (data.train, data.val):
        output = folder / "shards" / split.name
        config = PrepareConfig(
            annotations=(str(split.annotations),),
            images=(str(split.images),),
            output=str(output),
            samples_per_shard=100,
        )
        shards[split.name] = prepare_shards(config, progress)
    settings = plan.settings
    train = settings.train.model_copy(
        update={
            "shards": (shards["train"].output,),
            "val_shards": (shards["val"].output,),
            "save_dir": str(folder / "run"),
        }
    )
    say(
        f"3/5 train: {settings.model.name} at {settings.model.input_size} pixels, on the CPU or GPU"
    )
    train_model(train, settings.model, settings.augment, progress)
    say("4/5 infer: scales and flips averaged")
    infer = settings.infer.model_copy(update={"checkpoint": str(folder / "run")})
    predictions = {"input": str(data.val.images), "output": str(folder / "predictions")}
    predict(infer.model_copy(update=predictions), settings.model, progress)
    say("5/5 eval: scoring the pictures that training never saw")
    scored = {
        "shards": (shards["val"].output,),
        "output": str(folder / "eval"),
        "save_predictions": True,
    }
    evaluation = evaluate(infer.model_copy(update=scored), settings.model, progress)
    _contact_sheet(folder, shards["val"].output)
    return DemoResult(
        folder,
        evaluation,
        background_only_miou(shards["val"].manifest),
        time.perf_counter() - began,
    )


def background_only_miou(manifest: Manifest) -> float:
    """Return the mIoU of predicting train id 0 everywhere, from the pixel counts of the shards."""
    matrix = np.zeros((len(manifest.class_pixels),) * 2, np.int64)
    matrix[:, 0] = manifest.class_pixels
    return Scores.from_confusion(matrix).miou


def _draw(plan: DemoPlan) -> DemoDataset:
    folder = plan.folder / "data"
    drawn = {
        "version": __version__,
        "train_images": plan.train_images,
        "val_images": plan.val_images,
        "seed": SEED,
    }
    marker = folder / "drawn.json"
    if marker.is_file() and json.loads(marker.read_text()) == drawn:
        return DemoDataset.at(folder)
    data = draw_dataset(
        folder, train_images=plan.train_images, val_images=plan.val_images, seed=SEED
    )
    locate(marker).publish_bytes(json.dumps(drawn).encode())
    return data


def _contact_sheet(folder: Path, shards: str) -> None:
    """Lay out validation images with ground truth and prediction, in columns."""
    validation = ShardSet([shards])
    picks = np.linspace(0, len(validation) - 1, min(SHEET_IMAGES, len(validation)))
    tiles = []
    for position in picks.astype(int):
        sample = validation.read(int(position))
        name = f"{sample.key}.png"
        prediction = decode_mask((folder / "predictions" / name).read_bytes(), name)
        tiles.append(
            visualize_prediction(sample.image, sample.mask, prediction, validation.taxonomy.names)
        )
    width = max(tile.width for tile in tiles)
    heights = [0] * SHEET_COLUMNS
    places = []
    for tile in tiles:  # each below the shortest column
        column = heights.index(min(heights))
        places.append((column * width, heights[column]))
        heights[column] += tile.height
    sheet = Image.new("RGB", (SHEET_COLUMNS * width, max(heights)), "white")
    for tile, place in zip(tiles, places, strict=True):
        sheet.paste(tile, place)
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    locate(folder / "contact-sheet.png").publish_bytes(buffer.getvalue())
