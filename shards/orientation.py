"""Which way up an image was when it was annotated.

Cameras store pixels as the sensor lies and note the turn in EXIF. Some tools annotate the upright
picture, some the stored one: only the annotated width and height tell, and not for squares,
mirrored pictures and those upside down. Such ambiguous ones follow the majority of the others.

The majority is known when all shards are built. They are built as if it were upright, as it nearly
always is; where it is not, the shards that hold ambiguous images are built again.
"""

from collections import Counter
from typing import Literal

import msgspec

from ..photo import BadPhoto, PhotoInfo

Votes = Counter[str]
"""Images that EXIF turns, by what their size says: ``apply`` or ``raw``."""


class Turn(msgspec.Struct, frozen=True):
    """How one image is turned, and what it says of the data set."""

    value: int
    """The EXIF orientation, 1…8, that brings the image over its mask."""
    ambiguous: bool = False
    """Whether both ways fit its size."""
    vote: Literal["apply", "raw"] | None = None
    """What it says of the others: nothing, if it is ambiguous or EXIF does not turn it."""


class Orientation(msgspec.Struct, frozen=True):
    """How EXIF is read for a whole data set."""

    mode: Literal["auto", "apply", "raw"]
    ambiguous: Literal["apply", "raw"] = "apply"
    """What ``auto`` does with an image that matches both ways."""

    def turn(self, info: PhotoInfo, width: int, height: int, said: str = "annotated as") -> Turn:
        """Return the turn that brings the image over its mask of width x height [pixels].

        Parameters
        ----------
        said
            What has this size, for the message.

        Raises
        ------
        BadPhoto
            ``size-mismatch``, if no permitted turn has the annotated size.
        """
        turned = info.orientation != 1
        as_stored = info.size(1) == (width, height)
        upright = info.size(info.orientation) == (width, height)
        if self.mode == "auto":
            if turned and as_stored and upright:
                return Turn(info.orientation if self.ambiguous == "apply" else 1, ambiguous=True)
            if upright:
                return Turn(info.orientation, vote="apply" if turned else None)
            if as_stored:
                return Turn(1, vote="raw")
        elif upright if self.mode == "apply" else as_stored:
            return Turn(info.orientation if self.mode == "apply" else 1)
        noted = f", EXIF orientation {info.orientation}" if turned else ""
        raise BadPhoto(
            "size-mismatch",
            f"the image is {info.width} x {info.height}{noted}; {said} {width} x {height}",
        )


def majority(votes: Votes) -> Literal["apply", "raw"]:
    """Settle the ambiguous images by the others; ``apply`` on a tie."""
    return "raw" if votes["raw"] > votes["apply"] else "apply"
