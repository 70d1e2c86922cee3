"""From photographs to masks on disk.

inputs → batches → masks → OUTPUT/REL.png (and pictures under OUTPUT/color, OUTPUT/overlay)
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from .. import storage
from ..colors import mask_to_color, overlay_mask
from ..config import to_yaml
from ..errors import ConfigError, DataError
from ..model.config import ModelConfig
from .config import InferConfig
from .inputs import COLOR, OVERLAY, InputImage, list_inputs
from .predictor import ReadyNetwork
from .views import views_of


@dataclass(frozen=True, slots=True)
class PredictionPlan:
    """What ``--dry-run`` tells."""

    config: InferConfig
    inputs: tuple[InputImage, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "checkpoint": self.config.checkpoint,
            "images": len(self.inputs),
            "first": [image.source for image in self.inputs[:3]],
            "views": len(views_of(self.config)),
            "output": self.config.output,
        }


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """What was predicted and what could not be read."""

    output: str
    images: int
    unreadable: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that the command prints."""
        return {
            "output": self.output,
            "images": self.images,
            "unreadable": list(self.unreadable),
        }


def plan_prediction(config: InferConfig) -> PredictionPlan:
    """List the photographs and refuse what cannot work, before anything is loaded.

    Raises
    ------
    ConfigError
        See `list_inputs`; also if a path is missing.
    """
    if config.checkpoint is None:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    if config.input is None or config.output is None:
        raise ConfigError("--input and --output: give images and a folder for their masks")
    return PredictionPlan(config, tuple(list_inputs(config.input, config.output, config)))


def predict(config: InferConfig, model: ModelConfig, progress: bool = False) -> PredictionResult:
    """Predict a mask for every photograph.

    A mask is a single-channel PNG of train ids at the photograph's upright size. A photograph that
    cannot be read is listed; the others are done.

    Parameters
    ----------
    progress
        Show a bar on stderr.

    Raises
    ------
    ConfigError, DataError
        See `plan_prediction` and `load_network`; DataError also if no photograph could be read.
    """
    plan = plan_prediction(config)
    ready = ReadyNetwork.of(config, model)
    output = str(config.output)
    sections = {"model": model, "infer": config}
    storage.publish_bytes(storage.join(output, "config.yaml"), to_yaml(sections).encode())
    unreadable: list[str] = []
    with tqdm(total=len(plan.inputs), unit="img", disable=not progress) as bar:
        for batch in _batches(plan.inputs, config.batch_size, unreadable):
            masks = ready.predict([pixels for _, pixels in batch])
            for (image, pixels), mask in zip(batch, masks, strict=True):
                _write(config, image.name, pixels, mask)
            bar.update(len(batch))
    if len(unreadable) == len(plan.inputs):
        raise DataError("no image could be read:\n  " + "\n  ".join(unreadable[:5]))
    return PredictionResult(output, len(plan.inputs) - len(unreadable), tuple(unreadable))


def _batches(
    inputs: Sequence[InputImage], size: int, unreadable: list[str]
) -> Iterator[list[tuple[InputImage, NDArray[np.uint8]]]]:
    batch = []
    for image in inputs:
        try:
            batch.append((image, image.read()))
        except DataError as error:
            unreadable.append(str(error))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(
    config: InferConfig, name: str, image: NDArray[np.uint8], mask: NDArray[np.integer]
) -> None:
    pictures: dict[str, NDArray[np.integer]] = {f"{name}.png": mask}
    if config.color:
        pictures[f"{COLOR}/{name}.png"] = mask_to_color(mask)
    if config.overlay:
        pictures[f"{OVERLAY}/{name}.png"] = overlay_mask(image, mask)
    for path, pixels in pictures.items():
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        storage.publish_bytes(storage.join(str(config.output), path), buffer.getvalue())
