"""Which sizes of images a network can take."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, first_line
from .meta import meta_copy
from .preprocess import Preprocess


def check_input_size(
    network: nn.Module,
    input_size: int,
    name: str,
    setting: str = "model.input_size",
    *,
    width: int | None = None,
) -> None:
    """Refuse a size that the network cannot take, and name one that it can.

    Some are built for one size, others for multiples of their patches. Found by a forward without
    memory or computation; a SegFormer takes any size.

    Parameters
    ----------
    input_size
        Height of the inputs [pixels].
    width
        Of the inputs; None: they are squares.
    name, setting
        The network's, and what the size comes from, for the error.

    Raises
    ------
    ConfigError
        If the network fails at that size.
    """
    settings: Any = network.config
    if settings.model_type == "segformer":
        return
    probe: Any = meta_copy(network).eval()
    trouble = _trouble(probe, input_size, width)
    if trouble is None:
        return
    sizes = sorted(
        {size for size in _candidates(settings, input_size) if not _trouble(probe, size)}
    )
    if not sizes:  # nothing can be said without running it
        return
    wanted = " or ".join(str(size) for size in sizes)
    told = f"{input_size}" if width in (None, input_size) else f"{width} × {input_size}"
    raise ConfigError(
        f"{setting} {told}: {name} is a {settings.model_type}, which cannot take it "
        f"({trouble}): use {wanted}"
    )


def check_sizes(
    network: nn.Module, preprocess: Preprocess, name: str, scales: Iterable[float] = (1.0,)
) -> None:
    """Refuse a processor's size that the network cannot take, at each scale of views.

    Raises
    ------
    ConfigError
        See `check_input_size`. Inputs of the images' own sizes are not checked.
    """
    if preprocess.resizing is not None and not preprocess.resizing.sides:
        return
    side = preprocess.input_size
    for scale in scales:
        width, height = preprocess.target_size(side, side, scale)
        setting = "model.input_size" if scale == 1 else f"infer.tta_scales {scale:g}, an input of"
        check_input_size(network, height, name, setting, width=width)


def _trouble(probe: Any, size: int, width: int | None = None) -> str | None:
    """Return what a forward at that size fails of."""
    pixels = torch.empty(1, 3, size, width or size, device="meta")
    try:
        with torch.no_grad():
            logits = probe(pixel_values=pixels).logits
        if logits.shape[:2] != (1, probe.config.num_labels):
            return f"its logits have shape {tuple(logits.shape)}"
    except Exception as error:  # whatever a network fails of
        return first_line(error)
    return None


def _candidates(settings: Any, size: int) -> Iterator[int]:
    """Return sizes near to the wanted one that are likelier, first of all what it was built for."""
    for part in (settings, getattr(settings, "backbone_config", None)):
        built_for = getattr(part, "image_size", None)
        if isinstance(built_for, (list, tuple)):
            built_for = built_for[0]
        if isinstance(built_for, int):
            yield built_for
    for step in (32, 14):
        yield max(1, size // step) * step
        yield -(-size // step) * step
