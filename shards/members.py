"""Which members of a tar make one sample, as WebDataset groups them."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import msgspec

from ..errors import DataError
from .tarball import Member

MAX_JSON = 2**26
"""Larger jsons are refused: they describe one image [bytes]."""
_MASKS = ("seg.png", "png")  # the first one that is there


class SampleMembers(msgspec.Struct, frozen=True):
    """The members of one sample."""

    key: str
    image: Member
    mask: Member | None
    json: Member | None

    @property
    def offsets(self) -> tuple[int, int, int]:
        """First byte of image, mask and json in the tar; 0 for what is not there."""
        image, mask, described = self.image, self.mask, self.json
        return image.offset, mask.offset if mask else 0, described.offset if described else 0

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Their sizes [bytes]."""
        image, mask, described = self.image, self.mask, self.json
        return image.size, mask.size if mask else 0, described.size if described else 0


def by_sample(members: Iterable[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yield keys with their members: neighbors of the same key, whatever their order."""
    for key, group in groupby(members, lambda member: member.key):
        yield key, list(group)


def sort_members(key: str, members: list[Member], where: str, masks: bool = True) -> SampleMembers:
    """Find the image, the mask and the json of one sample.

    The mask is ``seg.png``, or ``png`` where there is none; the image is the other picture.

    Parameters
    ----------
    masks
        Whether there has to be a mask.

    Raises
    ------
    DataError
        If there is not exactly one image and one mask, or more than one json; begins with `where`.
    """
    jsons = [member for member in members if member.kind == "json"]
    pictures = [member for member in members if member.kind != "json"]
    by_extension = {member.extension.lower(): member for member in pictures}
    mask = next((by_extension[name] for name in _MASKS if masks and name in by_extension), None)
    images = [member for member in pictures if member is not mask]
    names = ", ".join(member.extension for member in members)
    if masks and mask is None:
        raise DataError(f"{where}: has no mask, 'seg.png' or 'png', among {names}")
    if len(images) != 1 or len(jsons) > 1:
        raise DataError(
            f"{where}: has {len(images)} images and {len(jsons)} jsons beside its mask, expected "
            f"one image and at most one json, among {names}"
        )
    if jsons and jsons[0].size > MAX_JSON:
        raise DataError(f"{where}: its json has {jsons[0].size} bytes; at most {MAX_JSON}")
    return SampleMembers(key, images[0], mask, jsons[0] if jsons else None)
