"""Old checkpoints are removed beside training; a removal that fails ends no run."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cocoseg.checkpoint.layout import list_steps
from cocoseg.errors import CocosegError
from cocoseg.storage import locate
from cocoseg.train import pruning
from cocoseg.train.pruning import Pruning
from cocoseg.train.run import RunResult

Train = Callable[..., RunResult]


def test_who_begins_a_removal_does_not_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), []

    def slow(run: str, keep_last: int, best_step: int | None) -> None:
        begun.set()
        assert go_on.wait(600)
        ended.append((run, keep_last, best_step))

    monkeypatch.setattr(pruning, "prune", slow)
    one = Pruning()
    one.start("run", 3, None)
    assert begun.wait(600)
    assert ended == []
    one.start("run", 3, 5)
    one.start("run", 3, 6)  # in place of the one before, which has not begun
    assert ended == []
    go_on.set()
    one.finish()
    assert ended == [("run", 3, None), ("run", 3, 6)]
    one.finish()


@pytest.mark.parametrize("error", [CocosegError("no such bucket"), OSError(5, "I/O error")])
def test_a_removal_that_fails_is_a_warning(
    train_small: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(pruning, "prune", failing)
    with caplog.at_level(logging.WARNING):
        assert train_small(tmp_path, val_every=2, keep_last=1).step == 6
    assert list_steps(locate(tmp_path)) == [2, 4, 6]
    told = [record for record in caplog.records if "could not be removed" in record.message]
    assert len(told) == 3
    assert str(error) in told[0].message


def test_a_run_ends_with_what_is_to_be_kept(train_small: Train, tmp_path: Path) -> None:
    result = train_small(tmp_path, checkpoint_every=1, val_every=6, keep_last=2)
    assert list_steps(locate(tmp_path)) == [5, 6]
    assert result.best_step == 6
