"""Score a checkpoint on shards, at the masks' own resolution.

checkpoint, shards → canonical batches → confusion matrix → metrics.json (and pictures)
"""

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import storage
from ..colors import visualize_prediction
from ..config import to_yaml
from ..errors import ConfigError
from ..metrics import Scores, confusion_matrix
from ..model.config import ModelConfig
from ..model.score import predictions
from ..shards.plan import evaluation_batches
from ..shards.reader import ShardSet
from .config import InferConfig
from .predictor import ReadyNetwork
from .views import views_of


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What ``--dry-run`` tells."""

    config: InferConfig
    shards: ShardSet

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "checkpoint": self.config.checkpoint,
            "samples": len(self.shards),
            "classes": self.shards.taxonomy.num_classes,
            "views": len(views_of(self.config)),
            "output": self.config.output,
        }


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The scores of one checkpoint on one set of shards."""

    checkpoint: str
    tta: bool
    samples: int
    names: tuple[str, ...]
    scores: Scores

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        return {
            "checkpoint": self.checkpoint,
            "tta": self.tta,
            "samples": self.samples,
            **self.scores.to_dict(self.names),
        }

    def table(self) -> str:
        """Return the scores for people: every class that occurs, the rest counted."""
        scores = self.scores
        seen = [i for i in range(len(self.names)) if not np.isnan(scores.iou[i])]
        width = max(len(self.names[i]) for i in seen) if seen else 10
        lines = [f"{'class':<{width}}    IoU  accuracy        pixels"]
        for i in sorted(seen, key=lambda i: -scores.iou[i]):
            accuracy = "       -" if np.isnan(scores.accuracy[i]) else f"{scores.accuracy[i]:8.4f}"
            pixels = f"{scores.pixels[i]:>12,}"
            lines.append(f"{self.names[i]:<{width}} {scores.iou[i]:6.4f}  {accuracy}  {pixels}")
        absent = len(self.names) - len(seen)
        lines += [
            "",
            f"mIoU            {scores.miou:.4f}   over {len(seen)} classes"
            + (f"; {absent} neither occur nor were predicted" if absent else ""),
            f"without background {scores.miou_foreground:.4f}",
            f"pixel accuracy  {scores.pixel_accuracy:.4f}",
            f"mean accuracy   {scores.mean_accuracy:.4f}",
            f"samples         {self.samples}{', with test-time augmentation' if self.tta else ''}",
        ]
        return "\n".join(lines)


def plan_evaluation(config: InferConfig) -> EvaluationPlan:
    """Open the shards and refuse what cannot work, before a network is loaded.

    Raises
    ------
    ConfigError, DataError
        If a path is missing or the shards have no manifest.
    """
    if config.checkpoint is None:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    if config.output is None:
        raise ConfigError("--output: give a folder for the scores")
    if not config.shards:
        raise ConfigError("--shards: give at least one folder of shards")
    return EvaluationPlan(config, ShardSet(config.shards, config=config))


def evaluate(config: InferConfig, model: ModelConfig, progress: bool = False) -> Evaluation:
    """Score ``infer.checkpoint`` on ``infer.shards`` and write ``metrics.json``.

    Parameters
    ----------
    progress
        Show a bar on stderr.

    Raises
    ------
    ConfigError
        If the checkpoint's classes are not those of the shards; see also `plan_evaluation`.
    DataError
        If a shard or the checkpoint is damaged.
    """
    shards = plan_evaluation(config).shards
    ready = ReadyNetwork.of(config, model)
    taxonomy, theirs = shards.taxonomy, ready.loaded.taxonomy
    if theirs.names != taxonomy.names:
        raise ConfigError(
            f"the checkpoint has {theirs.num_classes} classes ({', '.join(theirs.names[:4])} …), "
            f"the shards {taxonomy.num_classes} ({', '.join(taxonomy.names[:4])} …): they differ, "
            "so no score would mean anything"
        )
    output = str(config.output)
    matrix = np.zeros((taxonomy.num_classes, taxonomy.num_classes), np.int64)
    batches = evaluation_batches(len(shards), config.batch_size, world_size=1, rank=0)
    done = tqdm(
        predictions(ready.predict, shards, batches),
        total=len(shards),
        unit="img",
        disable=not progress,
    )
    for number, (sample, mask) in enumerate(done):
        matrix += confusion_matrix(sample.mask, mask, taxonomy.num_classes, taxonomy.ignore_index)
        if number < config.pictures:
            picture = visualize_prediction(
                sample.image, sample.mask, mask, taxonomy.names, taxonomy.ignore_index
            )
            buffer = io.BytesIO()
            picture.save(buffer, format="PNG")
            url = storage.join(output, "pictures", f"{sample.key}.png")
            storage.publish_bytes(url, buffer.getvalue())
    result = Evaluation(
        ready.loaded.origin,
        config.use_tta,
        len(shards),
        taxonomy.names,
        Scores.from_confusion(matrix),
    )
    files = {
        "config.yaml": to_yaml({"model": model, "infer": config}),
        "metrics.json": json.dumps(result.to_dict(), indent=1) + "\n",
    }
    for name, text in files.items():
        storage.publish_bytes(storage.join(output, name), text.encode())
    return result
