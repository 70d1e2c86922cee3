"""`cocoseg prepare`, as an API call in this process and as a command."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig

from .data import DataSet


def config(data: DataSet, output: Path) -> PrepareConfig:
    """Return the settings for one data set: all defaults, but in one process."""
    return PrepareConfig(
        annotations=(str(data.annotations),),
        images=(str(data.images),),
        output=str(output),
        engine="inline",
    )


def build(data: DataSet, output: Path) -> None:
    """Build the shards of a data set; every image must be in them."""
    result = prepare_shards(config(data, output))
    assert result.manifest.samples == data.count, result.quarantined[:3]


def command(data: DataSet, output: Path, *more: str) -> list[str | Path]:
    """Return the command for one data set."""
    inputs: list[str | Path] = ["--annotations", data.annotations, "--images", data.images]
    return [sys.executable, "-m", "cocoseg", "prepare", *inputs, "--output", output, *more]


def role(command_line: str, depth: int) -> str:
    """Name a process below the command: it starts a fork server, and that the workers."""
    if depth == 0:
        return "main"
    if "resource_tracker" in command_line:
        return "resource tracker"
    return "fork server" if depth == 1 else "worker"


SPY = """
import os, sys
def _spy(event, arguments, seen=set()):
    if event == "import" and (name := arguments[0].partition(".")[0]) in {heavy} - seen:
        seen.add(name)
        with open({log!r}, "a") as file:
            file.write(f"{{os.getpid()}} {{name}}\\n")
sys.addaudithook(_spy)
"""


def spied(folder: Path) -> tuple[dict[str, str], Callable[[], str]]:
    """Return an environment whose Pythons note each import of torch or webdataset, and the notes.

    An audit hook tells more than a look at `sys.modules` from outside could: it sees every process,
    from its start to its end.
    """
    folder.mkdir()
    log = folder / "imports.txt"
    (folder / "sitecustomize.py").write_text(
        SPY.format(heavy={"torch", "webdataset"}, log=str(log))
    )
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path}, lambda: log.read_text() if log.exists() else ""
