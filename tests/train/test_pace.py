"""The split into waiting and working, on a clock that the test turns."""

import pytest
from cocoseg.train.pace import Pace, Window


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def run(pace: Pace, clock: Clock, waits: list[float], works: list[float]):
    """Steps that take `waits` to load and `works` to learn; yields inside each."""

    def loader():
        for wait in waits:
            clock.now += wait
            yield wait

    for work, _ in zip(works, pace.waited(loader()), strict=False):
        clock.now += work
        yield


def windows(waits: list[float], works: list[float], every: int) -> list[Window]:
    clock = Clock()
    pace = Pace(clock)
    found = []
    for i, _ in enumerate(run(pace, clock, waits, works), 1):
        if i % every == 0:
            found.append(pace.window(8))
    return found


def test_the_first_window_leaves_out_the_start_of_the_loader() -> None:
    first, second = windows([60.0, 1, 1, 2, 2, 2], [3.0, 3, 3, 5, 5, 5], 3)
    assert first == Window(images=24, seconds=11.0, waited=2.0)
    assert second == Window(images=24, seconds=21.0, waited=6.0)
    assert second.images_per_second == pytest.approx(24 / 21)
    assert second.data_wait == pytest.approx(6 / 21)
    assert second.possible_images_per_second == pytest.approx(24 / 15)


def test_a_loader_that_keeps_up_waits_nothing() -> None:
    first, second = windows([5.0, 0, 0, 0], [1.0, 1, 1, 1], 2)
    assert (first.data_wait, second.data_wait) == (0.0, 0.0)
    assert second.images_per_second == second.possible_images_per_second == 8.0


def test_validation_and_checkpoints_belong_to_no_window() -> None:
    clock = Clock()
    pace = Pace(clock)
    for i, _ in enumerate(run(pace, clock, [9.0, 1, 1, 1], [2.0] * 4), 1):
        if i == 2:
            pace.window(8)
            clock.now += 500  # validates
            pace.restart()
    assert pace.window(8) == Window(images=16, seconds=6.0, waited=2.0)


def test_an_empty_window_is_no_division_by_zero() -> None:
    empty = Window(0, 0.0, 0.0)
    assert (empty.images_per_second, empty.data_wait) == (0.0, 0.0)
    assert Window(8, 2.0, 2.0).possible_images_per_second == float("inf")


def test_the_pace_takes_what_the_loop_does_not_finish() -> None:
    clock = Clock()
    pace = Pace(clock)
    for _ in pace.waited([1, 2, 3]):
        break
    assert pace.window(4) == Window(4, 0.0, 0.0)


STARVED, FED = Window(100, 20.0, 5.0), Window(100, 20.0, 2.0)


def told(shares: list[Window], workers: int = 2) -> list[int]:
    """Numbers of the windows after which something is said."""
    clock = Clock()
    pace = Pace(clock)
    found = []
    for number, window in enumerate(shares):
        pace.window(0)
        if pace.waits_for_data(window, workers) is not None:
            found.append(number)
    return found


def test_a_starved_network_is_told_with_figures_and_what_to_do() -> None:
    pace = Pace(Clock())
    pace.window(0)
    assert pace.waits_for_data(STARVED, 2) is None  # the first window
    pace.window(0)
    text = pace.waits_for_data(STARVED, 3, cores=16)
    assert text is not None
    for part in ("25%", "20 s", "5.0 images/s", "6.7", "now 3", "16 cores", "docs/how-to.md"):
        assert part in text


def test_it_is_told_once_in_a_while_and_never_where_the_loader_keeps_up() -> None:
    assert told([STARVED] * 120) == [1, 52, 103]
    assert told([FED] * 120) == []
    assert told([STARVED, FED, FED, STARVED]) == [3]


def test_the_share_must_last_ten_seconds() -> None:
    short = Window(10, 3.0, 1.5)
    assert told([short] * 5) == [4]  # 12 s behind the first
    assert told([STARVED, short, FED]) == [2]  # 3.5 of 23 s
    assert told([STARVED, Window(10, 1.0, 1.0), FED]) == [2]
    assert told([STARVED, Window(10, 0.2, 0.2), FED]) == [2]
    assert told([STARVED, Window(10, 0.02, 0.02), Window(100, 20.0, 1.9)]) == []


def test_exactly_a_tenth_is_not_starved() -> None:
    assert told([FED, Window(1, 20.0, 2.0)]) == []
    assert told([FED, Window(1, 20.0, 2.1)]) == [1]


# --- a collapse of throughput


def collapses(shares: list[Window]) -> list[tuple[int, str]]:
    """Numbers of the windows after which a collapse is told, and the texts."""
    pace = Pace(Clock())
    found = []
    for number, window in enumerate(shares):
        pace.window(0)
        if (text := pace.collapsed(window, 4)) is not None:
            found.append((number, text))
    return found


USUAL = Window(100, 10.0, 0.5)


def test_a_collapse_by_waiting_names_the_loader() -> None:
    ((number, text),) = collapses([USUAL] * 6 + [Window(10, 10.0, 9.5)] * 3)
    assert number == 6
    for part in ("1 images/s", "10 s", "median is 10", "95%", "storage", "now 4", "Slow loader"):
        assert part in text


def test_a_collapse_without_waiting_names_the_device() -> None:
    ((number, text),) = collapses([USUAL] * 6 + [Window(10, 10.0, 0.2)] * 3)
    assert number == 6
    for part in ("Only 2%", "network itself is slower", "nvidia-smi"):
        assert part in text
    assert "Slow loader" not in text


def test_short_windows_are_put_together_before_they_are_judged() -> None:
    assert collapses([Window(10, 1.0, 0.0)] * 61 + [Window(0, 2.0, 2.0)]) == []
    assert collapses([Window(10, 1.0, 0.0)] * 61 + [Window(1, 5.0, 5.0)] * 2)[0][0] == 62


def test_the_first_window_is_no_part_of_the_median() -> None:
    assert collapses([Window(100_000, 10.0, 0.0)] + [USUAL] * 20) == []
