"""From an image to the network's input, and from its logits back to the image's size."""

# B batch, C classes, H W pixels of the image, h w of the network's input

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from .resizing import SMALLEST, Resizing, flag, read_size
from .view import View

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)

_Triple = tuple[float, float, float]
BILINEAR, BICUBIC = int(Image.Resampling.BILINEAR), int(Image.Resampling.BICUBIC)

SEGFORMER = "SegformerImageProcessor"
_DEFAULTS: dict[str, dict[str, Any]] = {
    SEGFORMER: {
        "size": 512,
        "resample": BILINEAR,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
    "BeitImageProcessor": {
        "size": 224,
        "crop_size": 224,
        "resample": BICUBIC,
    },
    "DPTImageProcessor": {"size": 384, "resample": BICUBIC},
    "MobileNetV2ImageProcessor": {
        "size": 256,
        "default_to_square": False,
        "crop_size": 224,
        "do_center_crop": True,
        "resample": BILINEAR,
    },
    "MobileViTImageProcessor": {
        "size": 224,
        "default_to_square": False,
        "crop_size": 256,
        "do_center_crop": True,
        "resample": BICUBIC,
        "do_flip_channel_order": True,
    },
    "Sapiens2ImageProcessor": {
        "size": {"height": 1024, "width": 768},
        "resample": BILINEAR,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
    "Tipsv2DptImageProcessor": {"size": 448, "resample": BILINEAR, "do_normalize": False},
}
"""Where transformers' processors for semantic segmentation differ from each other by default."""
KIND_OF_NETWORK = {
    "beit": "BeitImageProcessor",
    "data2vec-vision": "BeitImageProcessor",
    "dpt": "DPTImageProcessor",
    "mobilenet_v2": "MobileNetV2ImageProcessor",
    "mobilevit": "MobileViTImageProcessor",
    "mobilevitv2": "MobileViTImageProcessor",
    "sapiens2": "Sapiens2ImageProcessor",
    "tipsv2_dpt": "Tipsv2DptImageProcessor",
}
"""Which processor transformers uses where a folder names none; else it is SegFormer's."""
_COMMON = {
    "do_resize": True,
    "default_to_square": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _HALF,
    "image_std": _HALF,
}
_CROPS = frozenset(_DEFAULTS) - {SEGFORMER, "DPTImageProcessor"}
"""Those that read ``do_center_crop``."""
_OF_TORCHVISION = frozenset({"Sapiens2ImageProcessor", "Tipsv2DptImageProcessor"})
"""Those that exist for torchvision alone, whose pixels differ from Pillow's."""


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Sizes and normalization that belong to a network; saved with it."""

    input_size: int
    """Side of the square, or with `keep_ratio` the longer side [pixels]."""
    keep_ratio: bool = False
    mean: _Triple = IMAGENET_MEAN
    std: _Triple = IMAGENET_STD
    """Per channel RGB, of values 0…1."""
    blue_first: bool = False
    """The network takes BGR, as MobileViT does; `mean` and `std` then follow that order."""
    rescale: float = 1 / 255
    """Factor of the values 0…255 of pixels, before `mean` and `std`."""
    resample: int = BILINEAR
    """Pillow's number of the filter that resizes."""
    resizing: Resizing | None = None
    """Of another program's processor that does not resize to a square: used instead of
    `input_size` and `keep_ratio`; `input_size` is then the longest side that it names."""

    def target_size(self, width: int, height: int, scale: float = 1.0) -> tuple[int, int]:
        """Return (w, h) [pixels] that an image is resized to; never below 32."""
        if self.resizing is not None:
            return self.resizing.target(width, height, scale)
        side = max(SMALLEST, round(self.input_size * scale))
        if not self.keep_ratio:
            return side, side
        factor = side / max(width, height)
        return max(SMALLEST, round(width * factor)), max(SMALLEST, round(height * factor))

    def for_training(self, input_size: int, keep_ratio: bool) -> "Preprocess":
        """Return the same pixel values at the sizes of a training, resized bilinearly."""
        return replace(
            self,
            input_size=input_size,
            keep_ratio=keep_ratio,
            resample=BILINEAR,
            resizing=None,
        )

    def resize(self, image: NDArray[np.uint8], scale: float = 1.0) -> NDArray[np.uint8]:
        """Resize an image, antialiased, as transformers' image processor does with Pillow.

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
        resized = Image.fromarray(image).resize(target, Image.Resampling(self.resample))
        return np.asarray(resized)

    def normalizer(self) -> "Normalize":
        """Return the layer that turns resized images into the network's input."""
        return Normalize(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``preprocessor_config.json``, as transformers reads it."""
        theirs: dict[str, Any] = {"image_processor_type": SEGFORMER}
        if self.blue_first:
            theirs = {
                "image_processor_type": "MobileViTImageProcessor",
                "do_flip_channel_order": True,
                "do_center_crop": False,
            }
        sizes: dict[str, Any] = {
            "do_resize": True,
            "size": {"height": self.input_size, "width": self.input_size},
            "keep_ratio": self.keep_ratio,  # ours alone: transformers always resizes to a square
        }
        if self.resizing is not None:
            sizes = self.resizing.to_dict()
            if "ensure_multiple_of" in sizes:
                theirs = {"image_processor_type": "DPTImageProcessor"}
        return {
            **theirs,
            **sizes,
            "resample": self.resample,
            "do_rescale": True,
            "rescale_factor": self.rescale,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
            "do_reduce_labels": False,
        }

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], default_kind: str = SEGFORMER, *, sizes: bool = True
    ) -> "Preprocess":
        """Read a ``preprocessor_config.json``, ours or another's.

        Every setting that the processor of transformers reads for an image is used, or refused; a
        null is false, and is not allowed for a value that is needed, as in transformers.
        `do_reduce_labels` is about ADE20K's labels, which nothing here has.

        Parameters
        ----------
        default_kind
            The class of the processor, where the content names none.
        sizes
            Whether to read what is about sizes; a training has its own.

        Raises
        ------
        ValueError
            If a value is of the wrong type or range, or is not supported; names the key.
        """
        if not isinstance(content, Mapping):
            raise ValueError("expected an object")
        kind = _kind(content, default_kind)
        read = {**_COMMON, **_DEFAULTS[kind], **content}
        mobilevit = kind == "MobileViTImageProcessor"
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        # MobileViT's processor never normalizes, whatever it is told; only files of ours mean it.
        if flag(read, "do_normalize") and (not mobilevit or "keep_ratio" in content):
            mean = _three("image_mean", read["image_mean"])
            std = _three("image_std", read["image_std"])
        if min(std) <= 0:
            raise ValueError(f"image_std: {std} is not positive")
        factor = read["rescale_factor"] if flag(read, "do_rescale") else 1.0
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1e9:
            raise ValueError(f"rescale_factor: {factor!r} is not a positive number")
        found = cls(
            512, False, mean, std, mobilevit and flag(read, "do_flip_channel_order"), float(factor)
        )
        return found._with_sizes(kind, read) if sizes else found

    def _with_sizes(self, kind: str, read: Mapping[str, Any]) -> "Preprocess":
        if kind in _OF_TORCHVISION:
            raise ValueError(
                f"image_processor_type: {kind} needs torchvision, whose pixels differ from those "
                "of Pillow: it is not supported. Train the network first (model.name)"
            )
        resizing = Resizing.read(read, dpt=kind == "DPTImageProcessor")
        if kind in _CROPS and flag(read, "do_center_crop"):
            crop = read_size("crop_size", read["crop_size"], square=True)
            if dict(resizing.sides) != crop:
                raise ValueError(
                    "do_center_crop: true is not supported: what is cropped away is in no mask. "
                    "Set it to false in a copy of the folder"
                )
        divisor = read.get("size_divisor")
        if kind == "DPTImageProcessor" and flag(read, "do_pad") and divisor not in (None, 1):
            raise ValueError(
                "do_pad: true with a size_divisor is not supported: transformers would stretch the "
                "padding into the mask. Set do_pad to false in a copy of the folder, and "
                "ensure_multiple_of to the size_divisor"
            )
        resample = read["resample"]
        if isinstance(resample, bool) or resample not in list(Image.Resampling):
            raise ValueError(f"resample: {resample!r} is not the number of a filter of Pillow")
        side = resizing.square or resizing.side or self.input_size
        return replace(
            self,
            input_size=side,
            keep_ratio=flag(read, "keep_ratio"),
            resample=int(resample),
            resizing=None if resizing.square else resizing,
        )


def _kind(given: Mapping[str, Any], default: str) -> str:
    """Return the name of the processor's class, in its form of today."""
    named = given.get("image_processor_type") or given.get("feature_extractor_type") or default
    kind = str(named).replace("FeatureExtractor", "ImageProcessor")
    kind = kind.removesuffix("Pil").removesuffix("Fast")
    if kind not in _DEFAULTS:
        raise ValueError(
            f"image_processor_type: {named} is not supported; known are {', '.join(_DEFAULTS)}"
        )
    return kind


def _three(key: str, value: Any) -> _Triple:
    """Return a number for each channel; a single one is for all of them."""
    values = [value] * 3 if isinstance(value, (int, float)) else value
    if (
        not isinstance(values, (list, tuple))
        or len(values) != 3
        or not all(isinstance(one, (int, float)) and abs(one) < 1e30 for one in values)
    ):
        raise ValueError(f"{key}: {value!r} is not a finite number for each of 3 channels")
    return values[0], values[1], values[2]


class Normalize(nn.Module):
    """Turns uint8 RGB images into the network's input.

    Mean and standard deviation are buffers: they move to a device once, with the layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self._blue_first = preprocess.blue_first
        self._rescale = preprocess.rescale
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BhwC: Tensor) -> Tensor:
        """Turn uint8, shape (B, h, w, 3), into float32, shape (B, 3, h, w)."""
        if self._blue_first:
            images_BhwC = images_BhwC.flip(3)
        # Contiguous first: channels that lie three apart cost each step more than this copy.
        images = images_BhwC.permute(0, 3, 1, 2).to(
            torch.float32, memory_format=torch.contiguous_format
        )
        usual = self._rescale == 1 / 255
        images = images.div_(255) if usual else images.mul_(self._rescale)
        return images.sub_(self.mean).div_(self.std)


class HostNormalizer:
    """Does what `Normalize` does, by NumPy in one thread: beside a network on the CPU.

    Each channel goes through a table of the 256 numbers that `Normalize` makes of it: the same
    bits, in a fifth of the time.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        every = torch.arange(256, dtype=torch.uint8).view(1, 1, 256, 1).expand(1, 1, 256, 3)
        self._tables = preprocess.normalizer()(every)[0, :, 0].numpy()
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
