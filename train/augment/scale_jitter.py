"""Random zoom in and out of the whole image: resize, crop and pad of the field's recipes."""

from typing import Any

import albumentations
import cv2
import numpy as np
from albumentations.core.type_definitions import Targets
from numpy.typing import NDArray

from ..config import AugmentConfig
from .outside import COLOR


def scale_jitter(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform | None:
    """Resize, crop and pad by `AugmentConfig.scale_jitter`."""
    if config.scale_jitter is None:
        return None
    return ScaleJitter(config.scale_jitter, input_size, ignore_index)


class ScaleJitter(albumentations.DualTransform):  # type: ignore[misc]
    """Resize so that the shorter side is S times a random factor, and cut S × S out of it.

    Where the resized image is smaller it lies anywhere within the square, on the mean color and
    ignored pixels. The square is cut out before it is resized: the same but for interpolation at
    its edges, and no image becomes larger than S × S, whatever its shape.

    Source: `RandomResize` with `keep_ratio` and `RandomCrop` of mmsegmentation, and the training
    recipe of SegFormer (Xie et al., 2021, §4.1: 0.5 … 2.0).
    """

    _targets = (Targets.IMAGE, Targets.MASK)

    def __init__(self, factors: tuple[float, float], size: int, ignore_index: int) -> None:
        super().__init__(p=1.0)
        self.factors, self.size, self.ignore_index = factors, size, ignore_index

    def get_params_dependent_on_data(
        self, params: dict[str, Any], data: dict[str, Any]
    ) -> dict[str, Any]:
        """Draw the square: its side and its top left corner in pixels of the image."""
        height, width = params["shape"][:2]
        side = max(1, round(min(height, width) / self.py_random.uniform(*self.factors)))
        corner = [
            self.py_random.randint(min(0, length - side), max(0, length - side))
            for length in (height, width)
        ]
        return {"side": side, "corner": corner}

    def apply(self, img: NDArray[Any], side: int, corner: list[int], **params: Any) -> NDArray[Any]:
        """Cut out of an image, shape (H, W, 3)."""
        shrinks = side > self.size
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR  # antialiased, as validation's is
        return self._cut(img, side, corner, how, COLOR)

    def apply_to_mask(
        self, mask: NDArray[Any], side: int, corner: list[int], **params: Any
    ) -> NDArray[Any]:
        """Cut out of a mask, shape (H, W)."""
        return self._cut(mask, side, corner, cv2.INTER_NEAREST_EXACT, self.ignore_index)

    def _cut(
        self, array: NDArray[Any], side: int, corner: list[int], interpolation: int, outside: Any
    ) -> NDArray[Any]:
        there, here = zip(
            *(
                self._span(length, side, first)
                for length, first in zip(array.shape[:2], corner, strict=True)
            ),
            strict=True,
        )
        size = tuple(span.stop - span.start for span in reversed(here))
        resized = cv2.resize(array[there], size, interpolation=interpolation)
        if size == (self.size, self.size):
            return np.array(resized)
        square = np.empty((self.size, self.size, *array.shape[2:]), array.dtype)
        square[:] = outside
        square[here] = resized
        return square

    def _span(self, length: int, side: int, first: int) -> tuple[slice, slice]:
        """Return what of an axis of the image is seen, and where it lies on that of the square."""
        begin, end = max(first, 0), min(first + side, length)
        scale = self.size / side
        start = min(round((begin - first) * scale), self.size - 1)
        return slice(begin, end), slice(start, max(round((end - first) * scale), start + 1))
