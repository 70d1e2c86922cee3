"""The fake CUDA device, in a child process that runs the cases of the tests.

The device must be registered before torch is imported, so the tests' own process cannot have it.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Seen:
    """What a case launched and copied; each text names a source line and an operator."""

    to_host: list[str]
    """Copies from the device to the host."""
    waits: list[str]
    """The blocking ones among them."""
    blocking: list[str]
    """Blocking copies from the host to the device."""
    launches: list[tuple[str, str, int]]
    """Operator, source line and number of kernels."""

    @property
    def kernels(self) -> int:
        return sum(many for _, _, many in self.launches)


class Child:
    """Starts the child process for the first case, and again after a case that killed it."""

    def __init__(self, guard: Path) -> None:
        self._guard = guard
        self._process: subprocess.Popen[str] | None = None
        self._seen: dict[str, Seen | str] = {}

    def count(self, name: str, **settings: Any) -> Seen:
        """Run a case of `cases.py` once and return its counts; if it fails, so does the test."""
        asked = json.dumps([name, settings], sort_keys=True)
        if asked not in self._seen:
            self._seen[asked] = self._ask(asked)
        seen = self._seen[asked]
        if isinstance(seen, str):
            pytest.fail(f"{name} {settings} failed on the fake device:\n{seen}", pytrace=False)
        return seen

    def _ask(self, asked: str) -> Seen | str:
        if self._process is None:
            self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the child
            self._process = subprocess.Popen(
                [sys.executable, str(FOLDER / "child.py"), str(self._guard)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(asked + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return self.end()
        content = json.loads(answer)
        if "failure" in content:
            return str(content["failure"])
        return Seen(
            to_host=[_line(copy) for copy in content["to_host"]],
            waits=[_line(copy) for copy in content["to_host"] if copy["blocking"]],
            blocking=[_line(copy) for copy in content["to_device"] if copy["blocking"]],
            launches=[tuple(one) for one in content["launches"]],
        )

    def end(self) -> str:
        """End the child; return what it wrote to its stderr."""
        if self._process is None:
            return ""
        self._process.communicate()
        self._errors.seek(0)
        told = f"exit code {self._process.returncode}\n{self._errors.read()[-4000:]}"
        self._errors.close()
        self._process = None
        return told


def _line(copy: dict[str, Any]) -> str:
    return f"{copy['where']} [{copy['op']} of {tuple(copy['shape'])}]"


def _device_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fake_cuda_device", FOLDER / "device.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """The child process; it starts with the first case."""
    if torch.backends.cuda.is_built():
        pytest.skip("the fake CUDA device requires PyTorch's CPU build; this build has CUDA")
    device = _device_module()
    if device.compiler() is None:
        pytest.skip(f"the fake CUDA device requires a C++ compiler: {', '.join(device.COMPILERS)}")
    started = Child(device.compile_guard(tmp_path_factory.mktemp("fake_cuda")))
    yield started
    started.end()


@pytest.fixture(scope="session")
def count(child: Child) -> Callable[..., Seen]:
    """Count the kernels and copies of a case: ``count("training_step", batch=2) → Seen``."""
    return child.count
