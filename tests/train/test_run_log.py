"""What a run writes: JSON lines and TensorBoard, without a trace of steps that were lost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cocoseg.errors import CocosegError
from cocoseg.storage import locate
from cocoseg.train.run_log import RunLog
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginAccumulator,
)
from tensorboard.summary.writer.event_file_writer import AtomicCounter


@pytest.fixture(autouse=True)
def files_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the numbers in the names of event files of one second have equally many digits."""
    counter = AtomicCounter(1000)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer._global_uid", counter)


def lines(run: Path) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (run / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def stored_steps(run: Path, tag: str) -> list[int]:
    """Steps of a tag in the order of the files, read with no logic of restarts at all."""
    found = []
    for file in sorted((run / "tensorboard").iterdir()):
        for event in EventFileLoader(str(file)).Load():
            found += [event.step for value in event.summary.value if value.tag == tag]
    return found


def shown(run: Path) -> EventAccumulator:
    board = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return board.Reload()


def note(run_log: RunLog, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run_log.write(step, loss=step / 10, learning_rate={"head": 1.0, "backbone": 0.1})
        run_log.picture(step, "validation/7", np.full((4, 6, 3), step, np.uint8))


def test_scalars_and_pictures_are_what_was_written(tmp_path: Path) -> None:
    run_log = RunLog(locate(tmp_path), 0, 0)
    note(run_log, 1, 3)
    run_log.close()
    rates = {"head": 1.0, "backbone": 0.1}
    assert lines(tmp_path) == [
        {"step": step, "loss": step / 10, "learning_rate": rates} for step in (1, 2, 3)
    ]
    board = shown(tmp_path)
    assert [(e.step, round(e.value, 6)) for e in board.Scalars("loss")] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
    ]
    assert [e.value for e in board.Scalars("learning_rate/head")] == [1.0] * 3
    (picture, *_) = board.Images("validation/7")
    assert (picture.step, picture.height, picture.width) == (1, 4, 6)


@pytest.mark.parametrize("done", [0, 3, 9, 10, 25])
def test_a_resumed_run_forgets_what_lies_beyond_its_checkpoint(tmp_path: Path, done: int) -> None:
    killed = RunLog(locate(tmp_path), 0, 0)
    note(killed, 1, 10)
    killed.close()
    resumed = RunLog(locate(tmp_path), done, done)
    kept = list(range(1, min(done, 10) + 1))
    for tag in ("loss", "validation/7", "learning_rate/head"):
        assert stored_steps(tmp_path, tag) == kept  # before anything new is written
    note(resumed, done + 1, done + 2)
    resumed.close()
    steps = [*kept, done + 1, done + 2]
    assert [line["step"] for line in lines(tmp_path)] == steps
    for tag in ("loss", "validation/7", "learning_rate/head"):
        assert stored_steps(tmp_path, tag) == steps
    board = shown(tmp_path)
    assert [e.step for e in board.Scalars("loss")] == steps
    assert [e.step for e in board.Images("validation/7")] == steps


def test_scores_that_are_measured_again_are_forgotten(tmp_path: Path) -> None:
    """Killed after a validation was written, and before it was saved."""
    killed = RunLog(locate(tmp_path), 0, 0)
    note(killed, 1, 4)
    for step in (2, 4):
        killed.write(step, val_mIoU=0.5)
    killed.close()
    RunLog(locate(tmp_path), 4, 2).close()
    told = lines(tmp_path)
    assert [line["step"] for line in told if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in told if "val_mIoU" in line] == [2]
    assert stored_steps(tmp_path, "loss") == [1, 2, 3, 4]
    assert stored_steps(tmp_path, "val_mIoU") == [2]
    assert stored_steps(tmp_path, "validation/7") == [1, 2]


def test_many_restarts_leave_one_lineage(tmp_path: Path) -> None:
    for done in (0, 5, 2, 2, 4, 0, 3):
        run_log = RunLog(locate(tmp_path), done, done)
        note(run_log, done + 1, done + 4)
        run_log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert stored_steps(tmp_path, "loss") == [1, 2, 3, 4, 5, 6, 7]


def test_a_tensorboard_that_watches_a_restart_forgets_too(tmp_path: Path) -> None:
    first = RunLog(locate(tmp_path), 0, 0)
    note(first, 1, 10)
    first.flush()
    board = PluginAccumulator(str(tmp_path / "tensorboard"), tensor_size_guidance={}).Reload()
    assert len(board.Tensors("validation/7")) == 10
    second = RunLog(locate(tmp_path), 4, 4)
    second.flush()
    board.Reload()
    for tag in ("loss", "validation/7"):
        assert [event.step for event in board.Tensors(tag)] == [1, 2, 3, 4]
    first._board.close()
    second.close()


def test_a_killed_run_may_leave_half_a_line_and_half_an_event_anywhere(tmp_path: Path) -> None:
    run_log = RunLog(locate(tmp_path / "whole"), 0, 0)
    note(run_log, 1, 4)
    run_log.close()
    (events,) = (tmp_path / "whole" / "tensorboard").iterdir()
    content, text = events.read_bytes(), (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    for cut in np.random.default_rng(0).integers(1, 400, 25):
        run = tmp_path / f"cut-{cut}"
        (run / "tensorboard").mkdir(parents=True, exist_ok=True)
        (run / "tensorboard" / events.name).write_bytes(content[: -int(cut)])
        (run / "metrics.jsonl").write_bytes(text[: -(int(cut) % len(text))])
        whole_lines = text[: -(int(cut) % len(text))].count(b"}}")
        resumed = RunLog(locate(run), 9, 9)
        note(resumed, 10, 10)
        resumed.close()
        assert [line["step"] for line in lines(run)] == [*range(1, whole_lines + 1), 10]
        kept = stored_steps(run, "loss")
        assert kept == [*range(1, len(kept)), 10]


@pytest.mark.parametrize("garbage", [b"\0\0\0\0", b"\xff\xfe{", b"{}", b"[1]", b'{"step": null}'])
def test_what_is_no_line_of_ours_is_dropped(tmp_path: Path, garbage: bytes) -> None:
    good = b'{"step": 1, "loss": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + garbage)
    RunLog(locate(tmp_path), 5, 5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good


def test_json_lines_never_hold_nan(tmp_path: Path) -> None:
    run_log = RunLog(locate(tmp_path), 0, 0)
    run_log.write(
        1,
        loss=float("nan"),
        norm=np.float64("inf"),
        per_class={"cat": float("nan"), "dog": 0.5},
        several=[1.0, float("-inf"), None],
        absent=None,
        count=3,
        what="text",
    )
    run_log.close()
    assert lines(tmp_path) == [
        {
            "step": 1,
            "loss": None,
            "norm": None,
            "per_class": {"cat": None, "dog": 0.5},
            "several": [1.0, None, None],
            "absent": None,
            "count": 3,
            "what": "text",
        }
    ]
    tags = shown(tmp_path).Tags()["scalars"]
    assert sorted(tags) == ["count", "loss", "norm", "per_class/cat", "per_class/dog"]


def test_what_was_written_before_a_checkpoint_survives_a_kill(tmp_path: Path) -> None:
    run_log = RunLog(locate(tmp_path), 0, 0)
    note(run_log, 1, 5)
    run_log.flush()  # as each checkpoint does; the run_log is never closed
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]
    assert stored_steps(tmp_path, "validation/7") == [1, 2, 3, 4, 5]
    run_log._board.close()


def test_on_an_object_store_the_files_arrive_and_are_cut_too(tmp_path: Path) -> None:
    run = locate("memory://journal-test/run")
    import fsspec

    fs = fsspec.filesystem("memory")

    def copied(name: str) -> Path:
        local = tmp_path / name
        fs.get("/journal-test/run/", str(local), recursive=True)
        return local

    for done in (0, 2):
        run_log = RunLog(run, done, done)
        staging = run_log._local
        note(run_log, done + 1, done + 4)
        run_log.close()
        assert not staging.exists()
    local = copied("fetched")
    assert [line["step"] for line in lines(local)] == [1, 2, 3, 4, 5, 6]
    assert stored_steps(local, "loss") == [1, 2, 3, 4, 5, 6]
    fs.rm("/journal-test", recursive=True)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_log = RunLog(locate(tmp_path), 0, 0)
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(run_log, "_file", full)
    with pytest.raises(CocosegError, match=r"cannot be written: No space left .*; make room"):
        run_log.write(1, loss=0.5)
    run_log._board.close()


def test_the_settings_are_shown_as_text_from_the_step_on_that_they_hold(tmp_path: Path) -> None:
    first = RunLog(locate(tmp_path), 0, 0)
    first.settings(0, "train:\n  seed: 0\n")
    note(first, 1, 6)
    first.close()
    resumed = RunLog(locate(tmp_path), 4, 4)
    resumed.settings(4, "train:\n  seed: 1\n")
    resumed.close()
    board = PluginAccumulator(str(tmp_path / "tensorboard")).Reload()
    events = board.Tensors("settings/text_summary")
    told = [(event.step, event.tensor_proto.string_val[0]) for event in events]
    assert told == [(0, b"    train:\n      seed: 0\n"), (4, b"    train:\n      seed: 1\n")]
    assert all("settings" not in line for line in lines(tmp_path))
