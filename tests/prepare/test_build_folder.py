"""Who may write into an output, when it is full or gone, and what --overwrite removes."""

import errno
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import faults
import pytest
from cocoseg.errors import CocosegError, ConfigError, DataError
from cocoseg.prepare.build import prepare_shards
from cocoseg.storage import LocalPath, output


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    yield
    faults.stop_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, coco_set_class):
    folder = tmp_path_factory.mktemp("undisturbed")
    drawn = faults.draw(coco_set_class(folder / "set"))
    return {name: faults.undisturbed(drawn, folder, name) for name in faults.SCENARIOS}


@pytest.fixture
def whole(undisturbed):
    return undisturbed["whole"]


def stop_at(name, call, config, log):
    """Kill a build at a failpoint; it was in the middle of work."""
    moment = faults.Moment(faults.POINTS[name], call)
    faults.start(config, log, lambda: moment.watch(faults.die)).wait()
    assert moment.reached
    moment.close()
    assert (Path(config.output) / ".building" / "plan.json").exists()


def test_an_unfinished_build_of_other_versions_is_restarted_not_mixed(whole, tmp_path, caplog):
    output = tmp_path / "shards"
    config = whole.config(output, "inline")
    stop_at("renamed-shard", 3, config, tmp_path / "log")
    plan = output / ".building" / "plan.json"
    content = json.loads(plan.read_text())
    del content["versions"]["zlib-ng"]
    content["versions"]["isal"] = "1.9.1"
    plan.write_text(json.dumps(content))
    first = output / "shard-000000.tar"
    os.utime(first, (1, 1))
    prepare_shards(config)
    assert "restarting it" in caplog.text
    assert first.stat().st_mtime > 1
    whole.check(output)


@pytest.mark.parametrize("scenario", faults.SCENARIOS)
@pytest.mark.parametrize(
    "content",
    [
        *("", "[" * 100_000, '{"tax', "[]", "5", "null", '{"settings": {}, "other": 1}'),
        '{"settings": 5, "versions": {}, "taxonomy": {}, "sources": []}',
        '{"settings": {"split": "x"}, "versions": {}, "taxonomy": {}, "sources": []}',
    ],
)
def test_a_damaged_plan_is_told_and_overwrite_starts_again(
    undisturbed, tmp_path, content, scenario
):
    whole, output = undisturbed[scenario], tmp_path / "shards"
    config = whole.config(output, "inline")
    stop_at("renamed-shard", 3, config, tmp_path / "log")
    (output / ".building" / "plan.json").write_text(content)
    before = faults.files(output)
    with pytest.raises(DataError, match=r"plan.json of the unfinished build is damaged"):
        prepare_shards(config)
    assert faults.files(output) == before
    prepare_shards(whole.config(output, "inline", overwrite=True))
    whole.check(output)


# ---- the lock


def test_a_second_prepare_is_refused_and_a_dead_one_is_no_obstacle(whole, tmp_path, run_cocoseg):
    output = tmp_path / "shards"
    moment = faults.Moment(faults.POINTS["rename-shard"], 2)
    config = whole.config(output, "inline")
    first = faults.start(config, tmp_path / "log", lambda: moment.watch(faults.stand_still))
    moment.wait()
    before = faults.files(output)
    flags = (*whole.coco_set.flags, "--output", output, "--samples-per-shard", 3)
    for more in (
        (),
        ("--overwrite",),
        ("--overlap", "order"),
        ("--overlap", "order", "--overwrite"),
    ):
        second = run_cocoseg("prepare", *flags, *more)
        assert second.code == 2
        assert f"'cocoseg prepare' (process {first.pid}) is at work in it" in second.err
    assert faults.files(output) == before
    first.kill(signal.SIGKILL)
    first.wait()
    moment.close()
    prepare_shards(config)
    whole.check(output)


def test_a_prepare_that_waited_for_the_lock_of_one_that_ended_finds_the_output_complete(
    whole, tmp_path, monkeypatch
):
    """The other one ended between the first look and the lock."""
    shards = tmp_path / "shards"
    config = whole.config(shards, "inline")
    exclusive, waited = output.exclusive, []

    def after_another(*arguments):
        if not waited:
            waited.append(True)
            assert faults.start(config, tmp_path / "log").wait().code == 0
        return exclusive(*arguments)

    monkeypatch.setattr(output, "exclusive", after_another)
    prepare_shards(config)
    assert waited
    whole.check(shards)


def test_a_refused_output_is_left_as_it_was(whole, tmp_path):
    output = tmp_path / "shards"
    output.mkdir()
    (output / "shard-000000.tar").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="unknown origin"):
            prepare_shards(whole.config(output, "inline", overwrite=overwrite))
        assert faults.files(output) == {"shard-000000.tar": b"mine"}
        assert faults.leftovers(output) == []


# ---- the disk


def test_a_disk_that_will_be_full_is_refused_before_any_shard(whole, tmp_path, monkeypatch):
    output = tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr(LocalPath, "free_space", lambda self: 1000)
        with pytest.raises(CocosegError, match=r"kB are free; make room, or take fewer images"):
            prepare_shards(whole.config(output, "inline"))
        assert not list(output.rglob("*.tar"))
    prepare_shards(
        whole.config(output, "inline", limit=4)
    )  # as it said: other settings are no problem
    assert len(list(output.glob("*.tar"))) == 2
    assert faults.leftovers(output) == []


def test_an_output_that_vanishes_is_never_called_complete(whole, tmp_path):
    output = tmp_path / "shards"
    points = [("published-shard", call) for call in range(1, 8)] + [("between-passes", 1)]
    for engine, (name, call) in itertools.product(faults.ENGINES, points):
        moment = faults.Moment(faults.POINTS[name], call)
        ended = faults.start(
            whole.config(output, engine),
            tmp_path / "log",
            lambda moment=moment: moment.watch(lambda: output.rename(tmp_path / "elsewhere")),
        ).wait()
        assert moment.reached
        moment.close()
        assert ended.code == 1, ended
        assert "run the same command again" in ended.text
        assert not (output / "manifest.json").exists()
        assert faults.start(whole.config(output, engine), tmp_path / "log").wait().code == 0
        whole.check(output)
        shutil.rmtree(output)
        shutil.rmtree(tmp_path / "elsewhere")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", ["lock", "write-plan", "scratch-folder", "write-record"])
def test_an_output_that_cannot_be_written_is_told(whole, tmp_path, name, number):
    moment = faults.Moment(faults.POINTS[name], 1)
    ended = faults.start(
        whole.config(tmp_path / "shards"),
        tmp_path / "log",
        lambda: moment.watch(faults.fail(number)),
    ).wait()
    moment.close()
    assert ended.code == 1, ended
    assert "make it writable, then run the same command again" in ended.text
    assert str(tmp_path / "shards") in ended.text


# ---- --overwrite


OTHER = {
    "settings": {"overlap": "order"},
    "shorter": {"limit": 4},
    "split": {"split": "train=0.6,val=0.4"},
    "other-split": {"split": "train=0.5,test=0.5"},
}


def foreign_files(output: Path) -> dict[str, bytes]:
    """Put files there that no build may touch."""
    for name in ("notes.txt", "train/notes.txt", "mine/shard-000000.tar", "shard-1.txt"):
        (output / name).parent.mkdir(exist_ok=True, parents=True)
        (output / name).write_bytes(b"mine")
    return {path: content for path, content in faults.files(output).items() if content == b"mine"}


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "unfinished"])
@pytest.mark.parametrize("scenario", faults.SCENARIOS)
@pytest.mark.parametrize("earlier", OTHER.values(), ids=OTHER)
def test_overwrite_removes_what_an_earlier_build_wrote_and_nothing_else(
    undisturbed, tmp_path, scenario, earlier, complete
):
    whole, output = undisturbed[scenario], tmp_path / "shards"
    first = whole.config(output, "inline", **earlier)
    if complete:
        prepare_shards(first)
    else:
        stop_at("write-record", 2, first, tmp_path / "log")
    mine = foreign_files(output)
    if first.model_dump() == whole.config(output, "inline").model_dump():
        prepare_shards(whole.config(output, "inline"))
    else:
        before = faults.files(output)
        with pytest.raises(ConfigError, match=r"there, .* now"):
            prepare_shards(whole.config(output, "inline"))
        assert faults.files(output) == before
    prepare_shards(whole.config(output, "inline", overwrite=True))
    assert faults.files(output) == whole.files | mine
    assert faults.leftovers(output) == []


def test_overwrite_spares_a_folder_in_which_a_stranger_put_a_tar(whole, tmp_path):
    output = tmp_path / "shards"
    prepare_shards(whole.config(output, "inline", overlap="order"))
    (output / "mine.tar").write_bytes(b"mine")
    before = faults.files(output)
    with pytest.raises(ConfigError, match=r"mine\.tar of unknown origin"):
        prepare_shards(whole.config(output, "inline", overwrite=True))
    assert faults.files(output) == before


def test_a_split_beside_folders_that_were_prepared_by_themselves_leaves_them_alone(
    undisturbed, tmp_path
):
    whole, split = undisturbed["whole"], undisturbed["split"]
    prepare_shards(whole.config(tmp_path / "all" / "other", "inline"))
    prepare_shards(split.config(tmp_path / "all", "inline"))
    prepare_shards(split.config(tmp_path / "all", "inline", overlap="order", overwrite=True))
    whole.check(tmp_path / "all" / "other")


def kill_while_overwriting(whole, tmp_path, call):
    """Kill a build at its n-th removal, and run it again; return whether there were so many."""
    output = tmp_path / f"shards-{call}"
    config = whole.config(output, "inline", overwrite=True)
    prepare_shards(whole.config(output, "inline", overlap="order"))
    mine = foreign_files(output)
    moment = faults.Moment(faults.Failpoint("remove", LocalPath, "remove"), call)
    faults.start(config, tmp_path / "log", lambda: moment.watch(faults.die)).wait()
    reached = moment.reached
    moment.close()
    ended = faults.start(config, tmp_path / "log").wait()
    assert (ended.code, ended.text) == (0, "")
    assert faults.files(output) == whole.files | mine
    assert faults.leftovers(output) == []
    return reached


@pytest.mark.parametrize("call", [1, 2, 7, 9, 12])
def test_overwriting_may_be_killed_here_and_there(whole, tmp_path, call):
    assert kill_while_overwriting(whole, tmp_path, call)


@pytest.mark.long
@pytest.mark.parametrize("scenario", faults.SCENARIOS)
def test_overwriting_may_be_killed_anywhere(undisturbed, tmp_path, scenario):
    calls = itertools.count(1)
    killed = itertools.takewhile(
        lambda call: kill_while_overwriting(undisturbed[scenario], tmp_path, call), calls
    )
    assert len(list(killed)) >= 10
