"""Count the kernels and copies of a program on the fake CUDA device."""

import functools
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
from torch._C import DispatchKey
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
_MACHINERY = {str(Path(__file__).with_name(name)) for name in ("counter.py", "device.py")}

_aten = torch.ops.aten
# Operators that launch nothing, in addition to views.
_NO_KERNEL = ("aten.empty", "aten.new_empty", "aten._unsafe_view", "aten.is_pinned", "aten.set_")
_STAGED = 2**16  # bytes; a driver may copy as many without waiting, whatever memory they are in
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy between host and device."""

    op: str
    where: str
    """``file:line: source`` of the innermost line of the repository that caused it."""
    shape: tuple[int, ...]
    blocking: bool
    """Whether ``non_blocking`` is absent, or much is copied from memory that is not page-locked."""


@dataclass(slots=True)
class Counted:
    """The result of a `Counter`."""

    to_host: list[Copy] = field(default_factory=list)
    """Device to host, blocking or not; `Tensor.tolist` and `Tensor.item` are one each."""
    to_device: list[Copy] = field(default_factory=list)
    """Host to device, blocking or not."""
    launches: Counts[tuple[str, str]] = field(default_factory=Counts)
    """Operators on the device that are neither views nor copies, by operator and line."""


class Counter(TorchDispatchMode):
    """Count every operator below autograd and autocast; enter it inside `device.fake_device`.

    Fake tensors have no values: where the host reads one, it gets `host_value`.

    Parameters
    ----------
    libraries
        Folders of packages outside the repository whose lines are reported too.
    backward
        Report kernels of the backward pass under the line of their forward pass; requires
        `torch.autograd.detect_anomaly`.
    """

    def __init__(self, libraries: Sequence[Path] = (), *, backward: bool = False) -> None:
        super().__init__()
        self.counted = Counted()
        self._libraries = tuple(libraries)
        self._backward = backward
        self._known: dict[CodeType, str | None] = {}
        self._page_locked: list[StorageWeakRef] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the wrapper against torch.compile doubles the cost of each call

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # most of all calls
            return args[0].fake_device
        if func is _aten._local_scalar_dense.default:
            return self._scalar(func, args[0])
        if func is _aten._pin_memory.default:  # not implemented for fake tensors
            self._note_page_locked(args[0])
            return args[0]
        if _is_composite(func):  # only inference mode passes them on whole
            with self:
                return func.decompose(*args, **kwargs)
        if func is _aten.native_batch_norm_backward.default and None in args[3:7]:
            raise AssertionError("batch_norm_backward_cuda: save_mean should always be defined")
        result = func(*args, **kwargs)
        if kwargs.get("pin_memory"):
            self._note_page_locked(result)
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
        except Exception:  # not a known constant: an optimizer's step, say; it divides by it
            return type(host_value(tensor.dtype))(1)

    def _devices(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> tuple[str, str]:
        """Return the device types that an operator reads from and writes to; "" is none."""
        if func in (_aten.copy_.default, _aten._foreach_copy_.default):
            return _device_of(args[1]), _device_of(args[0])
        target = _device_of(result) or _device_of((args, tuple(kwargs.values())))
        if func is _aten._to_copy.default:
            return _device_of(args[0]), target
        if str(func).startswith("aten.index"):
            # Indices on the host are copied to the device first; scalars travel with the kernel.
            on_host = (t.device.type == "cpu" and t.ndim > 0 for t in _tensors(args))
            return "cpu" if any(on_host) else target, target
        return target, target

    def _copy(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], source: str) -> None:
        non_blocking = kwargs.get("non_blocking", len(args) > 2 and args[2] is True)
        copies = self.counted.to_device if source == "cpu" else self.counted.to_host
        first = next(_tensors(args))
        pageable = source == "cpu" and any(map(self._is_pageable, _tensors(args)))
        waits = pageable or not non_blocking
        copies.append(Copy(str(func), self._where(), tuple(first.shape), waits))

    def _note_page_locked(self, tensor: Tensor) -> None:
        self._page_locked.append(StorageWeakRef(tensor.untyped_storage()))

    def _is_pageable(self, tensor: Tensor) -> bool:
        """Return whether a tensor of the host is too large to be copied without waiting."""
        if tensor.device.type != "cpu" or tensor.nbytes <= _STAGED:
            return False
        return StorageWeakRef(tensor.untyped_storage()) not in self._page_locked

    def _where(self) -> str:
        frame: Any = sys._getframe(1)
        while frame is not None:
            name = self._name(frame.f_code)
            if name is not None:
                return _line(frame.f_code.co_filename, name, frame.f_lineno)
            frame = frame.f_back
        return self._where_forward() if self._backward else "(backward)"

    def _where_forward(self) -> str:
        """Return the forward line of the running backward node; its thread has no Python frames."""
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
        """Return the reported name of a file; None if its lines are not reported."""
        for folder in self._libraries:
            if file.startswith(f"{folder}/"):
                return file.removeprefix(f"{folder.parent}/")
        if file in _MACHINERY or not file.startswith(f"{ROOT}/") or "/site-packages/" in file:
            return None
        return file.removeprefix(f"{ROOT}/")


@functools.cache
def _is_composite(func: Any) -> bool:
    """Return whether an operator consists of others and launches nothing itself."""
    return bool(func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _device_of(value: Any) -> str:
    """Return the device type of the first tensor; "" without tensors."""
    return next((tensor.device.type for tensor in _tensors(value)), "")


def _line(file: str, name: str, number: int) -> str:
    return f"{name}:{number}: {linecache.getline(file, number).strip()}"
