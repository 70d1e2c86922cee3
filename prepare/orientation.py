"""Which way up a photograph was when it was annotated.

Cameras store pixels as the sensor lies and note the turn in EXIF. Some tools annotate the upright
picture, some the stored one: only the annotated width and height tell, and not for squares.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .. import photo
from ..photo import BadPhoto, PhotoInfo


@dataclass(frozen=True, slots=True)
class Orientation:
    """How EXIF is read for a whole data set."""

    mode: Literal["auto", "apply", "raw"]
    ambiguous: Literal["apply", "raw"]
    """What ``auto`` does with a photograph that matches both ways."""

    def turn(self, info: PhotoInfo, width: int, height: int) -> int:
        """Return the turn (an EXIF orientation, 1…8) that brings the photograph over its mask.

        Raises
        ------
        BadPhoto
            ``size-mismatch``, if no permitted turn has the annotated size.
        """
        fitting = fitting_turns(info, width, height)
        if self.mode == "auto":
            if len(fitting) == 2:
                return info.orientation if self.ambiguous == "apply" else 1
            if fitting:
                return fitting[0]
        else:
            turn = info.orientation if self.mode == "apply" else 1
            if turn in fitting:
                return turn
        turned = f", EXIF orientation {info.orientation}" if info.orientation != 1 else ""
        raise BadPhoto(
            "size-mismatch",
            f"the image is {info.width} x {info.height}{turned}; annotated as {width} x {height}",
        )


def fitting_turns(info: PhotoInfo, width: int, height: int) -> tuple[int, ...]:
    """Return the turns with the annotated size: as stored (1), as EXIF says, both, or none."""
    turns = dict.fromkeys((1, info.orientation))
    return tuple(turn for turn in turns if info.size(turn) == (width, height))


def survey(photos: Iterable[tuple[bytes, int, int]]) -> Counter[str]:
    """Count how photographs that EXIF turns fit their annotated size.

    Parameters
    ----------
    photos
        (file, annotated width, annotated height [pixels]).

    Returns
    -------
    Counter
        ``apply``, ``raw`` and ``ambiguous``. Unreadable files are left to the build to report.
    """
    votes: Counter[str] = Counter()
    for content, width, height in photos:
        try:
            info = photo.inspect(content)
        except BadPhoto:
            continue
        fitting = fitting_turns(info, width, height)
        if info.orientation == 1 or not fitting:
            continue
        votes["ambiguous" if len(fitting) == 2 else "raw" if fitting == (1,) else "apply"] += 1
    return votes


def decide(mode: Literal["auto", "apply", "raw"], votes: Counter[str]) -> Orientation:
    """Settle the ambiguous photographs by the data set's unambiguous ones; ``apply`` on a tie."""
    return Orientation(mode, "raw" if votes["raw"] > votes["apply"] else "apply")
