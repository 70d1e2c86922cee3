"""Whoever is killed, whenever: started again, a run ends with the bits of one never interrupted."""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fatal
import pytest
from warm import DEADLINE, Started, Warm

FATAL = Path(fatal.__file__)
SETTINGS = {
    "max_steps": 24,
    "val_every": 4,
    "checkpoint_every": 2,
    "keep_last": 2,
    "log_every": 1,
    "batch_size": 2,
    "accumulation_steps": 1,
    "val_batch_size": 2,  # of 4 images: each rank has one
    "workers": 0,
    "learning_rate": 1e-3,
    "ema_decay": 0.9,
    "pictures": 1,
    "device": "cpu",
}
TIMES = ("images_per_second", "data_wait")
"""What a line of the log says of the clock."""


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    """Of the command; negative where a signal killed it."""
    err: str


class Runs:
    """One run, started again and again: by the launcher, or by hand."""

    def __init__(self, golden: Any, warm: Warm, folder: Path, **settings: object) -> None:
        self.warm, self.run, self.marks = warm, folder / "run", folder / "marks"
        self.settings = {**SETTINGS, **settings}
        self.arguments = [
            *(str(self.marks), "train"),
            *("--shards", str(golden.shards("train")), "--val-shards", str(golden.shards("val"))),
            *("--output", str(self.run), "--json"),
            *("--set=model.name=segformer-tiny", "--set=model.input_size=32"),
            *(f"--set=train.{key}={value}" for key, value in self.settings.items()),
        ]
        self.marks.mkdir(parents=True)
        self.planned: list[tuple[str, int, int, str]] = []
        self.started: Started | None = None
        self._config_before: int | None = None
        self.plan()

    def plan(self, *moments: tuple[str, int, int, str]) -> None:
        """Let these come next: (point, rank, call, act)."""
        self.planned += moments
        (self.marks / "plan.json").write_text(json.dumps(self.planned))

    def marked(self) -> list[dict[str, Any]]:
        """What stood when each moment came, of those that came."""
        paths = [self.marks / f"{i}.json" for i in range(len(self.planned))]
        return [json.loads(path.read_text()) for path in paths if path.exists()]

    def start(self, processes: int = 2, restarts: int = 0) -> "Runs":
        """Start it out of the warm process; a single one without a launcher."""
        self._config_before = self._config()
        self.started = self.warm.start(
            processes if processes > 1 else 0, FATAL, *self.arguments, restarts=restarts
        )
        return self

    @property
    def pid(self) -> int:
        """Of the launcher."""
        assert self.started is not None
        return self.started.pid

    def poll(self) -> int | None:
        """Return the exit code of the command, once it and all ranks are gone."""
        return 0 if self.started is None else self.started.poll()

    def wait(self) -> Ended:
        assert self.started is not None
        out, err = self.started.communicate()
        assert self.started.returncode is not None
        return Ended(self.started.returncode, out + err)

    def trains(self) -> bool:
        """Return whether, since its start, it has begun to train, and not yet ended."""
        begun = self._config() not in (None, self._config_before)
        return begun and self.steps() < self.settings["max_steps"] and self.poll() is None

    def _config(self) -> int | None:
        """Tell one ``config.yaml`` from another: each start writes it again."""
        path = self.run / "config.yaml"
        return path.stat().st_ino if path.exists() else None

    def torchrun(self, restarts: int = 0) -> Ended:
        """Run it by torchrun itself, in fresh processes, to its end."""
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", "--max-restarts", str(restarts)),
                *(str(FATAL), *self.arguments),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=DEADLINE,
        )
        return Ended(ran.returncode, ran.stderr)

    def ranks(self) -> list[int]:
        """The processes of the run, but the command itself."""
        return [] if self.started is None else self.started.ranks()

    def steps(self) -> int:
        """The newest line of the log."""
        return fatal.where_it_stands(["--output", str(self.run)])["step"]

    def journal(self) -> list[dict[str, Any]]:
        """All lines but what they say of the clock."""
        lines = map(json.loads, (self.run / "metrics.jsonl").read_text().splitlines())
        return [{key: line[key] for key in line if key not in TIMES} for line in lines]

    def check_same(self, other: "Runs") -> None:
        """Compare the last and the best checkpoint by bytes, and all that was measured."""
        assert self.journal() == other.journal()
        for name in ("last", "best"):
            assert (self.run / name).readlink() == (other.run / name).readlink()
            for file in ("model.safetensors", "config.json", "taxonomy.json"):
                ours, theirs = (one.run / name / file for one in (self, other))
                assert ours.read_bytes() == theirs.read_bytes(), (name, file)
        ours, theirs = (
            sorted(path.name for path in (one.run / "checkpoints").iterdir())
            for one in (self, other)
        )
        assert ours == theirs
        assert not list(self.run.rglob(".*")), "leftovers"


@pytest.fixture
def make_runs(golden: Any, warm: Warm, tmp_path: Path) -> Iterator[Callable[..., Runs]]:
    yield lambda name="faults", **settings: Runs(golden, warm, tmp_path / name, **settings)
    warm.kill_all()  # of a test that failed


@pytest.fixture(scope="session")
def undisturbed(
    golden: Any, warm: Warm, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Runs]:
    """The same run, without any fault, by 2 processes or 1."""
    found: dict[Any, Runs] = {}

    def make(processes: int = 2, **settings: object) -> Runs:
        key = (processes, *settings.items())
        if key not in found:
            folder = tmp_path_factory.mktemp("undisturbed")
            found[key] = Runs(golden, warm, folder, **settings)
            ended = found[key].start(processes).wait()
            assert ended.code == 0, ended.err
        return found[key]

    return make


def check_marks(runs: Runs) -> list[dict[str, Any]]:
    """Every moment came, and in the middle of work."""
    marked = runs.marked()
    assert [(mark["point"], mark["rank"]) for mark in marked] == [one[:2] for one in runs.planned]
    assert [mark for mark in marked if mark["step"] >= runs.settings["max_steps"]] == []
    return marked


# ---- kills at named points


@pytest.mark.parametrize("name", fatal.POINTS)
def test_every_point_is_a_function_of_the_program(name: str) -> None:
    point = fatal.POINTS[name]
    assert callable(getattr(fatal.owner_of(point), point.function))


def matrix() -> list[list[tuple[str, int, int, str]]]:
    """Return a kill of each rank at every point: (point, rank, call, act), in groups for one run.

    The first in each comes when there is a checkpoint.
    """
    dice = random.Random(7)
    listed = [
        (name, rank, 1 if point.once else dice.randint(1, 3), "kill")
        for name, point in fatal.POINTS.items()
        for rank in point.ranks
    ]
    dice.shuffle(listed)
    groups = [listed[i::GROUPS] for i in range(GROUPS)]
    return [[("saved", 0, 1, "kill"), *group] for group in groups]


GROUPS = 6
MATRIX = matrix()
LONG = {"max_steps": 60, "checkpoint_every": 1, "val_every": 2}
KILLS = sum(map(len, MATRIX))


@pytest.mark.long
@pytest.mark.parametrize("group", MATRIX, ids=range(GROUPS))
@pytest.mark.parametrize("again", ["by-the-launcher", "by-hand"])
def test_a_kill_at_any_point_changes_no_bit(
    make_runs: Any, undisturbed: Any, record_property: Any, group: Any, again: str
) -> None:
    runs = make_runs(**LONG)
    runs.plan(*group)
    if again == "by-the-launcher":
        ended = runs.start(restarts=len(group)).wait()
    else:
        for _ in group:
            assert runs.start().wait().code != 0
        ended = runs.start().wait()
    assert ended.code == 0, ended.err
    check_marks(runs)
    runs.check_same(undisturbed(**LONG))
    record_property(
        "figure",
        f"training, 2 ranks: SIGKILL at {len(fatal.POINTS)} points, {KILLS} kills by the launcher "
        f"and {KILLS} by hand, all amidst work: same bits",
    )


@pytest.mark.long
def test_torchrun_itself_starts_again_what_is_killed(make_runs: Any, undisturbed: Any) -> None:
    """Processes of their own, with loaders, as on any machine; the others here are forked."""
    runs = make_runs(workers=1)
    kills = (("backward-done", 1, 3), ("renamed", 0, 2), ("predicted", 1, 1), ("step", 0, 3))
    runs.plan(*((*kill, "kill") for kill in kills))
    ended = runs.torchrun(restarts=4)
    assert ended.code == 0, ended.err
    check_marks(runs)
    runs.check_same(undisturbed())


def test_two_ranks_killed_end_with_the_same_bits(make_runs: Any, undisturbed: Any) -> None:
    runs = make_runs()
    runs.plan(("backward-done", 1, 6, "kill"), ("half-a-state", 0, 1, "kill"))
    runs.plan(("predicted", 1, 1, "kill"))
    assert runs.start(restarts=2).wait().code != 0  # the third is one too many
    check_marks(runs)
    runs.plan(("renamed", 0, 2, "kill"))  # the first may be of a step saved before its validation
    assert runs.start().wait().code != 0
    mark = check_marks(runs)[-1]
    assert mark["checkpoints"][-1] > Path(mark["last"]).name
    damaged = runs.run / "checkpoints" / mark["checkpoints"][-1] / "model.safetensors"
    os.truncate(damaged, damaged.stat().st_size - 1)
    ended = runs.start().wait()
    assert ended.code == 0, ended.err
    assert f"{damaged.parent}: model.safetensors differs from its digest" in ended.err
    runs.check_same(undisturbed())


# ---- kills at any time


def kill_at_any_time(
    runs: Runs, dice: random.Random, kills: int, starting: float, seconds: float
) -> tuple[int, int]:
    """Kill ranks, launchers or all of it, and start again.

    Parameters
    ----------
    starting
        Share of the kills whose time is counted from the start of the processes, not of training.
    seconds
        Within which the kills come.

    Returns
    -------
    tuple of int
        How many there were, and how many of them amidst training.
    """
    made = amid = 0
    for _ in range(kills):
        if runs.poll() is not None:
            runs.start(restarts=dice.choice([0, 3]))
        if dice.random() >= starting:
            while not runs.trains() and runs.poll() is None:
                time.sleep(0.02)
        time.sleep(dice.uniform(0, seconds))
        if runs.poll() == 0:
            break  # all is done already
        whom = dice.choice(["rank", "launcher", "all"])
        ranks = runs.ranks()
        chosen = dice.sample(ranks, 1) if whom == "rank" and ranks else [runs.pid]
        made += 1
        amid += runs.trains()
        for pid in [*chosen, *ranks] if whom == "all" else chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if chosen == [runs.pid]:
            runs.wait()
    while runs.wait().code != 0:  # a rank was killed, with no restarts left
        runs.start()
    return made, amid


@pytest.mark.long
def test_any_kill_at_any_time_changes_no_bit(
    make_runs: Any, undisturbed: Any, record_property: Any
) -> None:
    settings = {"max_steps": 80}
    made = amid = seed = 0
    while made < 30 or amid < 15:
        runs = make_runs(f"random-{seed}", **settings)
        counts = kill_at_any_time(runs, random.Random(seed), 5, starting=0.4, seconds=1.5)
        made, amid = made + counts[0], amid + counts[1]
        runs.check_same(undisturbed(**settings))
        seed += 1
    record_property("figure", f"training, 2 ranks: {made} random SIGKILLs, {amid} amidst training")


@pytest.mark.long
def test_some_kills_at_any_time_change_no_bit(make_runs: Any, undisturbed: Any) -> None:
    for seed in itertools.count(1):
        runs = make_runs(f"random-{seed}")
        _, amid = kill_at_any_time(runs, random.Random(seed), 2, starting=0, seconds=0.4)
        runs.check_same(undisturbed())
        if amid:
            return


# ---- signals


def interrupt(runs: Runs, processes: int, *moments: tuple[str, int, int, str]) -> Ended:
    runs.plan(*moments)
    ended = runs.start(processes).wait()
    check_marks(runs)
    return ended


def saved(runs: Runs) -> int:
    """The step of the newest checkpoint."""
    stands = fatal.where_it_stands(["--output", str(runs.run)])
    return int(stands["checkpoints"][-1].removeprefix("step-"))


def test_a_signal_saves_the_step_that_was_reached(make_runs: Any, undisturbed: Any) -> None:
    """Between steps, in validation, while saving, in a step; at the start; and with an echo."""
    runs = make_runs()
    for i, (point, call, steps) in enumerate(
        [
            *(("step-done", 3, 3), ("predicted", 1, 4)),
            ("weights", 1, 4),  # validated now, it is saved again
            *(("weights", 1, 6), ("optimizer", 1, 7)),
        ]
    ):
        number = ("SIGTERM", "SIGINT")[i % 2]
        ended = interrupt(runs, 1, (point, 0, call, f"self-{number}"))
        assert ended.code == 130, ended.err
        assert "Traceback" not in ended.err
        told = f"interrupted after step {steps}, which is saved: run the same command again"
        assert told in ended.err
        assert saved(runs) == steps
    ended = interrupt(runs, 1, ("network-prepared", 0, 1, "self-SIGTERM"))
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert saved(runs) == 7
    ended = interrupt(runs, 1, ("step", 0, 2, "self-SIGTERM"), ("optimizer", 0, 1, "self-SIGINT"))
    assert ended.code == 130
    assert saved(runs) == 9
    assert "interrupted after step 9, which is saved" in ended.err
    assert "Traceback" not in ended.err
    assert runs.start(1).wait().code == 0
    runs.check_same(undisturbed(1))


def test_a_signal_to_one_rank_or_to_the_launcher_saves_for_all(
    make_runs: Any, undisturbed: Any
) -> None:
    runs = make_runs()
    for point, rank, call, whom, steps in (
        ("step-done", 1, 3, "self", 3),
        ("predicted", 0, 1, "launcher", 4),
        ("half-removed", 0, 1, "launcher", 4),
    ):
        ended = interrupt(runs, 2, (point, rank, call, f"{whom}-SIGTERM"))
        assert ended.code != 0
        reached = saved(runs)
        if point == "half-removed":  # in the background, of this run or owed by the one before
            assert reached >= steps, ended.err
        else:
            assert reached == steps, ended.err
        assert f"interrupted after step {reached}, which is saved" in ended.err
    codes = [line.split()[1] for line in (runs.marks / "exits").read_text().splitlines()]
    assert set(codes) == {"130"}
    assert runs.start().wait().code == 0
    runs.check_same(undisturbed())
