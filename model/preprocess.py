"""From a photograph to the network's input, and from its logits back to the photograph's size."""

# B batch, C classes, H W pixels of the photograph, h w of the network's input

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

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

    def normalise(self, images_BhwC: Tensor) -> Tensor:
        """Turn uint8 RGB, shape (B, h, w, 3), into float32, shape (B, 3, h, w), on its device."""
        device = images_BhwC.device
        if self.blue_first:
            images_BhwC = images_BhwC.flip(3)
        mean = torch.tensor(self.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=device).view(1, 3, 1, 1)
        # Laid out anew first: channels that lie three apart cost each step more than this copy.
        images = images_BhwC.permute(0, 3, 1, 2).to(
            torch.float32, memory_format=torch.contiguous_format
        )
        return images.div_(255).sub_(mean).div_(std)

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
        """
        size = content.get("size", 512)
        if isinstance(size, Mapping):
            size = size.get("height", size.get("shortest_edge", 512))
        kind = str(content.get("image_processor_type", content.get("feature_extractor_type", "")))
        blue_first = bool(content.get("do_flip_channel_order", kind.startswith("MobileViT")))
        mean = tuple(content.get("image_mean") or IMAGENET_MEAN)
        std = tuple(content.get("image_std") or IMAGENET_STD)
        normalises = content.get("do_normalize")
        # MobileViT's processor, the one that flips, does not normalise unless it is told to.
        if not (not blue_first if normalises is None else normalises):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        return cls(int(size), bool(content.get("keep_ratio", False)), mean, std, blue_first)


def upsample(logits_BChw: Tensor, height: int, width: int) -> Tensor:
    """Bring logits to (B, C, height, width) bilinearly, in float32 at least."""
    if logits_BChw.dtype in (torch.float16, torch.bfloat16):
        logits_BChw = logits_BChw.float()
    return F.interpolate(logits_BChw, (height, width), mode="bilinear", align_corners=False)
