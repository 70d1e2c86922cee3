"""From images to masks on disk.

inputs → batches → predictions → OUTPUT/REL.png (and what else was asked for) → predictions.jsonl
"""

import contextlib
import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...checkpoint.layout import find_checkpoint
from ...distributed.group import process_group
from ...errors import ConfigError, DataError
from ...meter import Meter, ShowProgress
from ...model.config import ModelConfig
from ...model.pipeline import read_ahead, thread_count, threads_for
from ...model.precision import dtype_name, tf32
from ...model.predictor import ComingPrediction, Inputs, Predictor
from ...printable import redacted
from ...results import Result
from ...storage import locate, resolved
from ...storage.output import OutputFolder, explained
from ..config import InferConfig
from ..folder import CLASSES, SETTINGS, classes_json, refuse_loss, used_settings
from ..predictor import SLOW, explained_memory, load_predictor
from ..views import views_of
from .inputs import InputImage, list_inputs
from .outputs import Outputs
from .progress import Progress, batch_id, identity, refuse_strange_notes, wanted_files

Pixels = tuple[NDArray[np.uint8], str] | DataError
"""An image's pixels and `photo.kind`, or why it has none."""
Record = tuple[InputImage, Future[dict[str, Any]] | dict[str, Any]]
"""What becomes of an image, perhaps not yet."""

_IN_FLIGHT = 2  # predictions per thread that wait for the disk


@dataclass(frozen=True, slots=True)
class PredictionPlan(Result):
    """What ``--dry-run`` prints."""

    config: InferConfig
    inputs: tuple[InputImage, ...]
    skipped: tuple[str, ...]
    """Files of the input folder that are not images by their names."""
    output: OutputFolder

    @property
    def batches(self) -> list[tuple[InputImage, ...]]:
        """The images in the batches in which they go through the network."""
        size = self.config.batch_size
        return [self.inputs[i : i + size] for i in range(0, len(self.inputs), size)]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "checkpoint": self.config.checkpoint,
            "images": len(self.inputs),
            "first": [image.source for image in self.inputs[:3]],
            "views": len(views_of(self.config)),
            "output": self.output.location.url,
            **({"skipped": list(self.skipped)} if self.skipped else {}),
        }


@dataclass(frozen=True, slots=True)
class PredictionResult(Result):
    """What was predicted and what could not be read."""

    output: str
    images: int
    """With a mask, those of a run before included."""
    kept: int
    """Of them, how many were there already."""
    converted: dict[str, int]
    """Images that were not plain RGB, by `photo.kind`."""
    unreadable: tuple[str, ...]
    skipped: tuple[str, ...]
    """Files of the input folder that are not images by their names."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that the command prints."""
        return {
            "output": self.output,
            "images": self.images,
            "kept": self.kept,
            "converted": self.converted,
            "unreadable": list(self.unreadable),
            **({"skipped": list(self.skipped)} if self.skipped else {}),
        }


def plan_prediction(config: InferConfig) -> PredictionPlan:
    """List the images and refuse what cannot work, before anything is loaded.

    Raises
    ------
    ConfigError
        See `find_checkpoint`, `list_inputs` and `OutputFolder`; also if a path is missing.
    """
    if not config.checkpoint:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    if not config.input or not config.output:
        raise ConfigError("--input and --output: give images and a folder for their masks")
    find_checkpoint(config.checkpoint)
    listed = list_inputs(config.input, config.output, config)
    inputs = tuple(listed.images)
    wanted = wanted_files(config, inputs)
    output = OutputFolder(
        locate(config.output), "inference", wanted, redacted(resolved(config.input))
    )
    output.refuse_foreign_files()
    refuse_loss(output)
    refuse_strange_notes(output.location)
    return PredictionPlan(config, inputs, tuple(listed.skipped), output)


def predict(
    config: InferConfig, model: ModelConfig | None = None, progress: ShowProgress = False
) -> PredictionResult | None:
    """Predict a mask for every image; the same call again does what is left to do.

    A mask is a single-channel PNG at the image's upright size, see `Outputs`. An image
    that cannot be read is listed; the others are done. Under torchrun each process takes every
    W-th batch.

    Parameters
    ----------
    config
        `checkpoint`, `input` and `output` must be set.
    model
        Architecture, classes and size for a lone file of weights, and how it is computed.
    progress
        How progress is shown, on rank 0; see `ShowProgress`.

    Returns
    -------
    PredictionResult or None
        None on all ranks but the first.

    Raises
    ------
    ConfigError, DataError
        See `plan_prediction` and `load_network`; DataError also if no image could be read.
    CocosegError
        If something cannot be written; what is done stays done.
    """
    model = model or ModelConfig()
    with (
        process_group(config.device, gradients=False) as group,
        tf32(model.tf32),
        contextlib.ExitStack() as held,
    ):
        with group.together():
            plan = plan_prediction(config)
        with group.together():
            loaded, predictor = load_predictor(config, model, group.device)
            outputs = Outputs(config, loaded.taxonomy)
        run = identity(loaded, config, dtype_name(predictor.precision), model.tf32)
        batches = {batch_id(run, batch): batch for batch in plan.batches}
        told = Progress(config, batches, plan.output)
        if group.gather(group.leads and told.complete)[0]:
            size = len(plan.inputs)
            return _result(plan, told.records(), size) if group.leads else None
        check: Callable[[], None] = lambda: None  # noqa: E731
        with group.together(), explained(plan.output.location):
            if group.leads:
                check = held.enter_context(told.begun())
                settings = plan.output.location / SETTINGS
                settings.publish_bytes(used_settings(config, model).encode())
                classes = plan.output.location / CLASSES
                classes.publish_bytes(classes_json(config, loaded.taxonomy).encode())
        done = group.gather(told.done() if group.leads else set())[0]
        with group.together(), explained(plan.output.location):
            own = list(itertools.islice(batches.items(), group.rank, None, group.world_size))
            _predict_batches(
                [(one, batch) for one, batch in own if one not in done],
                predictor,
                outputs,
                told,
                progress if group.leads else False,
            )
        result = None
        with group.together(), explained(plan.output.location):
            if group.leads:
                told.finish(loaded.taxonomy, check)
                kept = sum(len(batches[one]) for one in done)
                result = _result(plan, told.records(), kept)
        return result


def _result(
    plan: PredictionPlan, records: Sequence[Mapping[str, Any]], kept: int
) -> PredictionResult:
    bad = tuple(str(record["error"]) for record in records if "error" in record)
    converted = Counter(str(record["converted"]) for record in records if "converted" in record)
    output, images = plan.output.location.url, len(records) - len(bad)
    return PredictionResult(output, images, kept, dict(converted), bad, plan.skipped)


def _predict_batches(
    batches: Sequence[tuple[str, Sequence[InputImage]]],
    predictor: Predictor,
    outputs: Outputs,
    told: Progress,
    progress: ShowProgress,
) -> None:
    """Predict batches one after the other; the next is read and the last written meanwhile."""
    total = sum(len(batch) for _, batch in batches)
    device = predictor.device
    threads = thread_count(device)
    # The probabilities of all classes are much larger than an image: those of one are held.
    most = 1 if outputs.config.probabilities else _IN_FLIGHT * threads
    writing: deque[tuple[str, list[Record]]] = deque()
    with (
        Meter("infer", total, "image", progress, slow=SLOW) as meter,
        explained_memory(),
        threads_for(device, threads, "cocoseg-read") as readers,
        threads_for(device, threads, "cocoseg-write") as writers,
    ):
        read_batch = partial(_read_all, readers, predictor)
        for (name, batch), content in read_ahead(batches, read_batch, device):
            told.renew()
            predictions = predictor.predictions(
                content.inputs,
                confidence=outputs.wants_confidence,
                probabilities=outputs.config.probabilities,
            )
            records: list[Record] = []
            flying: deque[Future[dict[str, Any]]] = deque()
            for image, read in zip(batch, content.images, strict=True):
                if isinstance(read, DataError):
                    records.append((image, {"error": str(read)}))
                    continue
                if len(flying) == most:
                    flying.popleft().result()
                coming = next(predictions).to_host()
                flying.append(writers.submit(_write, outputs, image, *read, coming))
                records.append((image, flying[-1]))
            writing.append((name, records))
            if len(writing) > 1:
                _settle(*writing.popleft(), told)
            meter.update(len(batch))
        while writing:
            _settle(*writing.popleft(), told)


def _write(
    outputs: Outputs,
    image: InputImage,
    pixels: NDArray[np.uint8],
    kind: str,
    coming: ComingPrediction,
) -> dict[str, Any]:
    converted = {"converted": kind} if kind else {}
    return {**outputs.write(image.name, pixels, coming.wait()), **converted}


def _settle(name: str, records: Sequence[Record], told: Progress) -> None:
    """Wait until a batch is written, and note that it is done."""
    lines = []
    for image, record in records:
        made = record.result() if isinstance(record, Future) else record
        lines.append({"image": image.source, **made})
    told.publish(name, lines)


@dataclass(frozen=True, slots=True)
class _BatchContent:
    """What threads read of a batch."""

    images: list[Pixels]
    inputs: Inputs
    """Of those that could be read."""


def _read_all(
    readers: ThreadPoolExecutor, predictor: Predictor, batch: tuple[str, Sequence[InputImage]]
) -> _BatchContent:
    """Read and resize the images of a batch."""

    def read(image: InputImage) -> tuple[Pixels, list[NDArray[np.uint8]] | None]:
        try:
            found = image.read()
            return found, predictor.resize(found[0])
        except DataError as error:
            return error, None
        except MemoryError:
            return DataError(f"{image.source}: not enough memory to read and resize it"), None

    content = list(readers.map(read, batch[1]))
    good = [(found[0], resized) for found, resized in content if not isinstance(found, DataError)]
    inputs = predictor.inputs([image for image, _ in good], [resized for _, resized in good])
    return _BatchContent([found for found, _ in content], inputs)
