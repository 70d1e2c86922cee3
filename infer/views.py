"""Test-time augmentation: the views of an image whose probabilities are averaged."""

from ..model.view import View
from .config import InferConfig


def views_of(config: InferConfig) -> list[View]:
    """Return every scale, each as it is and mirrored as ``tta_flip`` and ``tta_flip_vertical`` say.

    Without ``use_tta``: the plain view alone.
    """
    if not config.use_tta:
        return [View()]
    return [
        View(scale, flip, vertical)
        for scale in config.tta_scales
        for vertical in ((False, True) if config.tta_flip_vertical else (False,))
        for flip in ((False, True) if config.tta_flip else (False,))
    ]
