"""Checkpoints: published whole, verified on reading, and readable by transformers alone."""

import contextlib
import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from cocoseg.checkpoint import layout, save, verified
from cocoseg.checkpoint.network import load_network
from cocoseg.distributed.group import Group
from cocoseg.errors import CocosegError, ConfigError, DataError, StoreError
from cocoseg.storage import LocalPath, Location, locate
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train import resume
from cocoseg.train.run import RunResult
from thread_group import all_of
from transformers import AutoModelForSemanticSegmentation, pipeline

ALONE = Group(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(
    train_small: Callable[..., RunResult], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train_small(run)
    return run


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A finished run of two checkpoints, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def test_a_run_holds_what_the_design_promises(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "best", "last")
    }
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        *("step-00000003", "step-00000006")
    ]
    assert str((finished / "last").readlink()) == "checkpoints/step-00000006"
    assert (finished / "best").is_symlink()
    assert not (finished / "best").readlink().is_absolute()


@pytest.mark.usefixtures("image_processor")
def test_transformers_alone_reads_a_checkpoint(finished: Path, golden) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(finished / "last")
    assert list(model.config.id2label.values()) == list(coco_taxonomy().names)
    ours = load_network(str(finished / "checkpoints" / "step-00000006"), None).network  # type: ignore[arg-type]
    for name, value in ours.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    photo = next(golden.images("val").glob("*.jpg"))
    found = pipeline("image-segmentation", model=str(finished / "last"))(str(photo))
    assert {entry["label"] for entry in found} <= set(coco_taxonomy().names)


def write(run: Path, step: int) -> Path:
    """Write by hand what a checkpoint is, as small as can be."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "taxonomy.json"):
        (folder / name).write_text(f"{name} {step}")
    state = {"optimizer": {}, "scaler": {}, "bad_samples": [], "total_steps": 6, "identity": {}}
    state |= {"progress": {"step": step}, "settings": {}, "step": step}
    torch.save(state, folder / "training_state.pt")
    digests = {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    (folder / "digests.json").write_text(json.dumps(digests))
    return folder


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A run with checkpoints of the steps 1 to 6; `best` is 1, `last` is 6."""
    for step in range(1, 7):
        write(tmp_path, step)
    save.point(locate(tmp_path), "best", 1)
    save.point(locate(tmp_path), "last", 6)
    return tmp_path


def newest(run: Path) -> int | None:
    with resume.agree_on_newest(locate(run), ALONE) as found:
        return None if found is None else found.state.step


# ---- which one a run resumes from


def test_where_there_is_no_checkpoint_there_is_none(tmp_path: Path) -> None:
    for run in (tmp_path / "absent", tmp_path):
        assert newest(run) is None
        assert layout.list_steps(locate(run)) == []
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-of-mine").mkdir()
    (tmp_path / "checkpoints" / "step-00000005").write_text("a file")
    assert newest(tmp_path) is None


def test_where_every_checkpoint_is_damaged_nothing_is_started_over(
    finished: Path, train_small: Callable[..., RunResult]
) -> None:
    for path in (finished / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no checkpoint of the run is whole") as raised:
        train_small(finished)
    for step in (3, 6):
        assert f"step-0000000{step}: model.safetensors differs from its digest" in str(raised.value)


def test_a_local_folder_without_its_digests_is_a_damaged_checkpoint(written: Path) -> None:
    """Renaming brings and takes a local checkpoint whole: only damage leaves such a one."""
    for path in written.glob("checkpoints/*/digests.json"):
        path.unlink()
    assert layout.list_steps(locate(written)) == []
    with pytest.raises(DataError, match=r"digests\.json is missing"):
        newest(written)


def test_the_newest_counts_whatever_last_says(written: Path) -> None:
    """Killed between the checkpoint's name and the link."""
    save.point(locate(written), "last", 5)
    assert newest(written) == 6
    (written / "last").unlink()
    assert newest(written) == 6


def agree_where(
    monkeypatch: pytest.MonkeyPatch, run: Path, breaks: Callable[[int, int], None]
) -> list[object]:
    """Let three ranks agree, for some of whom some steps cannot be read."""
    read = verified.open_checkpoint
    here = threading.local()

    @contextlib.contextmanager
    def own(folder: Location) -> Iterator[verified.Checkpoint]:
        breaks(here.rank, int(folder.name[-8:]))
        with read(folder) as found:
            yield found

    def work(group: Group) -> object:
        here.rank = group.rank
        with resume.agree_on_newest(locate(run), group) as found:
            return found and found.state.step

    with monkeypatch.context() as patch:
        patch.setattr(resume, "open_checkpoint", own)
        return all_of(3, work)


def test_all_ranks_go_on_from_the_newest_that_every_one_can_read(
    written: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable = {(1, 6), (0, 5), (2, 5), (2, 4)}

    def breaks(rank: int, step: int) -> None:
        if (rank, step) in unreadable:
            raise DataError(f"step {step} is torn")

    assert agree_where(monkeypatch, written, breaks) == [3] * 3
    assert caplog.messages == [
        "checkpoint passed over: step 6 is torn (rank 1)",
        "checkpoint passed over: step 5 is torn",
        "checkpoint passed over: step 4 is torn (rank 2)",
    ]
    assert agree_where(monkeypatch, written / "absent", breaks) == [None] * 3


@pytest.mark.parametrize("torn", [0, 2])
def test_all_ranks_fail_with_the_same_words(
    written: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    def breaks(rank: int, step: int) -> None:
        if rank == torn:
            raise DataError(f"step {step} is torn")

    errors = agree_where(monkeypatch, written, breaks)
    assert {type(error) for error in errors} == {DataError}
    assert len(set(map(str, errors))) == 1
    assert str(errors[0]).count("is torn") == 6


def test_a_store_that_does_not_answer_one_rank_costs_no_progress(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going back to an older one would lose work for a fault that passes."""

    def breaks(rank: int, step: int) -> None:
        if rank == 1:
            raise StoreError("the store does not answer")

    errors = agree_where(monkeypatch, written, breaks)
    assert [(type(error), str(error)) for error in errors] == [
        (StoreError, "the store does not answer")
    ] * 3


# ---- what is kept


def test_pruning_spares_best_and_last(written: Path) -> None:
    save.prune(locate(written), keep_last=2, best_step=None)
    assert layout.list_steps(locate(written)) == [1, 5, 6]
    save.point(locate(written), "last", 5)
    save.prune(locate(written), keep_last=1, best_step=None)
    assert layout.list_steps(locate(written)) == [1, 5, 6]


@pytest.mark.parametrize("store", ["local", "remote"])
def test_a_broken_checkpoint_is_none_of_those_that_pruning_keeps(written: Path, store: str) -> None:
    run = locate(written)
    for step in (6, 4):
        (written / "checkpoints" / f"step-0000000{step}" / "model.safetensors").unlink()
    if store == "remote":
        run = locate("memory://pruning/run")
        run.remove()
        for path in written.glob("checkpoints/*/*"):
            name = path.relative_to(written).as_posix()
            (run / name).publish_bytes(path.read_bytes())
        (run / "best").publish_bytes(b"checkpoints/step-00000001")
    save.prune(run, keep_last=3, best_step=None)  # 5, 3 and 2
    assert layout.list_steps(run) == [1, 2, 3, 4, 5, 6]
    save.prune(run, keep_last=2, best_step=None)  # 5 and 3
    assert layout.list_steps(run) == [1, 3, 4, 5, 6]
    run.remove()


def test_a_kill_amidst_pruning_leaves_no_half_checkpoint(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def half(path: str, **_: object) -> None:
        next(Path(path).rglob("digests.json")).unlink()
        raise Killed

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(Killed):
        save.prune(locate(written), keep_last=2, best_step=None)
    monkeypatch.undo()
    names = {path.name for path in (written / "checkpoints").glob("step-*")}
    assert names == {f"step-0000000{step}" for step in (1, 2, 3, 5, 6)}
    with resume.run_lock(locate(written), ALONE):
        assert {path.name for path in (written / "checkpoints").iterdir()} == names


def test_pointers_follow_what_a_run_goes_on_from(
    written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = locate(written)
    save.restore_pointers(run, 5, 2)
    assert [layout.pointed_step(run, name) for name in ("last", "best")] == [5, 2]
    save.restore_pointers(run, 4, None)
    assert [layout.pointed_step(run, name) for name in ("last", "best")] == [4, 2]
    assert caplog.messages == []
    (written / "checkpoints" / "step-00000003" / "taxonomy.json").unlink()
    for gone in (3, 77):
        save.point(run, "best", 1)
        save.restore_pointers(run, 6, gone)
        assert not (written / "best").is_symlink()
    assert len(caplog.messages) == 2


def test_a_run_that_was_killed_after_its_last_checkpoint_finds_last_and_best(
    finished: Path, train_small: Callable[..., RunResult]
) -> None:
    best = (finished / "best").readlink()
    for name in ("last", "best"):
        save.point(locate(finished), name, 3)
    train_small(finished)
    assert str((finished / "last").readlink()) == "checkpoints/step-00000006"
    assert (finished / "best").readlink() == best


# ---- one training at a time


def test_a_second_training_is_refused_on_every_rank(tmp_path: Path) -> None:
    run = tmp_path / "run"
    before = None
    with resume.run_lock(locate(run), ALONE):
        before = sorted(run.iterdir())

        def lock(group: Group) -> None:
            with resume.run_lock(locate(run), group):
                raise AssertionError

        errors = all_of(3, lock)
        assert {type(error) for error in errors} == {ConfigError}
        assert {str(error) for error in errors} == {
            f"--output {run}: 'cocoseg train' (process {os.getpid()}) is at work in it; wait for "
            "it, or choose another folder"
        }
        assert sorted(run.iterdir()) == before
    with resume.run_lock(locate(run), ALONE):
        pass
    assert not run.exists()


def test_a_file_system_without_locks_is_trained_on_all_the_same(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    scratch = written / "checkpoints" / ".tmp-1-abcdefgh"
    scratch.mkdir()
    with resume.run_lock(locate(written), ALONE), resume.run_lock(locate(written), ALONE):
        assert newest(written) == 6
        assert scratch.exists()  # of another training, perhaps
    assert not (written / ".lock").exists()


def test_a_run_where_nothing_can_be_written_is_refused_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")

    def lock(run: Path) -> Callable[[Group], None]:
        def work(group: Group) -> None:
            with resume.run_lock(locate(run), group):
                raise AssertionError

        return work

    assert {str(error) for error in all_of(2, lock(tmp_path / "file"))} == {
        f"{tmp_path / 'file'}: is not a folder"
    }

    def makedirs(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "makedirs", makedirs)
    assert {str(error) for error in all_of(2, lock(tmp_path / "run"))} == {
        f"--output {tmp_path / 'run'}: cannot be written: Read-only file system; there is no "
        "checkpoint yet; make it writable, then run the same command again"
    }


def test_a_full_disk_leaves_the_checkpoint_before(
    finished: Path, train_small: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LocalPath, "publish_folder", full)
    with pytest.raises(CocosegError) as raised:
        train_small(finished, max_steps=9)
    assert raised.value.exit_code == 1
    assert str(raised.value) == (
        f"--output {finished}: cannot be written: No space left on device; the newest checkpoint, "
        "step-00000006, is kept; make room, then run the same command again"
    )
    assert layout.pointed_step(locate(finished), "last") == 6
    assert layout.list_steps(locate(finished)) == [3, 6]
    assert not list((finished / "checkpoints").glob(".tmp-*"))
    monkeypatch.undo()
    assert train_small(finished, max_steps=9).step == 9


def test_weights_may_be_read_by_whom_the_other_files_may(finished: Path) -> None:
    """safetensors' own files are their owner's alone."""
    for folder in (finished / "checkpoints").iterdir():
        assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_a_run_on_an_object_store_has_pointers_and_resumes(
    train_small: Callable[..., RunResult], tmp_path: Path
) -> None:
    run = "memory://checkpoint-test/run"
    locate(run).remove()
    config = {"save_dir": run}
    train_small(tmp_path, max_steps=6, val_every=3, **config)
    assert locate(f"{run}/last").read_bytes() == b"checkpoints/step-00000006\n"
    assert {"config.yaml", "metrics.jsonl", "best", "last"} <= set(locate(run).list_files())
    local = tmp_path / "local"
    train_small(local)
    for name in ("model.safetensors", "config.json"):
        there = locate(f"{run}/checkpoints/step-00000006/{name}").read_bytes()
        assert there == (local / "last" / name).read_bytes()
    assert train_small(tmp_path, max_steps=6, val_every=3, **config).step == 6
