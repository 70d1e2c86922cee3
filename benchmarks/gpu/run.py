"""Everything about the GPU, on one GPU, in at most 9 minutes: ``make bench-gpu``.

    python benchmarks/gpu/run.py [parity] [sync] [device] [resume] [training] [inference]

Prints Markdown for RESULTS.md, each row as soon as it is there; parts that fail become rows. The
exit code is 1 if there is no GPU, a package is missing, anything failed or a bar is not met.

It needs no installation of cocoseg: this checkout is the package, whatever its folder is called.
The packages that cocoseg needs must be there, or lie as wheels in the folder COCOSEG_WHEELS. No
network is used. See docs/gpu.md.

``--device cpu --tiny`` rehearses it without a GPU: the same code on small shapes, without what only
a GPU can show. tests/test_bench_gpu.py does so; its figures mean nothing.
"""

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

sys.path.append(str(Path(__file__).resolve().parents[1]))  # measure.py

from cases import PARTS, TOTAL, Case
from children import Child, Failed
from measure import Row, note, print_rows
from packages import how_to_get, missing_packages, unpack_wheels

ROOT = Path(__file__).resolve().parents[2]
_NO_NETWORK = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}
_REHEARSAL = 600.0  # seconds for a case
_OF_LAUNCHERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_PROCID")


@dataclass(slots=True)
class Run:
    """One run of the benchmark."""

    device: str
    tiny: bool
    parts: list[str]
    scratch: Path
    environment: Mapping[str, str]
    began: float
    children: dict[str, Child] = field(default_factory=dict)
    asked: dict[Case, Child] = field(default_factory=dict)
    """Case → the process that was asked last for its rows."""
    failed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def start(self) -> str:
        """Start the processes; return a line on the machine.

        Raises
        ------
        SystemExit
            If cocoseg or a package cannot be imported, or there is no GPU.
        """
        names = dict.fromkeys(self._process(case) for case in self._cases())
        first = next(iter(names))
        try:
            greeting = self._child(first).greeting()
        except Failed as error:
            raise SystemExit(f"Python cannot import what cocoseg needs: {error}") from None
        if greeting["no_gpu"]:
            raise SystemExit(greeting["no_gpu"])
        if greeting["broken"]:
            lines = [f"  {name}: {text}" for name, text in greeting["broken"].items()]
            raise SystemExit("\n".join(("packages that cannot be imported:", *lines)))
        for name in names:  # all at once: imports take seconds
            self._child(name)
        expected = os.path.realpath(ROOT / "__init__.py")
        if greeting["cocoseg"] != expected:
            raise SystemExit(f"cocoseg is {greeting['cocoseg']}, not that of this checkout: {ROOT}")
        child = self._child(first)
        child.ask(self._request("machine:describe"))
        try:
            (row,) = child.rows(time.monotonic() + (_REHEARSAL if self.tiny else 60))
        except Failed as error:
            raise SystemExit(f"the machine cannot be described: {error}") from None
        for case in self._cases():
            if case.early and not self._skipped(case):
                with contextlib.suppress(Failed):  # another one is asked in its turn
                    self._ask(case, self.children[self._process(case)])
        return row.ours

    def rows(self, cases: tuple[Case, ...]) -> Iterator[Row]:
        """Yield the rows of cases; what fails is a row, too."""
        for case in cases:
            for row in self._rows_of(case):
                if row.met is False:
                    (self.failed if row.ours.startswith("failed") else self.missed).append(row.what)
                yield row
            name = self._process(case)
            if name in self.children and name not in map(self._process, self._after(case)):
                self.children[name].end()  # and what it holds of the GPU

    def end(self) -> None:
        """End all processes."""
        for child in self.children.values():
            child.end()

    def _rows_of(self, case: Case) -> Iterator[Row]:
        if self._skipped(case):
            yield Row(case.name, "", "skipped: only a GPU shows it")
            return
        now = time.monotonic()
        end = now + _REHEARSAL if self.tiny else self.began + TOTAL
        limit = min(
            end, max(now + case.seconds, end - sum(one.seconds for one in self._after(case)))
        )
        if now > limit:
            yield Row(case.name, "", "failed: the time limit of all parts is reached", met=False)
            return
        try:
            child = self._child(self._process(case))
            if self.asked.get(case) is not child:  # or the one that was asked early is gone
                self._ask(case, child)
            if case.early:
                child.say_turn(case.function)
            yield from child.rows(limit)
        except (Failed, OSError) as error:
            yield Row(case.name, "", f"failed: {_in_a_cell(str(error))}", met=False)

    def _ask(self, case: Case, child: Child) -> None:
        child.greeting()
        child.ask(self._request(case.function))
        self.asked[case] = child

    def _child(self, name: str) -> Child:
        if name not in self.children or not self.children[name].alive:
            number = len(list(self.scratch.glob(f"{name}*.log")))
            log = self.scratch / f"{name}-{number}.log"
            self.children[name] = Child(self.device, self.environment, log)
        return self.children[name]

    def _request(self, function: str) -> dict[str, object]:
        return {
            "function": function,
            "device": self.device,
            "tiny": self.tiny,
            "scratch": str(self.scratch),
        }

    def _process(self, case: Case) -> str:
        return "rehearsal" if self.tiny else case.process

    def _skipped(self, case: Case) -> bool:
        return case.cuda and self.device != "cuda"

    def _cases(self) -> Iterator[Case]:
        for part in self.parts:
            yield from PARTS[part][1]

    def _after(self, case: Case) -> list[Case]:
        cases = list(self._cases())
        return cases[cases.index(case) + 1 :]


def main(arguments: list[str]) -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    began = time.monotonic()
    signal.signal(signal.SIGTERM, _end)
    with tempfile.TemporaryDirectory(
        prefix="cocoseg-bench-gpu-", ignore_cleanup_errors=True
    ) as folder:
        scratch = Path(folder)
        path = importable(scratch)
        if missing := missing_packages():
            print(how_to_get(missing, ROOT), file=sys.stderr)
            return 1
        environment = {
            **{key: value for key, value in os.environ.items() if key not in _OF_LAUNCHERS},
            **_NO_NETWORK,
            "PYTHONPATH": os.pathsep.join(path),
        }
        parts = [part for part in PARTS if part in asked.parts or not asked.parts]
        run = Run(asked.device, asked.tiny, parts, scratch, environment, began)
        try:
            print(run.start(), flush=True)
            for part in parts:
                title, cases = PARTS[part]
                start = time.monotonic()
                print_rows(title, run.rows(cases))
                now = time.monotonic()
                print(f"\n{part}: {now - start:.0f} s; {now - began:.0f} s in all", flush=True)
        finally:
            run.end()
    for what, names in (("failed", run.failed), ("not met", run.missed)):
        if names:
            print(f"\n{len(names)} {what}:\n" + "\n".join(f"- {name}" for name in names))
    return 1 if run.failed or run.missed else 0


def importable(scratch: Path) -> list[str]:
    """Make the checkout importable as ``cocoseg``, here and in child processes.

    Returns
    -------
    list of str
        What PYTHONPATH holds then: the checkout, the wheels of COCOSEG_WHEELS, what it held.

    Raises
    ------
    SystemExit
        If COCOSEG_WHEELS is wrong.
    """
    package = scratch / "package"
    package.mkdir()
    (package / "cocoseg").symlink_to(ROOT, target_is_directory=True)
    path = [str(package)]
    if wheels := os.environ.get("COCOSEG_WHEELS"):
        target = scratch / "wheels"
        target.mkdir()
        try:
            for name in unpack_wheels(Path(wheels), target):
                note(f"{name}: is for another Python or machine")
        except ValueError as error:
            raise SystemExit(f"COCOSEG_WHEELS: {error}") from None
        path.append(str(target))
    sys.path[:0] = path
    return path + [entry for entry in [os.environ.get("PYTHONPATH", "")] if entry]


def _in_a_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _end(number: int, frame: FrameType | None) -> None:
    del number, frame
    sys.exit(130)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
