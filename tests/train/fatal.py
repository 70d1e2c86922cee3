"""The command line of cocoseg, which is killed or signalled at named moments; product code has no
hooks.

    torchrun … fatal.py MARKS train --shards …

MARKS/plan.json lists what is to happen, one after the other: [[point, rank, call, act], …]. The
process of that rank that comes to the point for the call-th time since its start writes
MARKS/INDEX.json, and acts: kills itself, or sends a signal to itself or to its launcher. A killed
process is started again by somebody else, and minds the next one.
"""

import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

TRAINER, CHECKPOINT = "cocoseg.train.trainer", "cocoseg.checkpoint.save"
LOCAL = "cocoseg.storage.local:LocalPath"


class Point(NamedTuple):
    """A moment: before or after a call of a function (with such arguments)."""

    owner: str
    """``module:class``"""
    function: str
    after: bool = False
    where: str = ""
    """What its arguments, one after the other, must match."""
    ranks: tuple[int, ...] = (0, 1)
    half: str = ""
    """What is left half-written: ``state`` or ``line``."""
    once: bool = False
    """Whether a process comes by only once, at its start."""


WRITER = (0,)  # writes files, alone
FINAL = r"\.tmp-\S+ \S+/checkpoints/step-\d+$"
DIGESTS = r"digests\.json "
POINTS = {
    # at the start
    "tidy-up": Point(LOCAL, "remove_half_written", where="/run$", ranks=WRITER, once=True),
    "verifying": Point(LOCAL, "read_json", where=r"digests\.json$", once=True),
    "verified": Point("torch", "load", after=True, where=r"training_state\.pt", once=True),
    "prepare-network": Point(TRAINER, "prepare_network", once=True),
    "network-prepared": Point(TRAINER, "prepare_network", after=True, once=True),
    "open-journal": Point(LOCAL, "exists", where=r"metrics\.jsonl$", ranks=WRITER, once=True),
    "journal-open": Point(TRAINER, "RunLog", after=True, ranks=WRITER, once=True),
    # in a step
    "step": Point(f"{TRAINER}:Trainer", "step"),
    "forward": Point("cocoseg.train.step:TrainingStep", "_backward"),
    "backward-done": Point("cocoseg.train.step:TrainingStep", "_backward", after=True),
    "optimizer": Point("torch.amp:GradScaler", "step"),
    "optimizer-done": Point("torch.amp:GradScaler", "step", after=True),
    "step-done": Point(f"{TRAINER}:Trainer", "step", after=True),
    "line": Point("cocoseg.train.run_log:RunLog", "write", ranks=WRITER),
    "half-a-line": Point("cocoseg.train.run_log:RunLog", "write", ranks=WRITER, half="line"),
    "line-written": Point("cocoseg.train.run_log:RunLog", "write", after=True, ranks=WRITER),
    # in validation
    "validation": Point(TRAINER, "validate"),
    "predicted": Point("cocoseg.model.score", "confusion_counts", after=True),
    "validated": Point(TRAINER, "validate", after=True),
    "save": Point(f"{TRAINER}:Trainer", "save"),
    # while saving
    "scratch": Point(LOCAL, "scratch_folder", where="checkpoints$", ranks=WRITER),
    "weights": Point("transformers.modeling_utils", "safe_save_file", ranks=WRITER),
    "weights-written": Point(CHECKPOINT, "save_network", after=True, ranks=WRITER),
    "half-a-state": Point("torch", "save", ranks=WRITER, half="state"),
    "state-written": Point("torch", "save", after=True, ranks=WRITER),
    "digests": Point("pathlib:Path", "write_text", where=DIGESTS, ranks=WRITER),
    "digests-written": Point("pathlib:Path", "write_text", after=True, where=DIGESTS, ranks=WRITER),
    "sync": Point("cocoseg.storage.local", "sync_file", where="step-", ranks=WRITER),
    "rename": Point("os", "replace", where=FINAL, ranks=WRITER),
    "renamed": Point("os", "replace", after=True, where=FINAL, ranks=WRITER),
    "last": Point(CHECKPOINT, "point", ranks=WRITER),
    "last-half-moved": Point("os", "symlink", after=True, ranks=WRITER),
    "last-moved": Point(CHECKPOINT, "point", after=True, ranks=WRITER),
    "saved": Point(TRAINER, "save_checkpoint", after=True, ranks=WRITER),
    "best": Point(TRAINER, "point", ranks=WRITER),
    "best-moved": Point(TRAINER, "point", after=True, ranks=WRITER),
    "prune": Point("cocoseg.train.pruning", "prune", ranks=WRITER),
    "remove": Point("os", "replace", where="/removed$", ranks=WRITER),
    "half-removed": Point("os", "replace", after=True, where="/removed$", ranks=WRITER),
    "pruned": Point("cocoseg.train.pruning", "prune", after=True, ranks=WRITER),
    "publish-journal": Point("cocoseg.train.run_log:RunLog", "flush", ranks=WRITER),
    "save-done": Point(f"{TRAINER}:Trainer", "save", after=True),
}


class Plan:
    """What is to happen, and what has."""

    def __init__(self, marks: Path) -> None:
        self.marks = marks
        self.listed = json.loads((marks / "plan.json").read_text())
        self.rank = int(os.environ.get("RANK", "0"))
        self.index = sum((marks / f"{i}.json").exists() for i in range(len(self.listed)))
        self.calls = 0

    def passes(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Note that this process is at a point; act if its time has come."""
        if self.index == len(self.listed):
            return
        point, rank, call, act = self.listed[self.index]
        if (point, rank) != (name, self.rank):
            return
        self.calls += 1
        if self.calls < call:
            return
        mark = {"point": name, "rank": rank, "pid": os.getpid(), **where_it_stands(sys.argv)}
        temporary = self.marks / ".mark"
        temporary.write_text(json.dumps(mark))
        temporary.rename(self.marks / f"{self.index}.json")
        self.index, self.calls = self.index + 1, 0
        if act == "kill":
            HALVES.get(POINTS[name].half, lambda *_: None)(arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        whom, number = act.split("-")
        os.kill(os.getpid() if whom == "self" else os.getppid(), signal.Signals[number])


def where_it_stands(arguments: list[str]) -> dict[str, Any]:
    """Return what lies in the run, for the test: newest line of the log, checkpoints, links."""
    run = Path(arguments[arguments.index("--output") + 1])
    lines = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    steps = [int(step) for step in re.findall(r'"step": (\d+)', lines)]
    names = sorted(path.name for path in run.glob("checkpoints/step-*") if not path.suffix)
    last = os.readlink(run / "last") if (run / "last").is_symlink() else None
    return {"step": max(steps, default=0), "checkpoints": names, "last": last}


def half_a_state(arguments: tuple[Any, ...]) -> None:
    content, file = arguments
    whole = io.BytesIO()
    import torch

    torch.serialization.save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()


def half_a_line(arguments: tuple[Any, ...]) -> None:
    run_log, step = arguments[:2]
    run_log._file.write(f'{{"step": {step}, "lo')
    run_log._file.flush()


HALVES: dict[str, Callable[[tuple[Any, ...]], None]] = {"state": half_a_state, "line": half_a_line}


def owner_of(point: Point) -> Any:
    module, _, name = point.owner.partition(":")
    return getattr(import_module(module), name) if name else import_module(module)


def watch(plan: Plan, name: str, point: Point) -> None:
    """Let a function tell the plan that it is called."""
    owner = owner_of(point)
    function = getattr(owner, point.function)

    def wrapped(*args: Any, **more: Any) -> Any:
        here = not point.where or bool(re.search(point.where, " ".join(map(str, args))))
        if here and not point.after:
            plan.passes(name, args)
        result = function(*args, **more)
        if here and point.after:
            plan.passes(name, args)
        return result

    setattr(owner, point.function, wrapped)


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code."""
    sys.argv = ["cocoseg", *arguments[1:]]
    marks = Path(arguments[0])
    plan = Plan(marks)
    for name in dict.fromkeys(entry[0] for entry in plan.listed[plan.index :]):
        watch(plan, name, POINTS[name])
    from cocoseg import cli

    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    with open(marks / "exits", "a") as file:
        file.write(f"{plan.rank} {code}\n")
    return code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
