"""Count what a program makes a GPU do, on the fake CUDA device."""

import linecache
import re
import sys
from collections import Counter as Counts
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from device import host_value
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
_MACHINERY = {str(Path(__file__).with_name(name)) for name in ("counter.py", "device.py")}

_aten = torch.ops.aten
# Beside views: operators that launch nothing.
_NO_KERNEL = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.is_pinned", "aten.set_")
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy between host and device."""

    op: str
    where: str
    """``file:line: source`` of the innermost line of the repository that caused it."""
    shape: tuple[int, ...]
    blocking: bool
    """Whether it was asked for without ``non_blocking``. Pinned memory cannot be seen here."""


@dataclass(slots=True)
class Counted:
    """What was seen."""

    to_host: list[Copy] = field(default_factory=list)
    """Device to host, blocking or not; one for each `Tensor.tolist` and `Tensor.item`."""
    to_device: list[Copy] = field(default_factory=list)
    """Host to device, blocking or not."""
    launches: Counts[tuple[str, str]] = field(default_factory=Counts)
    """Operators on the device that are neither views nor copies, by operator and line."""


class Counter(TorchDispatchMode):
    """Watch every operator below autograd and autocast; enter it under `device.fake_device`.

    Where the host reads a number, which a fake tensor has not, it gets `host_value`.

    Parameters
    ----------
    libraries
        Folders outside the repository whose lines are named too, such as that of transformers.
    backward
        Name the line of the forward pass for what its backward pass launches; needs
        `torch.autograd.detect_anomaly`.
    """

    def __init__(self, libraries: Sequence[Path] = (), *, backward: bool = False) -> None:
        super().__init__()
        self.counted = Counted()
        self._libraries = tuple(libraries)
        self._backward = backward
        self._known: dict[CodeType, str | None] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else each call costs as much again

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # 9 of 10 calls
            return args[0].fake_device
        if func is _aten._local_scalar_dense.default:
            return self._scalar(func, args[0])
        if func is _aten._pin_memory.default:  # fake tensors lack it
            return args[0]
        with self:
            parts = func.decompose(*args, **kwargs)
        if parts is not NotImplemented:  # composite, as operators come in inference mode
            return parts
        result = func(*args, **kwargs)
        source, target = self._devices(func, args, kwargs, result)
        if {source, target} == {"cpu", "cuda"}:
            self._copy(func, args, kwargs, source)
        elif target == "cuda" and not (func.is_view or str(func).startswith(_NO_KERNEL)):
            self.counted.launches[str(func), self._where()] += 1
        return result

    def _scalar(self, func: Any, tensor: Tensor) -> Any:
        if tensor.device.type == "cuda":
            self.counted.to_host.append(Copy(str(func), self._where(), (), True))
            return host_value(tensor.dtype)
        try:
            return func(tensor)
        except Exception:  # not a constant, such as an optimizer's step, by which it divides
            return type(host_value(tensor.dtype))(1)

    def _devices(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> tuple[str, str]:
        """Return the types of the devices that are read from and written to."""
        if func is _aten.copy_.default:
            return args[1].device.type, args[0].device.type
        tensors = [one for one in _flat((args, kwargs.values())) if isinstance(one, Tensor)]
        targets = [one for one in _flat((result,)) if isinstance(one, Tensor)] or tensors
        target = next((one.device.type for one in targets), "")
        if func is _aten._to_copy.default:
            return args[0].device.type, target
        if str(func).startswith("aten.index"):
            # Indices on the host are copied first. Numbers (0-d) go with the kernel.
            return "cpu" if any(
                t.device.type == "cpu" and t.ndim for t in tensors
            ) else target, target
        return target, target

    def _copy(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], source: str) -> None:
        asked = kwargs.get("non_blocking", len(args) > 2 and args[2] is True)
        copies = self.counted.to_device if source == "cpu" else self.counted.to_host
        copies.append(Copy(str(func), self._where(), tuple(args[0].shape), not asked))

    def _where(self) -> str:
        frame: Any = sys._getframe(1)
        while frame is not None:
            name = self._name(frame.f_code)
            if name is not None:
                return _line(frame.f_code.co_filename, name, frame.f_lineno)
            frame = frame.f_back
        return self._where_forward() if self._backward else "(backward)"

    def _where_forward(self) -> str:
        """Name the line whose backward pass runs, in a thread of autograd's that has no frame."""
        node = torch._C._current_autograd_node()
        for entry in reversed(node.metadata.get("traceback_", ()) if node is not None else ()):
            found = _FRAME.search(entry)
            name = found and self._file(found["file"])
            if found and name:
                return f"(backward) {_line(found['file'], name, int(found['line']))}"
        return f"(backward) {node.name() if node is not None else ''}"

    def _name(self, code: CodeType) -> str | None:
        if code not in self._known:
            self._known[code] = self._file(code.co_filename)
        return self._known[code]

    def _file(self, file: str) -> str | None:
        """Return how a file is named; None if it is not of interest."""
        for folder in self._libraries:
            if file.startswith(f"{folder}/"):
                return file.removeprefix(f"{folder.parent}/")
        if file in _MACHINERY or not file.startswith(f"{ROOT}/") or "/site-packages/" in file:
            return None
        return file.removeprefix(f"{ROOT}/")


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _line(file: str, name: str, number: int) -> str:
    return f"{name}:{number}: {linecache.getline(file, number).strip()}"
