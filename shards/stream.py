"""Shards as a pipeline of webdataset, for training loops that are built on it.

webdataset by itself does not turn images as EXIF says, clips masks of 16 bits to 8, and ends
without an error where a tar was cut between two members. Here the index and the manifest are asked.
"""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import webdataset as wds
from numpy.typing import NDArray
from webdataset.tariterators import group_by_keys, tar_file_expander

from ..errors import DataError
from ..storage import locate
from .config import ReadConfig
from .decode import decode_sample
from .manifest import MEMBERS, IndexRow, ShardEntry, member_digest
from .png import Mask
from .reader import ShardSet


def stream_webdataset(
    shards: str | Sequence[str], *, seed: int | None = None, config: ReadConfig | None = None
) -> wds.DataPipeline:
    """Stream samples shard by shard, each process and each loader worker its own shards.

    Parameters
    ----------
    shards
        Folders of shards: local paths or URLs.
    seed
        Of the order of the shards; None keeps that of the manifest. For a shuffled order of
        samples append ``wds.shuffle(N)`` with `DataPipeline.append`.
    config
        Where indices in an object store are cached.

    Returns
    -------
    webdataset.DataPipeline
        Yields (image, mask): uint8 RGB, shape (H, W, 3), turned as its mask is; and train ids,
        shape (H, W), uint8, or uint16 beyond 254 classes.

    Raises
    ------
    ConfigError, DataError
        See `ShardSet`. While it is iterated: DataError, if a sample or a shard is not as its
        manifest describes it, a shard that ends early among them; names shard and key.
    StoreError
        If an object store does not answer.
    """
    folders = [shards] if isinstance(shards, str) else list(shards)
    opened = ShardSet(folders, config=config)
    found, first = {}, 0
    for folder, manifest in zip(folders, opened.manifests, strict=True):
        for entry in manifest.shards:
            found[str(locate(folder) / entry.name)] = (entry, first)
            first += entry.samples
    return wds.DataPipeline(
        wds.SimpleShardList(list(found), seed=seed),
        wds.split_by_node,
        wds.split_by_worker,
        _Reader(opened, found),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """The stage of the pipeline that turns shards into samples."""

    shards: ShardSet
    found: Mapping[str, tuple[ShardEntry, int]]
    """URL → the shard, and the position of its first sample."""

    def __call__(
        self, sources: Iterator[Mapping[str, str]]
    ) -> Iterator[tuple[NDArray[np.uint8], Mask]]:
        for source in sources:
            yield from self._samples(source["url"])

    def _samples(self, url: str) -> Iterator[tuple[NDArray[np.uint8], Mask]]:
        entry, first = self.found[url]
        rows = {row.key: row for row in map(self.shards.row, range(first, first + entry.samples))}
        with locate(url).open_seekable() as stream:
            try:
                for members in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
                    key = members["__key__"]
                    row = rows.pop(key, None)
                    if row is None:
                        raise DataError(f"{url}: sample {key}: is not in the index, or twice there")
                    yield self._decoded(members, row, f"{url}: sample {key}")
            except tarfile.TarError as error:
                raise DataError(f"{url}: is not a whole tar: {error}") from None
        if rows:
            raise DataError(
                f"{url}: ends early: {len(rows)} of its {entry.samples} samples are missing, the "
                f"first is {next(iter(rows))}; fetch or prepare it again"
            )

    def _decoded(
        self, members: Mapping[str, Any], row: IndexRow, where: str
    ) -> tuple[NDArray[np.uint8], Mask]:
        mask_name = "seg.png" if "seg.png" in members else "png"
        image, mask = members.get(row.extension.lower(), b""), members.get(mask_name, b"")
        for name, stored, digest in zip(MEMBERS, (image, mask), row.digests, strict=False):
            if member_digest(stored) != digest:
                raise DataError(f"{where}: its {name} differs from the index")
        return decode_sample(image, mask, row, where, self.shards.taxonomy.bits)
