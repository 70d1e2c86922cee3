"""A view: one way to look at an image, and how to look back."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class View:
    """A scale and two mirrorings, each its own inverse.

    The scale is inverted where logits are brought to the image's size, see `fuse`.
    """

    scale: float = 1.0
    """Factor of the input size."""
    flip: bool = False
    """Left and right are exchanged."""
    flip_vertical: bool = False
    """Top and bottom are exchanged."""

    def mirror(self, tensor: Tensor, height_dim: int, width_dim: int) -> Tensor:
        """Mirror a batch before the network, or its logits after it."""
        dims = [width_dim] * self.flip + [height_dim] * self.flip_vertical
        return tensor.flip(dims) if dims else tensor
