"""A lone file of weights: what is unpickled of it, and where in it the network's weights are.

Training programs save more than weights, wrap them in modules, and keep averages beside them.
"""

import argparse
import io
import logging
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from ..errors import DataError, first_line
from ..processes import of_leader
from ..storage import locate
from .published import is_segformer

log = logging.getLogger(__name__)
log.addFilter(of_leader)

_PLAIN_KEYS = ("model", "model_state_dict", "state_dict", "module", "network", "net", "weights")
_AVERAGED_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys of a file under which weights lie, or another level of such keys; in this order."""
_DEEPEST = 4  # levels of keys; more has not been seen

_PLAIN_PREFIXES = frozenset({"model", "net", "network", "online_model"})
_AVERAGED_PREFIXES = frozenset({"ema", "ema_model", "model_ema", "averaged_model"})
_PREFIXES = _PLAIN_PREFIXES | _AVERAGED_PREFIXES | {"module"}
_INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Parts that `torch.compile` and FSDP insert anywhere into names."""
_OF_TRAINING = re.compile(r"loss|criterion|metric")
"""In the first part of a name: weights of a loss or states of a metric, and not of a network."""


class _Ignored:
    """Takes the place of a harmless object in a pickle: nothing of it is kept or called."""

    def __init__(self, *_arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
_HARMLESS = (
    f"{argparse.__name__}.Namespace",
    *(f"{module}.{name}" for module in (pathlib.__name__, "pathlib._local") for name in _PATHS),
    # numpy scalars, as NumPy 1 and 2 pickle them
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
)
"""Classes beside PyTorch's own that a pickle may name; an `_Ignored` stands for each."""


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """Read a file of weights, whatever wraps them.

    Weights lie at the top of the file or under one of the usual keys (``state_dict``, ``model`` …);
    the prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``, ``net.``, ``ema.`` …) are
    removed from their names. Of plain and averaged weights (EMA) the averaged ones are read, as
    they are what training programs score; if they are incomplete, the plain ones. It is logged.

    Returns
    -------
    dict
        Name → dense tensor on the CPU. What is neither the network's nor known to belong to the
        training alone (losses, metrics, counters) stays in it, under its full name.

    Raises
    ------
    DataError
        If it cannot be read, would have to unpickle another class than tensors and harmless ones,
        or holds no weights.
    """
    found = list(_states(_content(path)))
    networks = [
        network
        for averaged, weights in found
        for network in _networks(path, _checked(path, weights), averaged=averaged)
    ]
    if not networks:
        raise DataError(
            f"{path}: contains no weights: expected tensors by name, at the top or under "
            f"{', '.join(_PLAIN_KEYS)}"
        )
    chosen = _choose(path, networks)
    weights = dict(chosen.weights)
    for other in networks:
        if not other.is_copy_of(chosen):  # refused later on, as they are left over
            weights.update({other.prefix + name: one for name, one in other.weights.items()})
        elif other.averaged is chosen.averaged and other.differs_from(chosen):
            raise DataError(
                f"{path}: contains several networks, under {other.prefix or 'no prefix'} and "
                f"{chosen.prefix or 'no prefix'}: save the weights of one of them alone"
            )
    return weights


class _Network:
    """Weights of one state that share a prefix."""

    def __init__(self, prefix: str, *, averaged: bool) -> None:
        self.prefix = prefix
        self.averaged = averaged
        self.weights: dict[str, torch.Tensor] = {}

    def rank(self) -> tuple[bool, int]:
        """Return what puts a network before weights of a loss or of a metric."""
        return is_segformer(self.weights), len(self.weights)

    def is_copy_of(self, other: "_Network") -> bool:
        """Return whether it holds weights of the same names, or some of them."""
        names, theirs = self.weights.keys(), other.weights.keys()
        return names <= theirs or theirs <= names

    def differs_from(self, other: "_Network") -> bool:
        """Return whether any weight of the same name differs."""
        return any(
            name in other.weights and not torch.equal(value, other.weights[name])
            for name, value in self.weights.items()
        )


def _choose(path: str, networks: list[_Network]) -> _Network:
    plain, averaged = (
        max((one for one in networks if one.averaged is kind), key=_Network.rank, default=None)
        for kind in (False, True)
    )
    if plain is None or averaged is None:
        chosen = plain or averaged
        assert chosen is not None
        return chosen
    if averaged.weights.keys() < plain.weights.keys():
        log.warning("%s: its averaged weights (EMA) are incomplete: using the plain ones", path)
        return plain
    if averaged.rank() < plain.rank():
        return plain
    log.info("%s: contains plain and averaged weights (EMA): using the averaged ones", path)
    return averaged


def _content(path: str) -> object:
    try:
        stored = locate(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if path.endswith(".safetensors"):
        try:
            return safetensors.torch.load(stored)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise DataError(f"{path}: is not a safetensors file: {first_line(error)}") from None
    harmless: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        _Ignored,
        *((_Ignored, name) for name in _HARMLESS),
    ]
    try:
        with torch.serialization.safe_globals(harmless):
            return torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a hostile or broken file raises anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:  # PyTorch's first line would advise to unpickle everything
            found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
            detail = found[1].strip() if found else first_line(error)
            raise DataError(f"{path}: is not a file that torch.save wrote: {detail}") from None
        raise DataError(
            f"{path}: contains an object of {refused[1]}, which is not loaded, because unpickling "
            "it can run code. In the program that wrote the file, save the weights alone: "
            "torch.save(model.state_dict(), …)"
        ) from None


def _states(content: object) -> Iterator[tuple[bool, Mapping[str, object]]]:
    """Yield the plain and the averaged weights, at most one of each, as they were saved."""
    found: dict[bool, Mapping[str, object]] = {}
    seen: set[int] = set()

    def search(level: object, depth: int, averaged: bool) -> None:
        if not isinstance(level, Mapping) or id(level) in seen or depth > _DEEPEST:
            return
        seen.add(id(level))  # a pickle may contain itself
        before = len(found)
        # MMEngine's hook exchanges the two: its state_dict holds the averaged weights.
        averaged_keys = () if "message_hub" in level else _AVERAGED_KEYS
        for key in _PLAIN_KEYS:
            search(level.get(key), depth + 1, averaged)
        for key in averaged_keys:
            search(level.get(key), depth + 1, True)
        tensors = any(isinstance(value, torch.Tensor) for value in level.values())
        if len(found) == before and tensors and averaged not in found:
            found[averaged] = level

    search(content, 1, False)
    yield from found.items()


def _checked(path: str, state: Mapping[str, object]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state; counters and settings beside them are left out."""
    weights = {}
    underscored = {"ema_" + str(name).replace(".", "_") for name in state if "." in str(name)}
    for key, value in state.items():
        name = str(key)
        if "." not in name and (
            not isinstance(value, torch.Tensor)
            or value.ndim == 0  # n_averaged, num_updates …
            or name in underscored  # MMCV's hook keeps the other weights in buffers named like this
        ):
            continue
        if not isinstance(value, torch.Tensor):
            raise DataError(f"{path}: {name} is of type {type(value).__name__}, not a tensor")
        usual = value.layout == torch.strided and value.device.type == "cpu"
        if not usual or value.is_quantized or value.is_complex() or value.is_nested:
            raise DataError(
                f"{path}: {name} is not a dense tensor of real numbers (its type: {value.dtype}, "
                f"its layout: {value.layout})"
            )
        weights[name] = value
    return weights


def _networks(path: str, state: Mapping[str, torch.Tensor], *, averaged: bool) -> list[_Network]:
    """Group weights by the prefixes of their names, and remove these."""
    networks: dict[str, _Network] = {}
    for full, value in state.items():
        parts = [part for part in full.split(".") if part not in _INNER]
        start = next((i for i, part in enumerate(parts) if part not in _PREFIXES), len(parts) - 1)
        if _OF_TRAINING.search(parts[start].lower()):
            continue
        prefix = "".join(f"{part}." for part in parts[:start] if part != "module")
        kind = averaged or not _AVERAGED_PREFIXES.isdisjoint(parts[:start])
        network = networks.setdefault(prefix, _Network(prefix, averaged=kind))
        name = ".".join(parts[start:])
        if "." not in name and value.ndim == 0:  # n_averaged, behind a prefix
            continue
        if name in network.weights:
            raise DataError(f"{path}: contains {prefix}{name} twice, with different prefixes")
        network.weights[name] = value
    return list(networks.values())
