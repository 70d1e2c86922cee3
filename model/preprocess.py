"""From a photograph to the network's input, and from its logits back to the photograph's size."""

# B batch, C classes, H W pixels of the photograph, h w of the network's input

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .view import View

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Sizes and normalisation that belong to a network; saved with it."""

    input_size: int
    """Side of the square, or with `keep_ratio` the longer side [pixels]."""
    keep_ratio: bool = False
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Per channel RGB, of values 0…1."""
    blue_first: bool = False
    """The network takes BGR, as MobileViT does; `mean` and `std` then follow that order."""

    def target_size(self, width: int, height: int, scale: float = 1.0) -> tuple[int, int]:
        """Return (w, h) [pixels] that a photograph is resized to; never below 32."""
        side = max(32, round(self.input_size * scale))
        if not self.keep_ratio:
            return side, side
        factor = side / max(width, height)
        return max(32, round(width * factor)), max(32, round(height * factor))

    def resize(self, image: NDArray[np.uint8], scale: float = 1.0) -> NDArray[np.uint8]:
        """Resize a photograph bilinearly, antialiased, as transformers' image processor does.

        Parameters
        ----------
        image
            uint8 RGB, shape (H, W, 3).
        scale
            Factor of `input_size`.

        Returns
        -------
        ndarray
            uint8 RGB, shape (h, w, 3).
        """
        height, width = image.shape[:2]
        target = self.target_size(width, height, scale)
        resized = Image.fromarray(image).resize(target, Image.Resampling.BILINEAR)
        return np.asarray(resized)

    def normaliser(self) -> "Normalise":
        """Return the layer that turns resized images into the network's input."""
        return Normalise(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``preprocessor_config.json``, as transformers reads it."""
        theirs: dict[str, Any] = {"image_processor_type": "SegformerImageProcessor"}
        if self.blue_first:
            theirs = {
                "image_processor_type": "MobileViTImageProcessor",
                "do_flip_channel_order": True,
                "do_center_crop": False,
            }
        return {
            **theirs,
            "do_resize": True,
            "size": {"height": self.input_size, "width": self.input_size},
            "keep_ratio": self.keep_ratio,  # ours alone: transformers always resizes to a square
            "resample": int(Image.Resampling.BILINEAR),
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_reduce_labels": False,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Preprocess":
        """Read a ``preprocessor_config.json``, ours or another's.

        `do_reduce_labels` is not looked at: it is about ADE20K's labels, which nothing here has.

        Raises
        ------
        ValueError
            If a value is of the wrong type or range; names the key.
        """
        if not isinstance(content, Mapping):
            raise ValueError("expected an object")
        size = content.get("size", 512)
        if isinstance(size, Mapping):
            size = size.get("height", size.get("shortest_edge", 512))
        kind = str(content.get("image_processor_type", content.get("feature_extractor_type", "")))
        blue_first = bool(content.get("do_flip_channel_order", kind.startswith("MobileViT")))
        if not isinstance(size, (int, float)) or isinstance(size, bool) or not 1 <= size < 2**15:
            raise ValueError(f"size: {size!r} is not a number of pixels")
        mean = _three("image_mean", content.get("image_mean") or IMAGENET_MEAN)
        std = _three("image_std", content.get("image_std") or IMAGENET_STD)
        if min(std) <= 0:
            raise ValueError(f"image_std: {std} is not positive")
        normalises = content.get("do_normalize")
        # MobileViT's processor, the one that flips, does not normalise unless it is told to.
        if not (not blue_first if normalises is None else normalises):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return cls(int(size), bool(content.get("keep_ratio", False)), mean, std, blue_first)


def _three(key: str, value: Any) -> tuple[float, float, float]:
    """Return a number for each channel; a single one is for all of them."""
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(one, (int, float)) and abs(one) < 1e30 for one in values)
    ):
        raise ValueError(f"{key}: {value!r} is not a finite number for each of 3 channels")
    return values[0], values[1], values[2]


class Normalise(nn.Module):
    """Turns uint8 RGB images into the network's input.

    Mean and standard deviation are buffers: they move to a device once, with the layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self._blue_first = preprocess.blue_first
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BhwC: Tensor) -> Tensor:
        """Turn uint8, shape (B, h, w, 3), into float32, shape (B, 3, h, w)."""
        if self._blue_first:
            images_BhwC = images_BhwC.flip(3)
        # Laid out anew first: channels that lie three apart cost each step more than this copy.
        images = images_BhwC.permute(0, 3, 1, 2).to(
            torch.float32, memory_format=torch.contiguous_format
        )
        return images.div_(255).sub_(self.mean).div_(self.std)


class HostNormaliser:
    """Does what `Normalise` does, by NumPy in one thread: beside a network on the CPU.

    Each channel goes through a table of the 256 numbers that `Normalise` makes of it: the same
    bits, in a fifth of the time.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        every = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
        self._tables = preprocess.normaliser()(every)[0, :, 0].numpy()
        self._source = (2, 1, 0) if preprocess.blue_first else (0, 1, 2)

    def __call__(self, images_BhwC: Tensor, view: View) -> Tensor:
        """Return the input of a view, float32, shape (B, 3, h, w), of uint8 images (B, h, w, 3)."""
        batch, height, width, _ = images_BhwC.shape
        x = np.empty((batch, 3, height, width), np.float32)
        for image, planes in zip(images_BhwC.numpy(), x, strict=True):
            for channel, plane in enumerate(planes):
                pixels = cv2.extractChannel(image, self._source[channel])
                if view.flip or view.flip_vertical:
                    pixels = pixels[:: -1 if view.flip_vertical else 1, :: -1 if view.flip else 1]
                plane[...] = cv2.LUT(np.ascontiguousarray(pixels), self._tables[channel])
        return torch.from_numpy(x)


def resize_logits(logits_BChw: Tensor, height: int, width: int) -> Tensor:
    """Bring logits to (B, C, height, width) bilinearly, in float32 at least."""
    if logits_BChw.dtype in (torch.float16, torch.bfloat16):
        logits_BChw = logits_BChw.float()
    return F.interpolate(logits_BChw, (height, width), mode="bilinear", align_corners=False)
