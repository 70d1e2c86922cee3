"""Under torchrun every rank is examined, rank 0 tells, and nothing that hangs is waited for."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cocoseg.doctor import machine
from cocoseg.doctor.checks import Diagnosis, checks, examine
from cocoseg.doctor.finding import Check, Finding, ok, problem
from cocoseg.doctor.probe import GLOO, GPU, IMPORT, MEET, NCCL
from cocoseg.doctor.ranks import (
    Ranks,
    Report,
    collective_findings,
    gpu_findings,
    probe_command,
    run_probe,
)
from cocoseg.errors import CocosegError
from cocoseg.model.config import ModelConfig
from cocoseg.processes import Launch
from cocoseg.train.config import AugmentConfig, TrainConfig

MODEL = ModelConfig(name="segformer-tiny", input_size=32)
SECONDS = {GLOO: 0.002, NCCL: 0.0004}


def report(rank: int, **changes: Any) -> Report:
    """Return what a healthy rank on one of two machines hands in."""
    device = {"host": "ab"[rank // 2], "type": "cuda", "uuid": f"GPU-{rank}", "fault": ""}
    findings = (ok(f"cuda:{rank % 2} H100, {60 + rank // 3} GB free"), ok("driver 580.1"))
    healthy = Report(findings=findings, device=device, stage=NCCL, seconds=SECONDS)
    return replace(healthy, **changes)


HEALTHY = [report(rank) for rank in range(4)]


def told(findings: Iterable[Finding]) -> list[str]:
    return [f"{finding.state}: {finding.text}" for finding in findings]


# ---- what is made of reports


def test_each_gpu_is_told_with_its_rank_and_what_all_share_once() -> None:
    assert told(gpu_findings(HEALTHY)) == [
        "ok: ranks 0, 2 (a, b): cuda:0 H100, 60 GB free",
        "ok: all ranks: driver 580.1",
        "ok: rank 1 (a): cuda:1 H100, 60 GB free",
        "ok: rank 3 (b): cuda:1 H100, 61 GB free",
    ]
    assert told(collective_findings(HEALTHY)) == [
        "ok: all-reduce by gloo among 4 ranks: 2.0 ms for 4 MB",
        "ok: all-reduce by NCCL among 4 ranks: 0.4 ms for 4 MB",
    ]


def test_without_gpus_nccl_is_not_missed() -> None:
    device = {"host": "a", "type": "cpu", "uuid": "", "fault": ""}
    alike = [report(0, device=device, findings=(ok("none"),), stage=GLOO, seconds={GLOO: 0.01})] * 2
    assert told(gpu_findings(alike)) == ["ok: all ranks: none"]
    assert told(collective_findings(alike)) == [
        "ok: all-reduce by gloo among 2 ranks: 10.0 ms for 4 MB"
    ]


def test_a_gpu_that_hangs_is_named_and_the_others_say_whom_they_waited_for() -> None:
    waiting = {"stage": MEET, "seconds": {}, "failure": "rank 3 failed before"}
    reports = [report(rank, **waiting) for rank in range(3)]
    reports.append(
        Report(stage=GPU, failure="did not end within 180 s", hangs=True, device={}, findings=())
    )
    first, *_ = gpu_findings(reports)
    assert (first.state, first.text) == (
        "problem",
        "rank 3: using the GPU: did not end within 180 s",
    )
    assert "nvidia-smi" in first.remedy
    assert told(collective_findings(reports)) == [
        "problem: ranks 0-2 (a, b): waiting for the other ranks: rank 3 failed before",
        "warning: all-reduce by NCCL was not tried",
    ]


def test_a_rank_without_a_report_is_named() -> None:
    found = told(gpu_findings([*HEALTHY[:3], None]))
    assert found[0] == "problem: rank 3: no report"
    assert "ok: ranks 0-2 (a, b): driver 580.1" in found
    assert told(collective_findings([*HEALTHY[:3], None])) == []


def test_a_collective_that_fails_is_told_with_what_to_do() -> None:
    changes = {"seconds": {GLOO: 0.002}, "failure": "DistBackendError: NCCL error"}
    reports = [report(rank, **changes) for rank in range(3)]
    reports.append(replace(reports[0], failure="killed by SIGABRT"))
    found = list(collective_findings(reports))
    assert told(found) == [
        "ok: all-reduce by gloo among 4 ranks: 2.0 ms for 4 MB",
        "problem: ranks 0-2 (a, b): all-reduce by NCCL: DistBackendError: NCCL error",
        "problem: rank 3 (a): all-reduce by NCCL: killed by SIGABRT",
    ]
    assert all("NCCL_DEBUG=INFO" in one.remedy for one in found[1:])


def test_ranks_that_cannot_run_together_are_told_once() -> None:
    shared = [report(0), report(0), report(2)]
    (found,) = [one for one in gpu_findings(shared) if one.state == "problem"]
    assert found.text == "ranks 0-1 use the same GPU of a"
    assert "one process per GPU" in found.remedy
    on_cpu = report(1, device={"host": "a", "type": "cpu", "uuid": "", "fault": ""})
    (found,) = [one for one in gpu_findings([report(0), on_cpu]) if one.state == "problem"]
    assert "different kinds of devices (rank 0: cuda; rank 1: cpu)" in found.text
    absent = {"host": "a", "type": "", "uuid": "", "fault": "device 'cuda:1': gone"}
    without = report(1, device=absent, findings=(problem("device 'cuda:1': gone", "docs"),))
    (found,) = [one for one in gpu_findings([report(0), without]) if one.state == "problem"]
    assert found.text == "rank 1 (a): device 'cuda:1': gone"


def test_reports_travel_as_json() -> None:
    for one in (HEALTHY[0], Report(failure="x", hangs=True)):
        assert Report.from_json(one.to_json()) == one


# ---- a probe


def probe(script: str, limit: float = 60.0) -> Report:
    return run_probe([sys.executable, "-S", "-c", script], limit)


def test_what_a_probe_printed_is_kept_whatever_becomes_of_it() -> None:
    lines = [
        {"stage": GPU},
        {"finding": {"state": "ok", "text": "fine", "remedy": "", "check": "GPU"}},
        {"device": {"host": "a", "type": "cuda", "uuid": "", "fault": ""}},
        {"stage": GLOO},
        {"stage": GLOO, "seconds": 0.5},
        {"stage": NCCL},
    ]
    prints = "import os, signal\n" + "".join(f"print({json.dumps(one)!r})\n" for one in lines)
    expected = Report(
        (Finding("ok", "fine", "", "GPU"),),
        {"host": "a", "type": "cuda", "uuid": "", "fault": ""},
        NCCL,
        {GLOO: 0.5},
    )
    assert probe(prints + "print('NCCL version 2.29')") == expected
    ends = {
        "os.kill(os.getpid(), signal.SIGABRT)": "killed by SIGABRT",
        "raise SystemExit('last words')": "last words",
        "os._exit(3)": "exit code 3",
        'print(\'{"failed": "why"}\')': "why",
    }
    for end, failure in ends.items():
        flushed = prints + "import sys; sys.stdout.flush()\n" + end
        assert probe(flushed) == replace(expected, failure=failure)


def test_a_probe_that_does_not_end_is_left_behind() -> None:
    found = probe("import signal; signal.pause()", limit=0.0)
    assert found == Report(stage=IMPORT, failure="did not end within 0 s", hangs=True)


def test_what_nccl_prints_is_passed_on_if_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = "print('a: NCCL INFO no route'); print('{\"stage\": \"x\"}'); raise SystemExit('end')"
    monkeypatch.delenv("NCCL_DEBUG", raising=False)
    probe(fails)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    probe(fails)
    assert capsys.readouterr().err == "a: NCCL INFO no route\nend\n"


def test_a_probe_runs_by_itself() -> None:
    """Without anybody to meet it says how far it came."""
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ""}
    ran = subprocess.run(
        probe_command("cpu", "here"), env=environment, capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["stage"] for line in lines if "stage" in line] == [IMPORT, GPU, MEET]
    assert "ValueError" in lines[-1]["failed"]


# ---- all together


def two_ranks(case: str) -> dict[str, Any]:
    """Run `rank_cases.py` under torchrun; all that was printed, by whichever rank."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ran = subprocess.run(
        [*launcher, str(Path(__file__).with_name("rank_cases.py")), case],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (printed,) = ran.stdout.splitlines() or [ran.stderr]
    diagnosis: dict[str, Any] = json.loads(printed)
    assert bool(ran.returncode) == (diagnosis["problems"] > 0)
    return diagnosis


def findings(diagnosis: dict[str, Any], check: str) -> list[str]:
    return [
        f"{one['state']}: {one['text']}" for one in diagnosis["findings"] if one["check"] == check
    ]


@pytest.mark.long
def test_two_ranks_are_examined_and_one_tells() -> None:
    diagnosis = two_ranks("healthy")
    assert [one["check"] for one in diagnosis["findings"]][:3] == ["ranks", "GPU", "processes"]
    assert findings(diagnosis, "ranks")[0].startswith("ok: 2 ranks on 1 machine: ")
    (gpu,) = findings(diagnosis, "GPU")
    assert gpu.startswith("ok: all ranks: ")
    (gloo,) = findings(diagnosis, "processes")
    assert gloo.startswith("ok: all-reduce by gloo among 2 ranks: ")
    assert "cores" in {one["check"] for one in diagnosis["findings"]}


@pytest.mark.long
def test_a_rank_that_hangs_is_a_problem_that_ends() -> None:
    diagnosis = two_ranks("hangs")
    assert "problem: rank 1: importing torch: did not end within 0 s" in findings(diagnosis, "GPU")
    assert any(
        text.endswith("waiting for the other ranks: rank 1 failed before")
        for text in findings(diagnosis, "processes")
    )


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Diagnosis | None]:
    """Run the checks of ranks and two others: `examined(RANK=0)` with these variables alone."""
    usual = checks

    def few(*arguments: Any) -> dict[str, Check]:
        kept = ("ranks", "GPU", "processes")
        together = {name: one for name, one in usual(*arguments).items() if name in kept}
        return {**together, "network": lambda: [ok("tried")], "hub": lambda: [ok("tried")]}

    def run(**variables: str) -> Diagnosis | None:
        for name in [name for name in os.environ if name.startswith(("SLURM_", "LOCAL_"))]:
            monkeypatch.delenv(name)
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return examine(TrainConfig(), MODEL, AugmentConfig())

    monkeypatch.setattr("cocoseg.doctor.checks.checks", few)
    return run


def test_if_the_gpu_of_rank_0_hangs_nothing_else_is_tried_on_it(
    examined: Callable[..., Diagnosis | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    hung = Report(stage=GPU, failure="did not end within 180 s", hangs=True)

    def meet(self: Ranks) -> None:
        self.reports = (hung, report(1))

    monkeypatch.setattr(Ranks, "_meet", meet)
    diagnosis = examined(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    by_check = {one.check: one.text for one in diagnosis.findings}
    assert by_check["network"] == "not tried: the GPU of rank 0 hangs"
    assert by_check["hub"] == "tried"
    assert diagnosis.problems == 1


def test_tasks_of_srun_that_do_not_know_of_each_other_are_a_problem_told_once(
    examined: Callable[..., Diagnosis | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpu", lambda *_: [ok("alone")])
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}
    assert examined(**slurm, SLURM_PROCID="1") is None
    diagnosis = examined(**slurm, SLURM_PROCID="0")
    (found,) = [one for one in diagnosis.findings if one.state == "problem"]
    assert found.check == "ranks"
    assert found.text.startswith("srun started 2 tasks, but WORLD_SIZE is not set")
    assert [one.text for one in diagnosis.findings if one.check == "GPU"] == ["alone"]


def test_ranks_that_cannot_meet_are_a_problem_and_the_rest_is_examined(
    examined: Callable[..., Diagnosis | None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(self: Ranks) -> None:
        raise CocosegError("timed out waiting for rank 1")

    monkeypatch.setattr(Ranks, "_meet", fails)
    diagnosis = examined(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0")
    assert "timed out waiting for rank 1" in diagnosis.text()
    assert "hub" in {one.check for one in diagnosis.findings}
    assert examined(WORLD_SIZE="2", RANK="1", LOCAL_RANK="1") is None
    assert "rank 1: timed out waiting for rank 1" in caplog.text


def test_loaders_of_all_processes_of_a_machine_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setattr(machine, "free_memory", lambda: 20_000_000_000)
    config = TrainConfig(workers=8)
    among = Ranks(Launch(0, 8, 0, 8), "auto")
    for processes, state in ((None, "ok"), (among, "warning")):
        todo = checks(config, MODEL, AugmentConfig(), None, processes)
        for name in ("cores", "memory"):
            (found,) = [one for one in todo[name]() if "threads" not in one.text]
            assert found.state == state
    (found,) = [one for one in machine.cores(config, 8) if "threads" not in one.text]
    assert "train.workers is 8 for each of 8 processes" in found.text
    assert found.remedy == "train.workers=2 or less"
    (found,) = machine.memory(config, 8)
    assert "each of 8 processes with 8 workers takes about 3.0 GB" in found.text
