"""Progress without a terminal, on a clock that the test sets."""

import io
import logging
import re
import sys

import pytest
from cocoseg import meter
from cocoseg.meter import EVERY, Meter, Throughput


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meter, "monotonic", clock)
    return clock


@pytest.fixture
def lines(caplog):
    """What is logged; stderr is not a terminal under pytest."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def steps(clock, shown, count, seconds):
    for _ in range(count):
        clock.now += seconds
        shown.update()


def test_a_line_every_thirty_seconds_and_one_at_the_end(clock, lines):
    with Meter("infer", 100, "image", True) as shown:
        steps(clock, shown, 100, 1.0)
    assert lines() == [
        "infer: 30/100 images (30%), 1 images/s, ETA 01:10",
        "infer: 60/100 images (60%), 1 images/s, ETA 00:40",
        "infer: 90/100 images (90%), 1 images/s, ETA 00:10",
        "infer: 100 of 100 images in 01:40",
    ]


def test_the_first_line_comes_at_thirty_seconds_exactly(clock, lines):
    with Meter("infer", 10, "image", True) as shown:
        clock.now += EVERY - 0.001
        shown.update()
        assert lines() == []
        clock.now += 0.001
        shown.update()
        assert lines() == ["infer: 2/10 images (20%), 0.0667 images/s, ETA 02:00"]


def test_what_ends_sooner_is_silent(clock, lines):
    with Meter("verify", 5, "image", True) as shown:
        steps(clock, shown, 5, 5.9)
    assert lines() == []


def test_facts_stand_in_the_line(clock, lines):
    with Meter("train", 850, "step", True, initial=100) as shown:
        shown.note(loss="1.234", wait="2%")
        steps(clock, shown, 60, 0.5)
        shown.note(loss="1.1")
        steps(clock, shown, 60, 0.5)
    assert lines()[:2] == [
        "train: 160/850 steps (19%), loss 1.234, wait 2%, 2 steps/s, ETA 05:45",
        "train: 220/850 steps (26%), loss 1.1, 2 steps/s, ETA 05:15",
    ]


def test_the_rate_is_that_since_the_last_line_and_the_eta_that_of_all(clock, lines):
    with Meter("infer", 1000, "image", True) as shown:
        steps(clock, shown, 30, 1.0)
        steps(clock, shown, 240, 0.125)
    first, second, _ = lines()
    assert "1 images/s" in first
    assert "8 images/s" in second
    assert second.endswith(f"ETA {meter.tqdm.format_interval(730 * 60 / 270)}")


def test_work_that_was_lost_is_counted_again(clock, lines):
    with Meter("prepare", 100, "image", True) as shown:
        clock.now += 30
        shown.reach(50)
        clock.now += 30
        shown.reach(40)  # a worker died
        clock.now += 30
        shown.reach(100)
    assert [line.split(" (")[0] for line in lines()[:3]] == [
        "prepare: 50/100 images",
        "prepare: 40/100 images",
        "prepare: 100/100 images",
    ]


def test_nothing_to_do_is_no_division_by_zero(clock, lines):
    with Meter("infer", 0, "image", True) as shown:
        clock.now += 60
        shown.reach(0)
    assert lines() == ["infer: 0/0 images, 0 images/s", "infer: 0 of 0 images in 01:00"]


def test_a_command_that_fails_does_not_say_that_it_is_done(clock, lines):
    def fails():
        with Meter("infer", 10, "image", True) as shown:
            steps(clock, shown, 4, 10.0)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert len(lines()) == 1


def test_not_shown_is_silent(clock, lines, capsys):
    with Meter("infer", 10, "image", False, slow="x") as shown:
        shown.note(bad=1)
        steps(clock, shown, 10, 100.0)
    assert lines() == []
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_and_no_lines(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    caplog.set_level(logging.INFO)
    with Meter("infer", 10, "image", True) as shown:
        shown.note(bad=3)
        steps(clock, shown, 10, 100.0)
    assert not caplog.records
    assert "10/10" in sys.stderr.getvalue()
    assert "bad=3" in sys.stderr.getvalue()


# --- a collapse of throughput


def reported(rates: list[float], seconds: float = 30.0) -> list[int]:
    throughput = Throughput("images")
    found = (throughput.collapsed(rate * seconds, seconds) for rate in rates)
    return [number for number, text in enumerate(found) if text]


def test_a_collapse_is_reported_once():
    assert reported([10] * 6 + [1.9] + [10] * 9 + [1]) == [6]


def test_a_fifth_of_the_median_is_no_collapse():
    assert reported([10] * 6 + [2.0]) == []
    assert reported([10] * 6 + [1.99]) == [6]


def test_five_spans_make_a_median():
    assert reported([10] * 4 + [1] * 9) == [5]  # 10 10 10 10 1
    assert reported([10] * 5 + [1]) == [5]


def test_the_median_and_not_the_best_counts():
    assert reported([10, 10, 100, 10, 10, 100, 100, 3]) == []


def test_a_standstill_is_a_collapse():
    assert reported([10] * 5 + [0]) == [5]


def test_no_time_is_not_judged():
    assert Throughput("images").collapsed(5, 0.0) is None


def test_a_collapse_is_told_with_figures_and_likely_causes(clock, lines):
    with Meter("infer", 10_000, "image", True, slow="slower storage") as shown:
        for done in (300, 300, 300, 300, 300, 30, 300, 30):
            clock.now += 30
            shown.update(done)
    (warned,) = (line for line in lines() if "fell" in line)
    assert warned == (
        "infer: throughput fell to 1 images/s in the last 30 s; its median is 10. Likely causes: "
        "slower storage"
    )


def test_a_collapse_is_told_on_a_terminal_too(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Meter("infer", 10_000, "image", True, slow="slower storage") as shown:
        for done in (300, 300, 300, 300, 300, 30):
            clock.now += 30
            shown.update(done)
    assert "throughput fell to 1 images/s" in caplog.text


# --- the commands


@pytest.fixture
def quick(monkeypatch):
    """A clock that is 31 s later at each look."""

    class Quick(Clock):
        def __call__(self) -> float:
            self.now += EVERY + 1
            return self.now

    monkeypatch.setattr(meter, "monotonic", Quick())


def test_every_long_command_tells_how_far_it_is(quick, run_cocoseg, golden, tmp_path):
    shards, images = golden.shards("val"), golden.images("val")
    small = ("--set", "model.name=segformer-tiny", "--set", "model.input_size=32")
    steps = ("train.max_steps=3", "train.log_every=1", "train.device=cpu", "train.workers=0")
    settings = [word for one in steps for word in ("--set", one)]
    annotations = golden.annotations("val")
    log = ""
    for unit, *line in (
        ("images", "prepare", "--annotations", annotations, "--images", images),
        ("images", "verify", shards),
        ("steps", "train", "--shards", shards, "--val-shards", shards, *small, *settings),
        ("images", "infer", "--checkpoint", tmp_path / "train", "--input", images),
        ("images", "eval", "--checkpoint", tmp_path / "train", "--shards", shards),
    ):
        command = line[0]
        output = () if command == "verify" else ("--output", tmp_path / command)
        ran = run_cocoseg(*map(str, (*line, *output)))
        assert ran.code == 0, ran
        told = re.findall(rf"^{command}: (\d+)/(\d+) {unit} .*/s", ran.err, re.MULTILINE)
        assert told, ran.err
        assert told[-1][0] == told[-1][1]
        assert " images/s" not in ran.out
        log += ran.err
    assert re.search(r"^train: 2/3 steps \(67%\), loss \d.*, img/s .*, wait ", log, re.MULTILINE)
