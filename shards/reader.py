"""Read samples by the index: one ranged read each, checked against its digest.

Nothing is unpickled, extracted or chosen by extension: only bytes that the manifest vouches for are
decoded, as an image or as a mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import storage
from ..errors import ConfigError, DataError
from ..taxonomy import Taxonomy
from .decode import Mask, decode_mask, decode_photo
from .manifest import MEMBERS, Index, IndexRow, Manifest, member_digest, read_index, read_manifest


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded sample."""

    key: str
    image: NDArray[np.uint8]
    """RGB, shape (H, W, 3), turned as the mask is."""
    mask: Mask
    """Train ids, shape (H, W)."""


class ShardSet:
    """One or several folders of shards as one sequence of samples.

    Parameters
    ----------
    folders
        Local paths or URLs of folders that hold a ``manifest.json``; all of one taxonomy.
    masks
        Whether the masks will be read.

    Raises
    ------
    ConfigError
        If a folder does not exist, or the taxonomies differ, or there are no masks.
    DataError
        If a manifest or index is missing or broken.
    """

    def __init__(self, folders: Sequence[str], masks: bool = True) -> None:
        if not folders:
            raise ConfigError("no folder of shards was given")
        self.folders, self._masks = tuple(folders), masks
        self.manifests: tuple[Manifest, ...] = tuple(read_manifest(folder) for folder in folders)
        self._indices: tuple[Index, ...] = tuple(
            read_index(folder, manifest)
            for folder, manifest in zip(folders, self.manifests, strict=True)
        )
        self._ends = np.cumsum([len(index) for index in self._indices])
        self.taxonomy: Taxonomy = self.manifests[0].classes
        for folder, manifest in zip(folders, self.manifests, strict=True):
            if manifest.classes.names != self.taxonomy.names:
                raise ConfigError(
                    f"{folder} and {folders[0]} were prepared with different classes; "
                    "prepare both with the same --classes"
                )
            if masks and not manifest.masks:
                raise ConfigError(
                    f"{folder}: was prepared without annotations and has no masks; it serves "
                    "'cocoseg infer' alone"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __reduce__(self) -> tuple[type["ShardSet"], tuple[tuple[str, ...], bool]]:
        return ShardSet, (self.folders, self._masks)  # a spawned worker maps the index again

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard, through all folders: what `plan.Plan` needs."""
        return [shard.samples for manifest in self.manifests for shard in manifest.shards]

    def row(self, position: int) -> IndexRow:
        """Return what the index says of a sample, 0 ≤ position < len(self)."""
        part, local = self._place(position)
        return self._indices[part].row(local)

    def read(self, position: int) -> Sample:
        """Read and decode one sample.

        Raises
        ------
        DataError
            If its bytes differ from the manifest or cannot be decoded; names shard and key.
        """
        row, url = self._shard_of(position)
        content, mask = read_members(url, row, ("image", "mask"))
        where = f"{url}: sample {row.key}"
        image = decode_photo(content, row, where)
        return Sample(row.key, image, decode_mask(mask, where, expected=image.shape[:2]))

    def read_image(self, position: int) -> NDArray[np.uint8]:
        """Read and decode the photograph alone: uint8 RGB, shape (H, W, 3).

        Raises
        ------
        DataError
            As `read`.
        """
        row, url = self._shard_of(position)
        (content,) = read_members(url, row, ("image",))
        return decode_photo(content, row, f"{url}: sample {row.key}")

    def _shard_of(self, position: int) -> tuple[IndexRow, str]:
        part, local = self._place(position)
        index = self._indices[part]
        shard = self.manifests[part].shards[int(index.samples["shard"][local])]
        return index.row(local), storage.join(self.folders[part], shard.name)

    def _place(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        part = int(np.searchsorted(self._ends, position, side="right"))
        return part, position - (int(self._ends[part - 1]) if part else 0)


def read_members(url: str, row: IndexRow, names: Sequence[str]) -> list[bytes]:
    """Read members of one sample in one request, and check their digests.

    Parameters
    ----------
    url
        The shard.
    names
        Out of ``image``, ``mask``, ``json``.

    Raises
    ------
    DataError
        If the shard is missing, cut, or differs from the index.
    """
    chosen = [MEMBERS.index(name) for name in names]
    first = min(row.offsets[i] for i in chosen)
    last = max(row.offsets[i] + row.lengths[i] for i in chosen)
    try:
        content = storage.read_range(url, first, last - first)
    except FileNotFoundError:
        raise DataError(f"{url}: the shard is missing") from None
    members = []
    for i in chosen:
        start = row.offsets[i] - first
        member = content[start : start + row.lengths[i]]
        if member_digest(member) != row.digests[i]:
            cut = "ends inside" if len(member) < row.lengths[i] else "differs from the index in"
            raise DataError(
                f"{url}: sample {row.key}: the shard {cut} its {MEMBERS[i]}; fetch or prepare it "
                "again ('cocoseg verify' checks all of it)"
            )
        members.append(member)
    return members
