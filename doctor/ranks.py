"""Checks of ``cocoseg doctor`` under torchrun or srun: the GPU of each rank, and all together.

Every rank runs a `probe` in a child process with a time limit and hands in what it found, through
the store in which the ranks met; rank 0 waits for that, and makes the findings of it. Nothing here
needs a GPU or a collective that works.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import IO, Any, TypeVar

from ..errors import CocosegError
from ..processes import Launch
from .finding import Check, Finding, ok, problem, warning
from .probe import GLOO, GPU, IMPORT, MEET, MEGABYTES, NCCL

Key = TypeVar("Key", bound=Hashable)

log = logging.getLogger(__name__)

_MEET = timedelta(seconds=120)  # from the first rank to the last; importing torch can take a minute
_LIMIT = 180.0  # seconds for a probe, whose own limits add up to less
_HANDED_IN = 30.0  # seconds more, until all reports are there
_REMEDIES: Mapping[str, str] = {
    IMPORT: "see 'imports' below",
    GPU: "does 'nvidia-smi' answer on that machine? If not, reset its GPU or restart it",
    MEET: "look at the output of those ranks",
    GLOO: "allow connections between the machines on all ports; GLOO_SOCKET_IFNAME names the "
    "network interface to use",
    NCCL: "NCCL_DEBUG=INFO prints the cause; NCCL_SOCKET_IFNAME names the network interface to "
    "use; NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1 show whether GPU links or InfiniBand fail",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What the probe of one rank found."""

    findings: tuple[Finding, ...] = ()
    """On the GPU."""
    device: Mapping[str, str] = field(default_factory=dict)
    """`UsedDevice`; empty if it was not reached."""
    stage: str = IMPORT
    """Reached last."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of an all-reduce that succeeded, by stage."""
    failure: str = ""
    """Why it ended early; empty if it did not."""
    hangs: bool = False
    """Whether it did not end by itself."""

    def to_json(self) -> str:
        """Return the JSON form."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """Return what `to_json` wrote."""
        content = json.loads(text)
        findings = tuple(Finding(**one) for one in content.pop("findings"))
        return cls(findings=findings, **content)


@dataclass(slots=True)
class Ranks:
    """All ranks of the command; each of them makes one, and takes part."""

    launch: Launch
    device_name: str
    """The setting ``train.device``."""
    reports: tuple[Report | None, ...] = ()
    """By rank, on rank 0, once they have met; None if a rank handed in none."""

    def take_part(self) -> None:
        """Do what rank 0 waits for, on every other rank."""
        if self.launch.fault:
            return  # rank 0 reports it
        try:
            self._meet()
        except CocosegError as error:
            log.error("rank %d: %s", self.launch.rank, error)

    def meet(self) -> Iterator[Finding]:
        """Wait for all ranks and their reports, on rank 0."""
        try:
            self.launch.check()
            self._meet()
        except CocosegError as error:
            yield problem(str(error), "docs/gpu.md shows how to start several processes")
            return
        hosts = {one.device["host"] for one in self.reports if one and one.device}
        machines = f"{len(hosts)} machine{'s' * (len(hosts) != 1)}: {', '.join(sorted(hosts))}"
        yield ok(f"{self.launch.world_size} ranks on {machines}")

    def gpus(self, alone: Check) -> Iterable[Finding]:
        """Look at the GPU of every rank; `alone` does without the others, if they did not meet."""
        return gpu_findings(self.reports) if self.reports else alone()

    def collectives(self, alone: Check) -> Iterable[Finding]:
        """Look at what connects the ranks."""
        return collective_findings(self.reports) if self.reports else alone()

    @property
    def own_gpu_hangs(self) -> bool:
        """Whether whatever uses the GPU of rank 0 would not come back."""
        own = self.reports[0] if self.reports else None
        return own is not None and own.hangs and own.stage == GPU

    def _meet(self) -> None:
        import torch

        from ..distributed.group import Group
        from ..distributed.rendezvous import connect, join

        store, rank, world_size = join(_MEET)
        group = Group(rank, world_size, torch.device("cpu"), store=store)
        if group.leads:
            group.publish("probe", secrets.token_hex(8))
        group.wait_for("probe", _MEET.total_seconds())
        name = group.published("probe") or ""
        end = time.monotonic() + _LIMIT + _HANDED_IN
        own = run_probe(probe_command(self.device_name, name), _LIMIT)
        group.publish(f"report/{rank}", own.to_json())
        if own.failure and own.stage in (IMPORT, GPU):  # other probes need not wait for this one
            with contextlib.suppress(RuntimeError):
                connect(name, _MEET).set(f"device/{rank}", "")
        if not group.leads:
            return
        texts = []
        for other in range(world_size):
            group.wait_for(f"report/{other}", end - time.monotonic())
            texts.append(group.published(f"report/{other}"))
        self.reports = tuple(None if one is None else Report.from_json(one) for one in texts)


def probe_command(device_name: str, store_name: str) -> list[str]:
    """Return the command line of a probe."""
    task = json.dumps({"device": device_name, "store": store_name})
    return [sys.executable, "-P", "-m", f"{__package__}.probe", task]


def run_probe(command: Sequence[str], limit: float) -> Report:
    """Run a probe, and leave it behind if it has not ended after `limit` seconds."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(  # noqa: S603 - this Python, our own module
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=complaints
        )
        ended, hangs = "", False
        try:
            code = process.wait(limit)
            if code < 0:
                ended = f"killed by {signal.Signals(-code).name}"
            elif code > 0:
                ended = (_lines(complaints) or [f"exit code {code}"])[-1]
        except subprocess.TimeoutExpired:
            ended, hangs = f"did not end within {limit:.0f} s", True
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may wait for a driver forever
                process.wait(1)
        report = _report(_lines(out), ended, hangs)
        if report.failure and "NCCL_DEBUG" in os.environ:
            printed = (line for line in _lines(out) if not line.startswith('{"'))
            print(*printed, *_lines(complaints), sep="\n", file=sys.stderr, flush=True)
    return report


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _report(printed: Sequence[str], ended: str, hangs: bool) -> Report:
    """Put together what a probe printed; libraries may print there, too."""
    report, findings, seconds = Report(), [], {}
    for text in printed:
        line: dict[str, Any] = json.loads(text) if text.startswith('{"') else {}
        if "finding" in line:
            findings.append(Finding(**line["finding"]))
        if "seconds" in line:
            seconds[line["stage"]] = line["seconds"]
        stage, device = line.get("stage", report.stage), line.get("device", report.device)
        failure = line.get("failed", report.failure)
        report = replace(report, stage=stage, device=device, failure=failure)
    failure = report.failure or ended
    return replace(report, findings=tuple(findings), seconds=seconds, failure=failure, hangs=hangs)


def gpu_findings(reports: Sequence[Report | None]) -> Iterator[Finding]:
    """Return the findings on the GPUs of all ranks; equal ones are one."""
    from ..distributed.devices import UsedDevice, conflict

    silent = [rank for rank, report in enumerate(reports) if report is None]
    if silent:
        yield problem(f"{_named(silent, reports)}: no report", "look at the output of those ranks")
    found = {rank: report for rank, report in enumerate(reports) if report is not None}
    yield from _failures(found, (IMPORT, GPU), reports)
    grouped = _ranks_by(
        [(finding, rank) for rank, report in found.items() for finding in report.findings]
    )
    for finding, ranks in grouped.items():
        yield replace(finding, text=f"{_named(ranks, reports)}: {finding.text}")
    used = [UsedDevice(**report.device) for report in found.values() if report.device]
    if used and len(used) == len(reports) and not any(one.fault for one in used):
        together = conflict(used)
        if together is not None:
            yield problem(*together)


def collective_findings(reports: Sequence[Report | None]) -> Iterator[Finding]:
    """Return the findings on the collectives that all ranks tried together."""
    found = {rank: report for rank, report in enumerate(reports) if report is not None}
    for stage in (GLOO, NCCL):
        seconds = [report.seconds[stage] for report in found.values() if stage in report.seconds]
        if seconds and len(seconds) == len(reports):
            took = f"{1000 * max(seconds):.1f} ms for {MEGABYTES} MB"
            yield ok(f"{stage} among {len(reports)} ranks: {took}")
    yield from _failures(found, (MEET, GLOO, NCCL), reports)
    gpus = any(report.device.get("type") == "cuda" for report in found.values())
    if gpus and not any(report.stage == NCCL for report in found.values()):
        yield warning(f"{NCCL} was not tried", "first solve the problem that stopped it, see above")


def _failures(
    found: Mapping[int, Report], stages: Sequence[str], reports: Sequence[Report | None]
) -> Iterator[Finding]:
    failed = [
        ((report.stage, report.failure), rank)
        for rank, report in found.items()
        if report.failure and report.stage in stages
    ]
    for (stage, failure), ranks in _ranks_by(failed).items():
        yield problem(f"{_named(ranks, reports)}: {stage}: {failure}", _REMEDIES[stage])


def _ranks_by(pairs: Sequence[tuple[Key, int]]) -> dict[Key, list[int]]:
    ranks: dict[Key, list[int]] = {}
    for key, rank in pairs:
        ranks.setdefault(key, []).append(rank)
    return ranks


def _named(ranks: Sequence[int], reports: Sequence[Report | None]) -> str:
    from ..distributed.rendezvous import ranks_text

    if len(ranks) == len(reports):
        return "all ranks"
    known = [report.device.get("host") for rank in ranks if (report := reports[rank])]
    hosts = ", ".join(dict.fromkeys(host for host in known if host))
    return ranks_text(ranks) + (f" ({hosts})" if hosts else "")
