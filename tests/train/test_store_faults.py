"""A run in an object store whose requests fail: nothing ends while the store recovers in time."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cocoseg.checkpoint import save
from cocoseg.checkpoint.save import NotStored
from cocoseg.errors import CocosegError
from cocoseg.storage import locate, output, retry
from cocoseg.train import trainer
from object_store import Rule, Store

FAULTS = ("429", "500", "503", "reset", "slow")
WRITTEN = {
    "config": r"/config\.yaml",
    "weights": r"model\.safetensors",
    "training state": r"training_state\.pt",
    "digests": r"digests\.json",
    "last": r"/last$",
    "best": r"/best$",
    "metrics": r"metrics\.jsonl",
    "TensorBoard": r"tensorboard/",
}
SOME = ("weights", "removal")
"""What the short tests try, with one fault."""
REMOVED = "(POST|DELETE)"  # of many objects, and of one
SETTINGS = {"max_steps": 6, "val_every": 3, "checkpoint_every": 2, "keep_last": 1, "pictures": 1}


@pytest.fixture(scope="module")
def weights(train_small: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last weights of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train_small(folder, **SETTINGS)
    return (folder / "last" / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The local copies that are kept of checkpoints."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return lambda: [path.name for path in (tmp_path / "tmp").glob("*/step-*")]


def check(run: str, weights: bytes) -> None:
    """The run is complete, and its last checkpoint is that of the undisturbed run."""
    last = locate(f"{run}/last").read_bytes().decode().strip()
    assert last == "checkpoints/step-00000006"
    assert locate(f"{run}/{last}/model.safetensors").read_bytes() == weights
    lines = locate(f"{run}/metrics.jsonl").read_bytes().splitlines()
    assert sum(b'"loss"' in line for line in lines) == 6


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(
            *(name, fault), marks=() if fault == "503" and name in SOME else pytest.mark.long
        )
        for name in (*WRITTEN, "removal")
        for fault in FAULTS
    ],
)
def test_a_fault_that_passes_changes_nothing(
    store: Store, train_small: Any, weights: bytes, name: str, fault: str, kept: Any
) -> None:
    run = f"s3://shards/runs/{name.replace(' ', '-')}-{fault}"
    method = REMOVED if name == "removal" else "PUT"
    rules = [Rule(fault, WRITTEN.get(name, ""), times=3, method=method)]
    store.proxy.rules[:] = rules
    train_small(run, **SETTINGS)
    assert rules[0].struck == 3
    store.proxy.rules.clear()
    check(run, weights)
    assert kept() == []


def test_a_checkpoint_that_the_store_does_not_take_is_kept_and_the_next_one_is_written(
    store: Store, train_small: Any, weights: bytes, caplog: pytest.LogCaptureFixture, kept: Any
) -> None:
    run = "s3://shards/runs/one-lost"
    rule = Rule("503", r"step-00000002/model\.safetensors", times=None, method="PUT")
    store.proxy.rules[:] = [rule]
    train_small(run, **SETTINGS)
    assert rule.struck == retry.ATTEMPTS
    told = r"model\.safetensors: cannot be written: HTTP 503: .*tried 6 times; a copy of the "
    told += r"checkpoint is kept in .*; training continues, and the next checkpoint tries again"
    assert re.search(told, caplog.text)
    check(run, weights)
    assert kept() == []


@pytest.mark.parametrize(
    "name",
    ["TensorBoard", *(pytest.param(n, marks=pytest.mark.long) for n in ("metrics", "removal"))],
)
def test_what_only_accompanies_a_run_never_ends_it(
    store: Store, train_small: Any, weights: bytes, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    run = f"s3://shards/runs/without-{name}"
    method = REMOVED if name == "removal" else "PUT"
    at_start = name == "metrics"  # the empty file: without it a run does not begin
    rule = Rule("503", WRITTEN.get(name, ""), times=None, skip=at_start, method=method)
    if name == "removal":
        rule.path = "delete"  # of many objects: checkpoints
    store.proxy.rules[:] = [rule]
    train_small(run, **SETTINGS)
    store.proxy.rules.clear()
    assert rule.struck
    assert "HTTP 503" in caplog.text
    last = locate(f"{run}/last").read_bytes().decode().strip()
    assert locate(f"{run}/{last}/model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "name",
    ["weights", *(pytest.param(n, marks=pytest.mark.long) for n in ("config", "digests", "last"))],
)
def test_a_store_that_fails_for_good_ends_a_run_and_the_same_command_completes_it(
    store: Store, train_small: Any, weights: bytes, name: str, kept: Any
) -> None:
    run = f"s3://shards/runs/for-good-{name}"
    store.proxy.rules[:] = [Rule("503", WRITTEN[name], times=None, method="PUT")]
    with pytest.raises(CocosegError, match=r"cannot be written: HTTP 503: .*tried 6 times"):
        train_small(run, **SETTINGS)
    assert kept() == (["step-00000006"] if name in ("weights", "digests") else [])
    store.proxy.rules.clear()
    train_small(run, **SETTINGS)
    check(run, weights)


def test_errors_of_one_rank_reach_the_others_whole() -> None:
    """`Group.gather` pickles them."""
    for refused in (False, True):
        error = pickle.loads(pickle.dumps(NotStored("full", "/tmp/kept", refused)))
        assert (str(error), error.kept, error.refused) == (
            "full; a copy of the checkpoint is kept in /tmp/kept",
            "/tmp/kept",
            refused,
        )
    waiting = [CocosegError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__init__ is CocosegError.__init__:
            error = pickle.loads(pickle.dumps(kind("text")))
            assert (type(error), str(error)) == (kind, "text")


def test_a_store_that_denies_access_ends_a_run_at_once(
    store: Store, train_small: Any, kept: Any
) -> None:
    run = "s3://shards/runs/denied"
    store.proxy.rules[:] = [Rule("denied", r"step-00000002/", times=None, method="PUT")]
    with pytest.raises(NotStored, match="access is denied: HTTP 403") as raised:
        train_small(run, **SETTINGS)
    assert raised.value.refused
    assert kept() == ["step-00000002"]


def test_a_store_that_answers_nothing_costs_no_step(
    store: Store,
    train_small: Any,
    weights: bytes,
    caplog: pytest.LogCaptureFixture,
    kept: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not only writes fail: nobody can even look whose output it is."""
    run = "s3://shards/runs/down"
    write = trainer.Trainer._write_checkpoint

    def down(self: trainer.Trainer) -> None:
        if self.now.step > 2:
            store.proxy.rules[:] = [Rule("503", "runs", times=None, method="")]
        write(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_write_checkpoint", down)
        with pytest.raises(NotStored, match="a copy of the checkpoint is kept in"):
            train_small(run, **SETTINGS)
    assert "training continues, and the next checkpoint tries again" in caplog.text
    assert kept() == ["step-00000006"]
    store.proxy.rules.clear()
    monkeypatch.setattr(output, "LEASE", 0.5)  # nobody could remove that of the first command
    train_small(run, **SETTINGS)
    check(run, weights)


def test_a_copy_outlives_a_checkpoint_that_is_written_nowhere(
    store: Store, train_small: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the copy itself has filled the disk."""
    run = "s3://shards/runs/full"
    original, calls = save.save_checkpoint, []

    def full(*arguments: Any) -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            raise CocosegError("No space left on device")
        original(*arguments)

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    store.proxy.rules[:] = [Rule("503", r"step-00000002/", times=None, method="PUT")]
    with pytest.raises(CocosegError, match="No space left"):
        train_small(run, **SETTINGS)
    assert kept() == ["step-00000002"]


def test_a_pointer_that_cannot_be_written_costs_no_checkpoint(
    store: Store, train_small: Any, weights: bytes, caplog: pytest.LogCaptureFixture, kept: Any
) -> None:
    run = "s3://shards/runs/pointer"
    rule = Rule("503", r"/last$", times=retry.ATTEMPTS, method="PUT")
    store.proxy.rules[:] = [rule]
    train_small(run, **SETTINGS)
    assert rule.struck == retry.ATTEMPTS
    assert re.search(r"/last: cannot be written: HTTP 503.*training continues", caplog.text)
    check(run, weights)
    assert kept() == []
