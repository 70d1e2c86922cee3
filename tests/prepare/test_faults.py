"""Whatever dies or fails, whenever: run it again, and the bytes are those of an undisturbed run."""

import itertools
import os
import random
import signal
from pathlib import Path

import faults
import pytest


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    yield
    faults.stop_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, coco_set_class):
    folder = tmp_path_factory.mktemp("undisturbed")
    drawn = faults.draw(coco_set_class(folder / "set"))
    return {name: faults.undisturbed(drawn, folder, name) for name in faults.SCENARIOS}


def test_the_drawn_set_is_what_the_matrix_needs(undisturbed, tmp_path):
    """A bad image, shards that are built twice, two folders."""
    whole = undisturbed["whole"]
    moment = faults.Moment(faults.POINTS["published-shard"], 7)
    ended = faults.start(
        whole.config(tmp_path / "shards"), tmp_path / "log", lambda: moment.watch(lambda: None)
    ).wait()
    assert ended.code == 0
    assert moment.reached  # 5 shards, and at least 2 again
    moment.close()
    assert b"undecodable-image" in whole.files["quarantine.jsonl"]
    assert [undisturbed[name].manifests for name in faults.SCENARIOS] == [1, 2, 1]


def cases() -> list[tuple[str, str, int]]:
    """Return the whole matrix: (failpoint, fault, seed)."""
    listed = []
    for point in faults.POINTS.values():
        for fault in ("worker-killed", "parent-killed", "SIGTERM", "ENOSPC", "EIO"):
            if fault == "worker-killed" and point in faults.IN_PARENT:
                continue
            if fault in faults.ERRNO and not point.fails:
                continue
            listed.extend((point.name, fault, seed) for seed in range(2))
    return listed


CASES = cases()


def run_into(whole, tmp_path: Path, name: str, fault: str, seed: int) -> None:
    """Run a build into a fault, and run it again."""
    dice = random.Random(f"{name} {fault} {seed}")
    point = faults.POINTS[name]
    local = fault == "worker-killed" or point.local or seed % 2
    output, log = tmp_path / "shards", tmp_path / "log"
    config = whole.config(output, "local" if local else "inline")
    moment = faults.Moment(point, dice.randint(1, point.calls))
    act = {
        "worker-killed": faults.die,
        "parent-killed": faults.stand_still,
        "SIGTERM": faults.stand_still,
        "ENOSPC": faults.fail(faults.ERRNO["ENOSPC"]),
        "EIO": faults.fail(faults.ERRNO["EIO"]),
    }[fault]
    run = faults.start(config, log, lambda: moment.watch(act))
    if fault in ("parent-killed", "SIGTERM"):
        moment.wait()
        run.kill(signal.SIGTERM if fault == "SIGTERM" else signal.SIGKILL)
    ended = run.wait()
    assert moment.reached
    moment.close()
    if fault == "worker-killed":
        assert (ended.code, ended.text) == (0, "")
        if name != "answered":  # the last one of all is no longer missed
            assert "a worker died (SIGKILL)" in ended.log
        whole.check(output)
        return
    if not point.complete:
        found = list(output.rglob("manifest.json"))
        assert len(found) < whole.manifests, "the fault came too late"
    code = {"parent-killed": None, "SIGTERM": 130}.get(fault, 1)
    assert ended.code == code, ended
    if code is not None:
        assert "run the same command again" in ended.text
        assert ended.log == ""
        assert [path for path in faults.leftovers(output) if ".tmp-" in path] == []
    kept = faults.standing(output)
    again = faults.start(config, log).wait()
    assert (again.code, again.text) == (0, "")
    assert {name: faults.identity(output / name) for name in kept} == kept
    whole.check(output)


def scenario_of(name: str, fault: str, seed: int) -> str:
    scenarios = [one for one in faults.SCENARIOS if (name, one) != ("rasterize", "labels")]
    return random.Random(f"{seed} {name} {fault}").choice(scenarios)


@pytest.mark.long
@pytest.mark.parametrize(("name", "fault", "seed"), CASES)
def test_any_fault_at_any_failpoint_leaves_what_a_rerun_completes(
    undisturbed, tmp_path, record_property, name, fault, seed
):
    run_into(undisturbed[scenario_of(name, fault, seed)], tmp_path, name, fault, seed)
    record_property(
        "figure", f"prepare: {len(faults.POINTS)} failpoints, {len(CASES)} cases of faults"
    )


@pytest.mark.parametrize(("name", "fault", "seed"), random.Random(0).sample(CASES, 15))
def test_some_faults_leave_what_a_rerun_completes(undisturbed, tmp_path, name, fault, seed):
    run_into(undisturbed[scenario_of(name, fault, seed)], tmp_path, name, fault, seed)


@pytest.mark.parametrize("call", range(1, 15))
def test_a_kill_in_the_middle_of_writing_a_file_leaves_no_half_of_it(undisturbed, tmp_path, call):
    """Plan, records, index, quarantine, configuration, report, manifest."""
    whole, output, log = undisturbed["whole"], tmp_path / "shards", tmp_path / "log"
    moment = faults.Moment(faults.POINTS["fsync"], call)
    config = whole.config(output, "inline")
    ended = faults.start(config, log, lambda: faults.write_half(moment)).wait()
    assert ended.code is None
    assert not (output / "manifest.json").exists()
    moment.close()
    assert faults.start(config, log).wait().code == 0
    whole.check(output)


def kill_at_random(undisturbed, tmp_path: Path, seed: int) -> bool:
    """Kill a build at any time, and run it again; return whether it was in the middle of work.

    Three of four kills count their time from the first work on: how long a start takes depends on
    what else the machine does.
    """
    dice = random.Random(seed)
    whole = undisturbed[dice.choice(list(faults.SCENARIOS))]
    engine = dice.choice(list(faults.ENGINES))
    whom = dice.choice(["parent", "group", "worker"]) if engine == "local" else "parent"
    output, log = tmp_path / f"shards-{seed}", tmp_path / f"log-{seed}"
    config = whole.config(output, engine)
    run = faults.start(config, log)
    if dice.random() < 0.75:
        while not (output / ".building" / "plan.json").exists() and not run.ends_within(0.002):
            pass
    if not run.ends_within(dice.uniform(0, whole.seconds[engine])):
        if whom == "group":
            os.killpg(run.pid, signal.SIGKILL)
        elif whom == "parent":
            run.kill(signal.SIGKILL)
        elif workers := run.workers():
            os.kill(dice.choice(workers), signal.SIGKILL)
        else:
            whom = "nobody"
    ended = run.wait()
    if whom in ("worker", "nobody"):
        amid = "a worker died (SIGKILL)" in ended.log
        assert (ended.code, ended.text) == (0, "")
    else:
        amid = (output / ".building" / "plan.json").exists()
        amid &= len(list(output.rglob("manifest.json"))) < whole.manifests
        kept = faults.standing(output)
        again = faults.start(config, log).wait()
        assert (again.code, again.text) == (0, "")
        assert {name: faults.identity(output / name) for name in kept} == kept
    whole.check(output)
    return amid


@pytest.mark.long
def test_two_hundred_kills_at_any_time_change_no_byte(undisturbed, tmp_path, record_property):
    """More, where fewer than 80 of them came in the middle of work: that depends on the machine."""
    made = amid = 0
    while made < 200 or amid < 80:
        amid += kill_at_random(undisturbed, tmp_path, seed=made)
        made += 1
    text = f"prepare: {made} random SIGKILLs, {amid} of them in the middle of work"
    record_property("figure", text)


@pytest.mark.long
def test_some_kills_at_any_time_change_no_byte(undisturbed, tmp_path):
    amid = 0
    for seed in itertools.count(1000):
        amid += kill_at_random(undisturbed, tmp_path, seed)
        if seed >= 1011 and amid >= 2:
            return
