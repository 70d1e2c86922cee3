"""Checks of ``cocoseg doctor`` on libraries: versions, and whether they can be imported.

Nothing heavy is imported here: what cannot be imported is what is looked for.
"""

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator

from .finding import Finding, ok, problem, warning

_DISTRIBUTION = "cocoseg"
_SLOW_IMPORT = 60  # seconds; 15 on a slow disk

# Imported one after the other in a process of its own: a broken library may end it by a signal.
_IMPORTS = (
    *("numpy", "PIL.Image", "cv2", "simplejpeg", "pycocotools.mask", "torch"),
    *("transformers", "albumentations", "torch.utils.tensorboard"),
    *("cocoseg.train.batches", "cocoseg.checkpoint.network"),
)
_TRY_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, flush=True)
    importlib.import_module(name)
print("done", flush=True)
"""


def python() -> Iterator[Finding]:
    """Python's version against the one that the package asks for."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    text = f"{version} on {platform.system()} {platform.machine()}"
    wanted = importlib.metadata.metadata(_DISTRIBUTION)["Requires-Python"]
    if SpecifierSet(wanted or "").contains(version, prereleases=True):
        yield ok(text)
    else:
        yield problem(f"{text}; needed is {wanted}", "make an environment with a newer Python")


def versions() -> Iterator[Finding]:
    """Compare installed libraries with the ranges in the package's metadata."""
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion

    fine = []
    for text in importlib.metadata.requires(_DISTRIBUTION) or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        name = wanted.name
        install = f"pip install '{name}{wanted.specifier}'"
        version = _installed(name)
        if version is None and name == "opencv-python-headless":
            version = next(filter(None, map(_installed, ("opencv-python", "opencv"))), None)
        if version is None:
            yield problem(f"{name} is not installed", install)
            continue
        try:
            fits = wanted.specifier.contains(version, prereleases=True)
        except InvalidVersion:  # raised by old releases of packaging alone
            fits = False
        if fits:
            fine.append(f"{name} {version}")
        else:
            yield problem(f"{name} {version} is outside {wanted.specifier}", install)
    told = ("torch ", "transformers ", "albumentations ", "numpy ", "pillow ", "opencv")
    main = ", ".join(text for text in fine if text.startswith(told))
    yield ok(f"{len(fine)} libraries in their ranges: {main}")
    both = [name for name in ("opencv-python", "opencv-python-headless") if _installed(name)]
    if len(both) == 2:
        yield warning(
            "opencv-python and opencv-python-headless are both installed, over each other",
            "pip uninstall opencv-python opencv-python-headless; then install the second again",
        )


def torchvision() -> Iterator[Finding]:
    """Find a torchvision of another torch: transformers imports whichever there is."""
    from packaging.requirements import Requirement

    version = _installed("torchvision")
    if version is None:
        yield ok("not installed, and not needed")
        return
    torch = _installed("torch") or "none"
    for text in importlib.metadata.requires("torchvision") or ():
        wanted = Requirement(text)
        if wanted.name == "torch" and not wanted.specifier.contains(torch, prereleases=True):
            yield problem(
                f"torchvision {version} requires torch{wanted.specifier}, installed is torch "
                f"{torch}: "
                "transformers fails to import beside it",
                "pip uninstall torchvision; cocoseg does not need it",
            )
            return
    builds = [text.partition("+")[2] for text in (version, torch)]
    if all(builds) and builds[0] != builds[1]:
        yield problem(
            f"torchvision {version} and torch {torch} are of different builds",
            "pip uninstall torchvision; cocoseg does not need it",
        )
        return
    yield ok(f"{version} fits torch {torch}; not needed")


def imports() -> Iterator[Finding]:
    """Import every library in another process, and name the one that fails."""
    names = [*_IMPORTS, *(["torchvision"] if _installed("torchvision") else [])]
    try:
        ran = subprocess.run(  # noqa: S603 - this Python, our own lines
            [sys.executable, "-P", "-c", _TRY_IMPORTS, *names],
            capture_output=True,
            text=True,
            timeout=10 * _SLOW_IMPORT,
            env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
        )
    except subprocess.TimeoutExpired as slow:
        last = (slow.stdout or b"").decode().split()[-1:]
        yield problem(
            f"importing {''.join(last)} takes minutes", "install into a folder on a local disk"
        )
        return
    reached = ran.stdout.split()
    if reached[-1:] == ["done"]:
        yield ok(f"{len(names)} libraries can be imported")
        return
    why = (ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"])[-1]
    if ran.returncode < 0:
        why = f"the process is killed by {signal.Signals(-ran.returncode).name}"
    culprit = reached[-1] if reached else "Python"
    yield problem(
        f"import {culprit}: {why}", "install that library again, in an environment of its own"
    )


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
