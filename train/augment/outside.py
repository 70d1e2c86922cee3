"""What lies outside an image."""

from ...model.preprocess import IMAGENET_MEAN

COLOR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)
"""RGB that normalization makes 0; the mask has the ignore index there."""
