"""Score a checkpoint, or masks that anything made, on shards, at the masks' own resolution.

checkpoint | masks, shards → canonical batches → counts, summed over processes → scores → report
"""

import contextlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...checkpoint.layout import find_checkpoint
from ...colors import visualize_prediction
from ...distributed.group import Group, process_group
from ...errors import ConfigError
from ...meter import Meter, ShowProgress
from ...metrics import Scores
from ...model.config import ModelConfig
from ...model.precision import tf32
from ...model.score import (
    NetworkPredicts,
    Predicts,
    Scored,
    check_totals,
    scored,
    totals_of,
)
from ...printable import redacted
from ...results import Result
from ...shards.order import evaluation_batches
from ...shards.png import Mask, encode_mask
from ...shards.reader import Sample, ShardSet
from ...shards.tarball import key_path
from ...storage import Location, locate, resolved
from ...storage.output import OutputFolder, explained
from ...taxonomy import Taxonomy
from ..config import InferConfig
from ..folder import CLASSES, SETTINGS, classes_json, used_settings
from ..predictor import SLOW, explained_memory
from ..views import views_of
from .images import ImageScore, ShownImage, Worst
from .label_errors import SuspiciousRegion, most_suspicious, suspicious_regions
from .page import render_evaluation
from .predicted import PredictedMasks, mask_names
from .result import Evaluation as Evaluation  # what `evaluate` returns
from .scored import ScoredNetwork, load_scored
from .tally import Tally

METRICS = "metrics.json"
_FILES = (
    *(SETTINGS, CLASSES, "classes.csv", "images.csv", "image_classes.csv"),
    *("image_confusions.csv", "labels.csv", "report.html", METRICS),
)
"""In the order in which they are written."""


@dataclass(frozen=True, slots=True)
class EvaluationPlan(Result):
    """What ``--dry-run`` prints."""

    config: InferConfig
    shards: ShardSet
    masks: PredictedMasks | None
    """Instead of a network."""
    output: OutputFolder

    @property
    def views(self) -> int:
        """How often the network sees each image."""
        return 0 if self.masks else len(views_of(self.config))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "checkpoint": self.config.checkpoint,
            "predictions": self.config.predictions,
            "samples": len(self.shards),
            "classes": self.shards.taxonomy.num_classes,
            "views": self.views,
            "output": self.output.location.url,
        }


@dataclass(slots=True)
class _Part:
    """What one process found of its batches."""

    tally: Tally
    images: list[ImageScore]
    worst: Worst
    regions: list[SuspiciousRegion]


def plan_evaluation(config: InferConfig) -> EvaluationPlan:
    """Open the shards and refuse what cannot work, before a network is loaded.

    Raises
    ------
    ConfigError, DataError
        If a path is missing, the shards have no manifest, `infer.predictions` has not one mask for
        each sample (see `PredictedMasks`), or a file that is not of an evaluation is in the way.
    """
    if config.checkpoint is None and config.predictions is None:
        raise ConfigError(
            "--checkpoint: give a run, a checkpoint folder or a Hugging Face name; or "
            "--predictions, a folder of masks"
        )
    if config.checkpoint is not None and config.predictions is not None:
        raise ConfigError(
            "--checkpoint and --predictions: give one of them ('--set infer.checkpoint=' takes "
            "back what a config file says)"
        )
    if config.output is None:
        raise ConfigError("--output: give a folder for the scores")
    if config.checkpoint is not None and config.min_confidence > 0:
        raise ConfigError(
            "infer.min_confidence: a checkpoint is scored at every pixel; to score masks that "
            "leave doubtful pixels out, write them by 'cocoseg infer', then 'eval --predictions'"
        )
    if config.save_predictions and config.predictions is not None:
        raise ConfigError("--save-predictions: the masks are there already; it needs --checkpoint")
    if config.compare_tta and not (config.use_tta and config.checkpoint):
        raise ConfigError("--compare-tta: needs --checkpoint, and --tta, which is the default")
    if not config.shards:
        raise ConfigError("--shards: give at least one folder of shards")
    twice = [url for url, count in Counter(map(resolved, config.shards)).items() if count > 1]
    if twice:
        raise ConfigError(f"--shards {twice[0]}: is given twice; each sample is to count once")
    if config.checkpoint is not None:
        find_checkpoint(config.checkpoint)
    shards = ShardSet(config.shards, config=config)
    masks = None if config.predictions is None else PredictedMasks(config.predictions, shards)
    shown = range(min(config.pictures, len(shards)))
    wanted = {*_FILES, *(_picture(shards.row(position).key) for position in shown)}
    if config.save_predictions:
        wanted |= {f"predictions/{name}" for name in mask_names(shards, "--save-predictions")}
    output = OutputFolder(locate(config.output), "evaluation", wanted)
    output.refuse_foreign_files()
    return EvaluationPlan(config, shards, masks, output)


def evaluate(
    config: InferConfig, model: ModelConfig | None = None, progress: ShowProgress = False
) -> Evaluation:
    """Score ``infer.checkpoint``, or ``infer.predictions``, on ``infer.shards``.

    Writes ``metrics.json`` (last), tables of classes, images and labels, ``report.html``, the
    settings and, if asked for, pictures and masks. Under torchrun each process takes every W-th
    batch, and rank 0 writes; the bytes are the same at any number of processes, on processors that
    compute alike.

    Parameters
    ----------
    config
        `shards`, `output`, and `checkpoint` or `predictions` must be set.
    model
        Architecture, classes and size for a lone file of weights, and how it is computed.
    progress
        How progress is shown, on rank 0; see `ShowProgress`.

    Returns
    -------
    Evaluation
        The same on every process.

    Raises
    ------
    ConfigError
        If the checkpoint's classes are not those of the shards; see also `plan_evaluation`.
    DataError
        If a shard, the checkpoint or a mask is damaged, or the pixels that were scored are not
        those that the manifests count.
    CocosegError
        If something cannot be written; what failed on one process, on every process.
    """
    model = model or ModelConfig()
    device = "cpu" if config.checkpoint is None else config.device
    with (
        process_group(device, gradients=False) as group,
        tf32(model.tf32),
        contextlib.ExitStack() as held,
    ):
        with group.together():
            plan = plan_evaluation(config)
        shards = plan.shards
        with group.together():
            checkpoint, predicts = _source(plan, model, group.device)
        batches = evaluation_batches(len(shards), config.batch_size, group.world_size, group.rank)
        with group.together(), explained(plan.output.location):
            if group.leads:
                hold = held.enter_context(plan.output.held("cocoseg eval"))
                if config.pictures or config.save_predictions:
                    plan.output.claim()
                    (plan.output.location / METRICS).remove()  # these will be of others
        with group.together(), explained(plan.output.location):
            part = _score(predicts, plan, batches, progress if group.leads else False)
        without_tta = None
        if config.compare_tta:
            with group.together():
                confusion = _without_tta(predicts, plan, batches)
            confusion = group.sum(torch.from_numpy(confusion)).numpy()
            without_tta = Scores.from_confusion(confusion)
        result = _joined(part, plan, checkpoint, without_tta, group)
        with group.together():
            check_totals(result.tally.confusion, shards)
        with group.together(), explained(plan.output.location):
            if group.leads:
                hold.check()
                _write(result, plan, model)
        return result


def _source(
    plan: EvaluationPlan, model: ModelConfig, device: torch.device
) -> tuple[ScoredNetwork | None, Predicts]:
    """Make ready what predicts."""
    if plan.masks is not None:
        return None, plan.masks
    predictor, checkpoint = load_scored(plan.config, model, plan.shards.taxonomy, device)
    return checkpoint, NetworkPredicts(predictor, confidence=not plan.config.quick)


def _without_tta(
    predicts: Predicts, plan: EvaluationPlan, batches: Sequence[range]
) -> NDArray[np.int64]:
    """Return the confusion matrix of one view of each image."""
    assert isinstance(predicts, NetworkPredicts)
    with explained_memory():
        return totals_of(predicts.without_augmentation(), plan.shards, batches).confusion


def _score(
    predicts: Predicts, plan: EvaluationPlan, batches: Sequence[range], progress: ShowProgress
) -> _Part:
    """Count the batches of this process, image by image; see `scored` for what it raises."""
    taxonomy, config = plan.shards.taxonomy, plan.config
    part = _Part(Tally.empty(taxonomy.num_classes), [], Worst(), [])

    def finish(
        one: Scored,
    ) -> tuple[Tally, ImageScore, ShownImage | None, list[SuspiciousRegion]]:
        file_name = str(plan.shards.read_meta(one.position).get("file_name", one.sample.key))
        score = ImageScore.of(one, file_name)
        shown = None
        if part.worst.admits(score):  # of the images so far, so perhaps not of all
            confusion = one.confusion
            shown = ShownImage.of(score, one.sample, one.mask, confusion, taxonomy.ignore_index)
        if one.position < config.pictures:
            _write_picture(one.sample, one.mask, taxonomy, plan.output.location)
        if config.save_predictions:
            mask = plan.output.location / f"predictions/{key_path(one.sample.key)}.png"
            mask.publish_bytes(encode_mask(cast("Mask", one.mask)))
        tally = Tally.of(one, taxonomy, boundary=not config.quick)
        return tally, score, shown, list(suspicious_regions(one, file_name))

    size = sum(map(len, batches))
    with explained_memory(), Meter("eval", size, "image", progress, slow=SLOW) as meter:
        for tally, score, shown, regions in scored(predicts, plan.shards, batches, finish):
            part.tally.add(tally)
            part.images.append(score)
            if shown is not None:
                part.worst.add(shown)
            part.regions = most_suspicious([*part.regions, *regions])
            meter.update()
    return part


def _joined(
    part: _Part,
    plan: EvaluationPlan,
    checkpoint: ScoredNetwork | None,
    without_tta: Scores | None,
    group: Group,
) -> Evaluation:
    """Put together what all processes found; integers, so that their number does not matter."""
    taxonomy = plan.shards.taxonomy
    vector = group.sum(torch.from_numpy(part.tally.to_vector())).numpy()
    images = (score for found in group.gather(part.images) for score in found)
    worst = Worst(shown for found in group.gather(part.worst) for shown in found.shown)
    regions = (region for found in group.gather(part.regions) for region in found)
    return Evaluation(
        checkpoint=checkpoint,
        predictions=plan.config.predictions,
        views=plan.views,
        shards=plan.shards.folders,
        taxonomy=taxonomy,
        tally=Tally.from_vector(vector, taxonomy.num_classes),
        images=tuple(sorted(images, key=lambda score: score.position)),
        worst=tuple(worst.shown),
        regions=tuple(most_suspicious(regions)),
        quick=plan.config.quick,
        without_tta=without_tta,
    )


def _write_picture(
    sample: Sample, prediction: NDArray[np.integer], taxonomy: Taxonomy, output: Location
) -> None:
    picture = visualize_prediction(
        sample.image, sample.mask, prediction, taxonomy.names, taxonomy.ignore_index
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    (output / _picture(sample.key)).publish_bytes(buffer.getvalue())


def _picture(key: str) -> str:
    return f"pictures/{key_path(key)}.png"


def _write(result: Evaluation, plan: EvaluationPlan, model: ModelConfig) -> None:
    """Write all files; while those of another evaluation are replaced, none says "complete"."""
    output = plan.output.location
    (output / METRICS).remove()
    contents = (
        used_settings(plan.config, model),
        classes_json(plan.config, result.taxonomy),
        result.classes_csv(),
        result.images_csv(),
        result.image_classes_csv(),
        result.image_confusions_csv(),
        result.labels_csv(),
        render_evaluation(result),
        json.dumps(result.to_dict(), indent=1) + "\n",
    )
    plan.output.claim()
    plan.output.settle(plan.output.wanted)
    for name, text in zip(_FILES, contents, strict=True):
        (output / name).publish_bytes(redacted(text).encode())
