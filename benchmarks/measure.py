"""Clocks, process groups and rows: what every part of the benchmarks uses. Linux only."""

import contextlib
import ctypes
import gc
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MB = 1e6


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table that RESULTS.md quotes."""

    what: str
    other: str
    """What the plain way, or a peer, takes."""
    ours: str
    ratio: str = ""
    bar: str = ""
    met: bool | None = None
    """None where there is no bar."""

    @classmethod
    def speed(cls, what: str, other: float, ours: float, bar: float | None, unit: str) -> "Row":
        """Return a row of two times; the ratio must reach `bar`."""
        ratio = other / ours
        met = None if bar is None else ratio >= bar
        shown = "" if bar is None else f"≥ {bar:.3g}"
        return cls(what, f"{other:.2f} {unit}", f"{ours:.2f} {unit}", f"{ratio:.2f}", shown, met)

    @classmethod
    def limit(cls, what: str, ours: float, bar: float, unit: str, other: str = "") -> "Row":
        """Return a row of one figure that may not exceed `bar`."""
        return cls(what, other, f"{ours:.1f} {unit}", "", f"≤ {bar:.4g} {unit}", ours <= bar)


def print_rows(title: str, rows: Iterator[Row]) -> None:
    """Print a Markdown table, each row as soon as it is measured."""
    print(f"\n### {title}\n\n| what | other | cocoseg | ratio | bar | met |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        cells = (row.what, row.other, row.ours, row.ratio, row.bar, met)
        print("| " + " | ".join(cells) + " |", flush=True)


def machine() -> str:
    """Describe the machine, and how busy it is."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    python = platform.python_version()
    return f"{model}, {os.cpu_count()} cores, Linux, Python {python}, load before {load:.1f}"


def note(text: str) -> None:
    """Say what is being done, beside the table."""
    print(text, file=sys.stderr, flush=True)


def cpu_of(function: Callable[..., object], *arguments: object) -> float:
    """Return the CPU seconds of this process, all threads, while a function runs."""
    gc.collect()
    start = time.process_time()
    function(*arguments)
    return time.process_time() - start


def in_turn(functions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Run functions in turn, A B A B …, and return the median of what each returned."""
    found: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            found[name].append(function())
    return {name: statistics.median(values) for name, values in found.items()}


def last_line(script: str, *arguments: object) -> str:
    """Return the last line that a Python script prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout.splitlines()[-1]


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Keep this process, and those it starts, on one core."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@dataclass(slots=True)
class Finished:
    """What a command and all the processes below it took."""

    output: str
    wall: float
    cpu: float
    """All processes, their start included [s]."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Largest VmHWM by role [bytes], where memory was watched."""
    together: int = 0
    """Largest sum of their proportional set sizes seen [bytes]: shared pages count once."""
    libtorch: bool = False
    """Whether one of them had libtorch mapped."""


_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def run(
    command: Sequence[str | Path],
    *,
    roles: Callable[[str, int], str] | None = None,
    environment: Mapping[str, str] | None = None,
    stop_when: Callable[[], bool] | None = None,
) -> Finished:
    """Run a command to its end, or until something is so, and that of every process below it.

    A fork server outlives the command that started it: orphans are adopted and waited for, else
    their CPU time, and their workers', would be nobody's.

    Parameters
    ----------
    roles
        Names a process by its command line and its depth below the command; given, memory is
        watched (which takes CPU).
    stop_when
        Asked every 2 ms; SIGINT is sent when it says yes, and `wall` ends there.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
        finished = Finished("", 0.0, 0.0)
        while (roles or stop_when) and process.poll() is None:
            if stop_when and stop_when():
                finished.wall = time.perf_counter() - start
                process.send_signal(signal.SIGINT)
                break
            if roles:
                _watch(process.pid, roles, finished)
            time.sleep(0.02 if roles else 0.002)
        code = process.wait()
        finished.wall = finished.wall or time.perf_counter() - start
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        output.seek(0)
        finished.output = output.read()
    if code != 0 and not stop_when:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {code}\n{finished.output}")
    finished.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return finished


def _watch(pid: int, roles: Callable[[str, int], str], finished: Finished) -> None:
    together = 0
    for one, depth in _below(pid):
        with contextlib.suppress(OSError):
            folder = Path("/proc", str(one))
            role = roles((folder / "cmdline").read_text(), depth)
            peak = high_water(one)
            finished.peaks[role] = max(finished.peaks.get(role, 0), peak)
            together += _kilobytes(folder / "smaps_rollup", "Pss:")
            finished.libtorch |= "libtorch" in (folder / "maps").read_text()
    finished.together = max(finished.together, together)


def _below(pid: int, depth: int = 0) -> Iterator[tuple[int, int]]:
    yield pid, depth
    with contextlib.suppress(OSError):
        children = Path("/proc", str(pid), "task", str(pid), "children").read_text()
        for child in children.split():
            yield from _below(int(child), depth + 1)


def high_water(pid: int | str = "self") -> int:
    """Return the most memory a process has held so far [bytes].

    Not `ru_maxrss`: that starts with what the parent held when it forked.
    """
    return _kilobytes(Path("/proc", str(pid), "status"), "VmHWM:")


def process_memory(pid: int) -> tuple[int, int]:
    """Return a process's resident and proportional set sizes [bytes]."""
    rollup = Path("/proc", str(pid), "smaps_rollup")
    return _kilobytes(rollup, "Rss:"), _kilobytes(rollup, "Pss:")


def process_cpu(pid: int) -> float:
    """Return the CPU seconds of a process so far, all threads."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime


def _kilobytes(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    return 0
