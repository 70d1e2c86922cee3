"""One shard: its images become samples, the samples a tar, and the tar leaves a record.

The record is written after the tar stands: it vouches for finished bytes.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from ..shards.manifest import Index, pack_index, unpack_index
from ..shards.writer import EncodedSample, write_shard
from ..storage import locate
from .sample import ImageTask, Quarantined, SampleRules, build_sample


class ShardTask(msgspec.Struct, frozen=True):
    """One shard to be built; everything a worker needs."""

    number: int
    """Counts through all splits."""
    folder: str
    """Where the shard goes."""
    name: str
    building: str
    """Where its scratch file and its record go; see `build_folder`."""
    record: str
    """File name of the record."""
    images: tuple[ImageTask, ...]
    rules: SampleRules


class BuiltShard(msgspec.Struct, frozen=True):
    """What is known of a finished shard."""

    number: int
    sha256: str
    packed_index: tuple[bytes, bytes]
    """See `pack_index`."""
    quarantined: tuple[Quarantined, ...]
    counts: dict[str, int]
    """Findings: instances, crowds, oddities."""
    class_instances: dict[int, int]
    """Instances by train id, ignored ones included."""
    votes: dict[str, int]
    """Of its images about the orientation; see `orientation.Votes`."""
    ambiguous: int
    """Images that follow the majority of the votes."""
    assumed: Literal["apply", "raw"]
    """What that majority was taken to be."""
    size: int
    """Of the tar [bytes]."""
    samples: int

    @property
    def index(self) -> Index:
        """Where its samples lie; unpacked at every call."""
        return unpack_index(*self.packed_index)


Watch = Callable[[int, int], None]
"""Is told, before each image, its place in the shard and how many were left out before; with -1 for
the place when all are done and the shard is on its way to the disk."""


def build_shard(task: ShardTask, watch: Watch) -> BuiltShard:
    """Paint, pack and publish the images of one shard, and then its record.

    Raises
    ------
    OSError
        If the disk is full or fails; nothing is left behind.
    """
    quarantined: list[Quarantined] = []
    counts: Counter[str] = Counter()
    instances: Counter[int] = Counter()
    votes: Counter[str] = Counter()

    def samples() -> Iterator[EncodedSample]:
        for place, image in enumerate(task.images):
            watch(place, len(quarantined))
            made = build_sample(image, task.rules)
            if isinstance(made, Quarantined):
                quarantined.append(made)
                continue
            counts.update(made.counts)
            instances.update(image.instances.train_ids if image.instances else ())
            votes[made.turn.vote or "none"] += 1
            yield made.sample
        watch(-1, len(quarantined))

    with locate(task.building).scratch_folder() as scratch:
        record = write_shard(scratch / task.name, samples())
        (locate(task.folder) / task.name).publish_file(scratch / task.name)
    built = BuiltShard(
        number=task.number,
        sha256=record.sha256,
        packed_index=pack_index(record.index),
        quarantined=tuple(quarantined),
        counts=dict(+counts),
        class_instances=dict(instances),
        votes=dict(votes),
        ambiguous=counts["exif_ambiguous"],
        assumed=task.rules.orientation.ambiguous,
        size=record.bytes,
        samples=len(record.index),
    )
    (locate(task.building) / task.record).publish_bytes(msgspec.msgpack.encode(built))
    return built


def shard_name(number: int) -> str:
    """Return the file name of a shard, as WebDataset's writers name them."""
    return f"shard-{number:06d}.tar"
