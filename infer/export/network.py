"""What is exported: a network with its normalization before it and, if wanted, the mask after it.

Beside it the reference that every export is compared with: transformers' own network.
"""

# B batch, C classes, H W pixels of the input, h w of the logits

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoint.network import LoadedNetwork
from ...model.preprocess import resize_logits
from .config import ExportConfig


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of an exported graph."""

    name: str
    dtype: str
    axes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype} ({', '.join(self.axes)})"


INPUTS = {
    "uint8": Port("image", "uint8", ("batch", "height", "width", "3")),
    "float32": Port("pixel_values", "float32", ("batch", "3", "height", "width")),
}


def output_port(config: ExportConfig, num_classes: int) -> Port:
    """Return the output that ``export.output_type`` means."""
    if config.output_type == "mask":
        dtype = "uint8" if num_classes <= 256 else "int32"  # what both runtimes have
        return Port("mask", dtype, ("batch", "height", "width"))
    axes = ("batch", str(num_classes), "logits_height", "logits_width")
    return Port("logits", "float32", axes)


class ExportedNetwork(nn.Module):
    """The forward that is traced.

    Parameters
    ----------
    loaded
        The network, float32, in eval mode.
    normalizes
        Whether it takes uint8 RGB, shape (B, H, W, 3); else float32, shape (B, 3, H, W).
    to_mask
        Whether it gives train ids, shape (B, H, W); else logits, float32, shape (B, C, h, w).
    """

    def __init__(self, loaded: LoadedNetwork, *, normalizes: bool, to_mask: bool) -> None:
        super().__init__()
        self.network = loaded.network
        self.normalize = loaded.preprocess.normalizer() if normalizes else None
        self.ids = None
        if to_mask:
            self.ids = torch.uint8 if loaded.taxonomy.num_classes <= 256 else torch.int32

    @classmethod
    def of(cls, loaded: LoadedNetwork, config: ExportConfig) -> "ExportedNetwork":
        """Return the forward that the settings mean."""
        normalizes, to_mask = config.input_type == "uint8", config.output_type == "mask"
        return cls(loaded, normalizes=normalizes, to_mask=to_mask).eval()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits or train ids."""
        height, width = image.shape[2:] if self.normalize is None else image.shape[1:3]
        pixel_values = image if self.normalize is None else self.normalize(image)
        logits: Tensor = self.network(pixel_values=pixel_values).logits
        if self.ids is None:
            return logits
        return resize_logits(logits, height, width).argmax(1).to(self.ids)


class Reference:
    """Logits of transformers' own network, without any faster layer of ours.

    Parameters
    ----------
    loaded
        Whose weights are shared.
    """

    def __init__(self, loaded: LoadedNetwork) -> None:
        network: Any = loaded.network
        self._network = type(network)(network.config).eval()
        self._network.load_state_dict(network.state_dict(), assign=True)
        self._normalize = loaded.preprocess.normalizer()

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Return float32, shape (B, C, h, w), of uint8 RGB images, shape (B, H, W, 3)."""
        out: Tensor = self._network(pixel_values=self._normalize(images)).logits
        return out


def trial_images(batch: int, height: int, width: int) -> Tensor:
    """Return soft blobs with some noise, the same each time: uint8, shape (B, H, W, 3)."""
    generator = torch.Generator().manual_seed(batch * 10_007 + height * 101 + width)
    shape = (batch, 3, height // 16 + 2, width // 16 + 2)
    blobs = torch.randint(0, 256, shape, generator=generator).float()
    noise = torch.randint(-8, 9, (batch, 3, height, width), generator=generator)
    pixels = (resize_logits(blobs, height, width) + noise).clamp(0, 255)
    return pixels.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def trial_shapes(input_size: int, *, any_size: bool) -> Sequence[tuple[int, int, int]]:
    """Return the (batch, height, width) that an export is tried at: 3 sizes where any will do."""
    side = input_size
    sizes = [(side, side)]
    if any_size:
        sizes += [(max(64, side * 3 // 4), side + 32), (max(64, side // 2) + 5, side + 3)]
    return [(batch, height, width) for height, width in sizes for batch in (1, 2)]
