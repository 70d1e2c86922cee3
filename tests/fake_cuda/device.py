"""Start PyTorch's CPU build with a CUDA device that computes nothing.

Call `start` before the first ``import torch`` of a process. Tensors that are created inside
`fake_device` may be on ``cuda``: they have a shape, a dtype and a device, but no values.
"""

import contextlib
import ctypes
import importlib.util
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("guard.cpp")
COMPILERS = ("c++", "g++", "clang++")


def compiler() -> str | None:
    """Return the system's C++ compiler; None if there is none."""
    return next(filter(None, map(shutil.which, COMPILERS)), None)


def compile_guard(folder: Path) -> Path:
    """Compile guard.cpp against the installed torch, without importing it (4 s).

    Raises
    ------
    RuntimeError
        With the compiler's messages.
    """
    library, found, torch = folder / "guard.so", compiler(), _torch_folder()
    assert found is not None, f"none of {', '.join(COMPILERS)} is installed"
    include, lib = torch / "include", torch / "lib"
    command = [found, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", _SOURCE, "-o", library]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command += [f"-L{lib}", "-ltorch_cpu", "-lc10"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{found} cannot compile {_SOURCE.name}:\n{ran.stderr[-4000:]}")
    return library


def start(guard: Path) -> None:
    """Load the guard and torch, and replace functions that call the CUDA driver."""
    assert "torch" not in sys.modules, "the guard must be loaded before torch"
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(_torch_folder() / "lib" / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(guard), ctypes.RTLD_GLOBAL)
    _replace_driver()
    _replace_fake_tensors()


@contextlib.contextmanager
def fake_device() -> Iterator[None]:
    """Make all tensors fake; real ones (of NumPy arrays, say) become fake when they are used.

    Caches of cocoseg's modules (`functools.cache`) are cleared: fake tensors of one context cannot
    be used in another. Thread pools run each task immediately, in the calling thread: the fake
    mode does not extend to other threads.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, module in list(sys.modules.items()):
        if name.startswith("cocoseg."):
            for value in vars(module).values():
                getattr(value, "cache_clear", lambda: None)()
    submit = ThreadPoolExecutor.submit
    ThreadPoolExecutor.submit = _run_at_once
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        ThreadPoolExecutor.submit = submit


def _run_at_once(
    pool: ThreadPoolExecutor, task: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(task(*args, **kwargs))
    except Exception as error:
        future.set_exception(error)
    return future


def host_value(dtype: Any) -> bool | int | float:
    """Return what the host reads from a fake tensor: 0.0, 1 or True."""
    if dtype.is_floating_point:
        return 0.0  # 1.0 would mean to a gradient scaler that it found an infinity
    return True if str(dtype) == "torch.bool" else 1


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


class _Nothing:
    """Replaces streams and events: every method exists and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *args: object) -> None: ...


def _replace_driver() -> None:
    import torch

    answers = {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "fake CUDA device",
        "get_device_capability": (9, 0),
        "is_current_stream_capturing": False,
        "current_stream": _Nothing(),
        "default_stream": _Nothing(),
        "stream": contextlib.nullcontext(),
        "manual_seed": None,
        "manual_seed_all": None,
        "set_device": None,
        "empty_cache": None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    torch.cuda.synchronize = _refuse_to_wait
    torch.cuda.Stream = torch.cuda.Event = _Nothing


def _refuse_to_wait(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("torch.cuda.synchronize: the host waits for all kernels")


def _replace_fake_tensors() -> None:
    """Make fake tensors behave as tensors of a GPU where PyTorch's do not."""
    import numpy as np
    import torch
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from torch.optim.optimizer import _foreach_supported_types as of_optimizers
    from torch.utils._foreach_utils import _foreach_supported_types as of_utilities

    # `torch.tensor(…, device="cuda")` is then a tensor of the host and a copy, as on a GPU.
    FakeTensorMode.avoid_device_init = property(lambda mode: True)
    # The wrapper against torch.compile takes a third of the time.
    FakeTensorMode.__torch_dispatch__ = inspect.unwrap(FakeTensorMode.__torch_dispatch__)
    # Types for which optimizers launch one kernel for many tensors.
    of_optimizers.append(FakeTensor)
    of_utilities.append(FakeTensor)
    # PyTorch has no fake implementation of this operator, which returns nothing.
    torch.library.impl("aten::_fused_sgd_", "Meta", lambda *args, **kwargs: None)

    def numpy(tensor: FakeTensor, *, force: bool = False) -> np.ndarray[Any, Any]:
        host = tensor.cpu() if force else tensor
        if host.device.type != "cpu":
            raise TypeError(f"can't convert a tensor on {host.device} to numpy: use .cpu() first")
        dtype = np.dtype(str(host.dtype).removeprefix("torch."))
        return np.full(tuple(host.shape), host_value(host.dtype), dtype)

    def tolist(tensor: FakeTensor) -> Any:
        host = tensor.cpu()  # one transfer, as for a real tensor
        return np.full(tuple(host.shape), host_value(host.dtype)).tolist()

    def apply(module: torch.nn.Module, convert: Any, recurse: bool = True) -> torch.nn.Module:
        for child in module.children() if recurse else ():
            child._apply(convert)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = convert(parameter.detach())
                module._parameters[name] = torch.nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = convert(buffer)
        return module

    # PyTorch's own swaps a fake parameter and the moved one, which fails: it has weak references.
    torch.nn.Module._apply = apply
    FakeTensor.numpy = numpy
    FakeTensor.tolist = tolist
    FakeTensor.record_stream = lambda tensor, stream: None
