"""Checks of ``cocoseg doctor --shards`` on shards and loader: what training would be fed."""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..figures import bytes_text
from ..model.config import ModelConfig
from ..shards.census import Census
from ..shards.manifest import read_manifest
from ..shards.order import BatchLayout, SampleOrder
from ..shards.reader import ShardSet
from ..storage import locate
from ..train.batches import MicroBatch, TrainingSamples, micro_batches
from ..train.class_weights import class_weights
from ..train.config import AugmentConfig, TrainConfig
from ..train.losses.step import StepLoss
from .finding import Finding, describe, ok, problem, warning

_TOLD = 5  # classes, shards or samples that a finding names
_LOADED = 64  # images that the loader's speed is taken from
_PATIENCE = 30.0  # seconds for them
_MUCH_IGNORED = 0.5


@dataclass(slots=True)
class Inspection:
    """Shards, classes, loader, one after the other; each needs those before."""

    train: TrainConfig
    model: ModelConfig
    augment: AugmentConfig
    shards: ShardSet | None = None
    """None until they are open, and if they are not whole."""
    loss: StepLoss | None = None
    batch: MicroBatch | None = None
    rate: float | None = None
    """Images per second that the loader delivers."""

    def open_shards(self) -> Iterator[Finding]:
        """Open training and validation shards, and compare the sizes of their files."""
        whole = True
        for folder in (*self.train.shards, *self.train.val_shards):
            for finding in _sizes(folder):
                whole = False
                yield finding
        shards = ShardSet(self.train.shards, config=self.train)
        sets = {"training": shards}
        if self.train.val_shards:
            sets["validation"] = ShardSet(self.train.val_shards, config=self.train)
            if sets["validation"].taxonomy.names != shards.taxonomy.names:
                yield problem(
                    "training and validation shards have different classes",
                    "prepare both with the same --classes",
                )
        for name, opened in sets.items():
            tars = [shard for manifest in opened.manifests for shard in manifest.shards]
            size = bytes_text(sum(shard.bytes for shard in tars))
            yield ok(f"{name}: {len(opened):,} samples in {len(tars):,} shards, {size}")
        if len(shards) == 0:
            yield problem("there is no sample in the training shards", "prepare them again")
        elif whole:
            self.shards = shards
        else:
            yield warning("the other checks need whole shards", "fix those first")

    def count_classes(self) -> Iterator[Finding]:
        """Look at what the index counts: classes, ignored pixels, masks that teach nothing."""
        if self.shards is None:
            return
        taxonomy = self.shards.taxonomy
        census = Census.of(self.shards.indices, taxonomy.num_classes)
        pixels, untaught = census.pixels, census.untaught
        stated = np.sum([manifest.class_pixels for manifest in self.shards.manifests], axis=0)
        if not np.array_equal(stated, pixels):
            yield problem("the manifest counts other pixels than the index", "cocoseg verify DIR")
        total = int(pixels.sum()) + census.ignored
        share = census.ignored / max(1, total)
        seen = [i for i in range(1, taxonomy.num_classes) if pixels[i]]
        absent = [taxonomy.names[i] for i in range(1, taxonomy.num_classes) if not pixels[i]]
        text = (
            f"{len(seen)} of {taxonomy.num_classes - 1} classes are in the masks; "
            f"{pixels[0] / max(1, total):.1%} of the pixels are background, {share:.1%} ignored"
        )
        if not seen:
            yield problem(
                text + ": there is nothing to learn",
                "look at report.html of prepare, and at its --classes",
            )
        else:
            yield ok(text)
        if absent and seen:
            yield warning(
                f"{len(absent)} classes are in no mask: {_some(absent)}",
                "their scores will be missing; --classes FILE leaves them out",
            )
        if seen and share > _MUCH_IGNORED:
            yield warning(
                f"{share:.1%} of the pixels are ignored", "look at the masks: is 255 a class?"
            )
        if untaught:
            keys = [self.shards.row(number).key for number in untaught[:_TOLD]]
            yield warning(
                f"{len(untaught)} of {len(self.shards)} masks are ignored whole: "
                f"{_some(keys, len(untaught))}",
                "nothing is learnt from them; leave them out when preparing",
            )
        if census.background:
            yield ok(f"{census.background} masks are background alone")

    def load(self) -> Iterator[Finding]:
        """Read and augment samples with the configured workers, as training does."""
        if self.shards is None:
            return
        weights = class_weights(
            self.train.class_weights, self.shards.manifests, self.shards.taxonomy.num_classes
        )
        self.loss = StepLoss.of(self.train, self.shards.taxonomy, weights)
        workers = self.train.workers
        try:
            yield from self._load(workers)
        except (OSError, RuntimeError) as error:
            if not workers:
                raise
            yield problem(
                f"{workers} loader processes: {describe(error)}",
                "see shared memory, open files and memory above; train.workers=0 does without",
            )
            yield from self._load(0)

    def _load(self, workers: int) -> Iterator[Finding]:
        assert self.shards is not None and self.loss is not None
        config = self.train
        order = SampleOrder(
            self.shards.shard_sizes, config.seed, config.streams, config.block_shards
        )
        samples = TrainingSamples(
            self.shards,
            order,
            self.augment,
            self.model.input_size,
            denominators=self.loss.denominators.of,
        )
        layout = BatchLayout(config.batch_size, world_size=1, accumulation_steps=1)
        ready = 2 * workers  # batches that workers had ready when the clock started
        count = 1 + ready + math.ceil(_LOADED / config.batch_size)
        began = last = time.perf_counter()
        images, first = 0, 0.0
        bad: dict[str, str] = {}
        for number, (batch,) in enumerate(
            micro_batches(samples, layout, 0, 0, count, workers, pin_memory=False)
        ):
            last = time.perf_counter()
            if batch.failure is not None:
                yield problem(str(batch.failure), "see docs/streaming.md")
                return
            bad |= {one.key: str(one) for one in batch.bad}
            if self.batch is None or self.batch.denominators[0] == 0:
                self.batch = batch  # the first of which something can be learnt
            if number == ready:
                first, began = last - began, last
            elif number > ready:
                images += len(batch.keys)
            if images and last - began > _PATIENCE:
                break
        for text in itertools.islice(bad.values(), _TOLD):
            yield problem(text, "cocoseg verify DIR checks all of them")
        if images:
            self.rate = images / (last - began)
            yield ok(
                f"{self.rate:.1f} images/s, {1000 / self.rate:.1f} ms per image at "
                f"{self.model.input_size}², {workers} workers ({first:.1f} s until the first)"
            )


def _sizes(folder: str) -> Iterator[Finding]:
    """Compare the sizes of the shards' files with the manifest."""
    wrong = []
    files = locate(folder).list_files()
    for shard in read_manifest(folder).shards:
        size = files.get(shard.name)
        if size is None:
            wrong.append(f"{shard.name} is missing")
        elif size != shard.bytes:
            wrong.append(f"{shard.name} has {size:,} bytes instead of {shard.bytes:,}")
    if wrong:
        yield problem(
            f"{folder}: {_some(wrong)}", f"copy or prepare them again; cocoseg verify {folder}"
        )


def _some(names: Sequence[str], count: int | None = None) -> str:
    count = len(names) if count is None else count
    return ", ".join(names[:_TOLD]) + (" …" if count > _TOLD else "")
