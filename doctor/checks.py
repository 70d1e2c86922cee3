"""Why does it not work here? Every check of ``cocoseg doctor``, and what they found.

(under torchrun: all ranks) → libraries → machine → (with shards) data, loader, network, a training
step, scores
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..model.config import ModelConfig
from ..processes import Launch
from ..results import Result
from ..train.config import AugmentConfig, TrainConfig
from . import libraries, machine
from .finding import Check, Finding, found_by, warning
from .ranks import Ranks

_ON_DEVICE = ("network", "learning", "scores")
_MARKS: Mapping[str, str] = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}


@dataclass(frozen=True, slots=True)
class Diagnosis(Result):
    """All findings, in the order of the checks."""

    findings: tuple[Finding, ...]

    @property
    def problems(self) -> int:
        """How many findings will stop a training run, or let it learn nothing."""
        return self._counts["problem"]

    @property
    def _counts(self) -> Counter[str]:
        return Counter(finding.state for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "problems": self._counts["problem"],
            "warnings": self._counts["warning"],
            "findings": [asdict(finding) for finding in self.findings],
        }

    def text(self) -> str:
        """Return the findings for people: a line each, what to do below it."""
        width = max((len(finding.check) for finding in self.findings), default=0)
        lines = []
        for finding in self.findings:
            lines.append(f"{_MARKS[finding.state]:<8} {finding.check:<{width}}  {finding.text}")
            if finding.remedy:
                lines.append(" " * (width + 11) + f"→ {finding.remedy}")
        counts = self._counts
        lines.append(f"\n{counts['problem']} problems, {counts['warning']} warnings")
        return "\n".join(lines)


def examine(
    train: TrainConfig,
    model: ModelConfig,
    augment: AugmentConfig,
    checkpoint: str | None = None,
    say: Callable[[str], None] = lambda name: None,
) -> Diagnosis | None:
    """Run all checks; nothing that goes wrong in one is an error here.

    Under torchrun or srun every rank calls it: all of them try their GPUs and collectives, rank 0
    does the rest.

    Parameters
    ----------
    train
        With `shards`, a few samples also go all the way: loader, network, step, scores.
    checkpoint
        Is loaded, too, and predicts; see `load_network`.
    say
        Called with the name of each check before it runs.

    Returns
    -------
    Diagnosis or None
        None on all ranks but the first.
    """
    launch = Launch.from_environment()
    several = launch.world_size > 1 or launch.fault
    ranks = Ranks(launch, train.device) if several else None
    if ranks is not None and not launch.leads:
        ranks.take_part()
        return None
    findings: list[Finding] = []
    for name, check in checks(train, model, augment, checkpoint, ranks).items():
        say(name)
        if ranks is not None and ranks.own_gpu_hangs and name in _ON_DEVICE:
            check = _not_tried
        findings += found_by(name, check)
    return Diagnosis(tuple(findings))


def _not_tried() -> Iterable[Finding]:
    yield warning("not tried: the GPU of rank 0 hangs", "see 'GPU' above")


def checks(
    train: TrainConfig,
    model: ModelConfig,
    augment: AugmentConfig,
    checkpoint: str | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Check]:
    """Return the checks by name, in their order; none has run yet.

    Parameters
    ----------
    ranks
        Of which this is the first; None if there are no others.
    """
    processes = 1 if ranks is None else ranks.launch.local_world_size or 1
    found: dict[str, Check] = {
        "Python": libraries.python,
        "versions": libraries.versions,
        "torchvision": libraries.torchvision,
        "imports": libraries.imports,
        "GPU": functools.partial(machine.gpu, train),
        "processes": machine.collectives,
        "cores": functools.partial(machine.cores, train, processes),
        "memory": functools.partial(machine.memory, train, processes),
        "shared memory": functools.partial(machine.shared_memory, train, model, processes),
        "open files": machine.open_files,
        "folders": functools.partial(machine.folders, train),
        "hub": functools.partial(machine.hub, model),
    }
    if ranks is not None:  # first the checks that all ranks take part in
        together: dict[str, Check] = {
            "ranks": ranks.meet,
            "GPU": functools.partial(ranks.gpus, found["GPU"]),
            "processes": functools.partial(ranks.collectives, found["processes"]),
        }
        found = {**together, **found, **together}
    if train.shards or checkpoint is not None:
        patient = _Patient(train, model, augment, checkpoint)
        steps = {"network": "start"}
        if train.shards:
            steps = {"shards": "open_shards", "classes": "count_classes", "loader": "load", **steps}
            steps |= {"learning": "learn", "scores": "score"}
        found |= {name: functools.partial(patient.check, step) for name, step in steps.items()}
    return found


@dataclass(slots=True)
class _Patient:
    """What the checks on data and network share; imported, with torch, when the first one runs."""

    train: TrainConfig
    model: ModelConfig
    augment: AugmentConfig
    checkpoint: str | None
    _parts: tuple[Any, Any] | None = None

    def check(self, step: str) -> Iterable[Finding]:
        if self._parts is None:
            from .inspection import Inspection
            from .trial import Trial

            inspection = Inspection(self.train, self.model, self.augment)
            self._parts = inspection, Trial(self.train, self.model, inspection, self.checkpoint)
        part = next(part for part in self._parts if hasattr(part, step))
        findings: Iterable[Finding] = getattr(part, step)()
        return findings
