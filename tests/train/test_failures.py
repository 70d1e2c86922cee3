"""What fails costs no step that was done and is reported once; what cannot be meant is refused."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cocoseg.checkpoint.layout import list_steps
from cocoseg.distributed import group as group_module
from cocoseg.distributed.group import Group, process_group
from cocoseg.errors import CocosegError, ConfigError, DataError, StoreError
from cocoseg.shards.reader import ShardSet
from cocoseg.storage import LocalPath, locate
from cocoseg.train.config import TrainConfig
from cocoseg.train.run import RunResult, forecast
from cocoseg.train.run_log import RunLog
from cocoseg.train.run_plan import agree_on_plan, plan_run
from small_runs import AUGMENT, MODEL, SMALL, assert_same_weights, journal
from thread_group import all_of

Train = Callable[..., RunResult]


# ---- what fails costs no step that was done


@pytest.mark.parametrize("kind", [DataError, RuntimeError])
def test_a_validation_that_fails_costs_no_step(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    from cocoseg.train import validation

    def fails(*_: object) -> None:
        raise kind("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(validation, "totals_of", fails)
        with pytest.raises(kind, match="no memory"):
            train_small(tmp_path)
    assert list_steps(locate(tmp_path)) == [3]
    train_small(tmp_path)
    train_small(tmp_path.with_name("whole"))
    assert_same_weights(tmp_path, tmp_path.with_name("whole"))
    steps = [line["step"] for line in journal(tmp_path) if "val_mIoU" in line]
    assert steps == [3, 6]  # what was owed was made up for


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreError("the store does not answer"), "the store does not answer"),
        (RuntimeError("worker 3 is gone"), r"the loader failed: worker 3 is gone(.|\n)*Traceback"),
    ],
)
def test_a_loader_that_fails_costs_no_step(
    train_small: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    reads = 0
    read = ShardSet.read_many

    def fails(self, numbers):
        nonlocal reads
        reads += 1
        if reads == 4:  # the second micro-batch of the second step
            raise error
        return read(self, numbers)

    monkeypatch.setattr(ShardSet, "read_many", fails)
    with pytest.raises(CocosegError, match=told):
        train_small(tmp_path)
    assert list_steps(locate(tmp_path)) == [1]


def test_a_journal_that_cannot_be_written_ends_the_run_after_saving(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunLog.write

    def fails(self, step: int, **values: object) -> None:
        if step == 2:
            raise CocosegError("metrics.jsonl cannot be written")
        write(self, step, **values)

    monkeypatch.setattr(RunLog, "write", fails)
    with pytest.raises(CocosegError, match="cannot be written"):
        train_small(tmp_path)
    assert list_steps(locate(tmp_path)) == [2]


def test_scores_that_could_not_be_written_are_measured_again(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunLog.write

    def fails(self, step: int, **values: object) -> None:
        if "val_mIoU" in values:
            raise CocosegError("metrics.jsonl cannot be written")
        write(self, step, **values)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "write", fails)
        with pytest.raises(CocosegError, match="cannot be written"):
            train_small(tmp_path)
    assert list_steps(locate(tmp_path)) == [3]
    assert train_small(tmp_path).best_step in (3, 6)
    assert [line["step"] for line in journal(tmp_path) if "val_mIoU" in line] == [3, 6]


def test_what_ends_a_run_is_told_and_not_what_fails_at_its_end(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise CocosegError("at the end")

    def first(*_: object, **__: object) -> None:
        raise CocosegError("first")

    monkeypatch.setattr(RunLog, "close", fails)
    monkeypatch.setattr("cocoseg.train.trainer.save_checkpoint", first)
    with pytest.raises(CocosegError, match="first"):
        train_small(tmp_path)


@pytest.mark.parametrize("name", ["config.yaml", "bad-samples.jsonl"])
def test_files_that_cannot_be_written_are_told_in_plain_words(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fails(self: LocalPath, *more: object) -> None:
        if self.name == name:
            raise PermissionError(13, "Permission denied", self.url)

    monkeypatch.setattr(LocalPath, "publish_bytes", fails)
    monkeypatch.setattr(LocalPath, "remove", fails)
    message = (
        rf"cannot be written: Permission denied \(.*{name}\); there is no checkpoint yet; make"
    )
    with pytest.raises(CocosegError, match=message):
        train_small(tmp_path)


def test_a_group_is_left_together_or_by_the_dead_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Destroying it waits for the others on GPUs, who may wait for this process."""
    destroyed: list[bool] = []
    for name in ("init_process_group", "new_group"):
        monkeypatch.setattr(group_module.dist, name, lambda *_, **__: None)
    monkeypatch.setattr(group_module.dist, "destroy_process_group", lambda: destroyed.append(True))
    monkeypatch.setattr(group_module, "join", lambda patience: (None, 0, 2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    shared = CocosegError("of all")
    shared.shared = True
    for error, times in ((None, 1), (shared, 1), (CocosegError("of one"), 0), (MemoryError(), 0)):
        destroyed.clear()
        with contextlib.suppress(CocosegError, MemoryError), process_group("cpu"):
            if error is not None:
                raise error
        assert len(destroyed) == times, error


def test_what_fails_on_rank_0_alone_is_told_once_and_ends_all(torchrun, tmp_path: Path) -> None:
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    ran = torchrun(tmp_path / "run", 2)
    _, err = ran.communicate(timeout=600)
    assert ran.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1, err
    assert "metrics.jsonl" in told[0]
    assert "RuntimeError" not in err  # gloo's, of a process whose others are gone


# ---- what cannot be meant is refused


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"patience": 3, "val_shards": ()}, "train.patience: without --val-shards"),
        ({"no_weight_decay": ["*.patch_embedding.*"]}, r"patch_embedding\.\*' names no parameter"),
        ({"device": "cuda:7"}, "device 'cuda:7'"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    train_small: Train, tmp_path: Path, settings: dict, named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        train_small(tmp_path / "run", **settings)
    assert not list(tmp_path.glob("run/*"))


def test_a_forecast_refuses_what_the_run_would(train_small: Train, tmp_path: Path, golden) -> None:
    train_small(tmp_path, max_steps=1)
    config = TrainConfig.model_validate(
        {**SMALL, "shards": (str(golden.shards("train")),), "save_dir": str(tmp_path)}
    )
    told = forecast(config, MODEL, AUGMENT).to_dict()
    assert told["from_step"] == 1
    never = config.model_copy(update={"resume": "never"})
    with pytest.raises(ConfigError, match="holds a run already"):
        forecast(never, MODEL, AUGMENT)
    absent = config.model_copy(update={"device": "cuda:7"})
    with pytest.raises(ConfigError, match="cuda:7"):
        forecast(absent, MODEL, AUGMENT)


def test_a_forecast_is_told_once(tmp_path: Path, golden, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.model_validate(
        {**SMALL, "shards": (str(golden.shards("train")),), "save_dir": str(tmp_path)}
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert forecast(config, MODEL, AUGMENT).to_dict()["processes"] == 2
    monkeypatch.setenv("RANK", "1")
    assert forecast(config, MODEL, AUGMENT) is None


@pytest.mark.parametrize("differs", ["settings", "validation shards"])
def test_processes_that_were_started_differently_are_refused(
    golden, tmp_path: Path, differs: str
) -> None:
    def agree(group: Group) -> None:
        last = group.rank == 2
        val = golden.shards("train" if differs == "validation shards" and last else "val")
        config = TrainConfig.model_validate(
            {
                **SMALL,
                "shards": (str(golden.shards("train")),),
                "val_shards": (str(val),),
                "save_dir": str(tmp_path / str(group.rank)),  # a machine's own
                "val_every": 5 if differs == "settings" and last else 3,
            }
        )
        agree_on_plan(plan_run(config, MODEL, AUGMENT), group)

    told = all_of(3, agree)
    assert {type(error) for error in told} == {ConfigError}
    (text,) = set(map(str, told))
    expected = "train.val_every: 3 there, 5 on rank 2" if differs == "settings" else differs
    assert expected in text
    assert len(text.splitlines()) == 2
    assert all(error.shared for error in told)  # one tells


def test_each_process_tells_of_a_gpu_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(CocosegError, match=r"^rank 1: device 'cuda': ") as raised,
        process_group("cuda"),
    ):
        raise AssertionError
    assert not raised.value.shared
