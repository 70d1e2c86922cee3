"""`make bench-gpu` without a GPU: it rehearses, names what is missing, and survives its cases."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Ran = subprocess.CompletedProcess[str]
WITH_TORCH = {"torch", "transformers"}  # what these need is not listed


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return root / "benchmarks" / "gpu"


@pytest.fixture
def module(folder: Path) -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"bench_gpu_{name}", folder / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    return load


def start(*command: str | Path, **environment: str) -> Ran:
    """Run Python without cocoseg installed: no .pth file of an editable install is read."""
    python = getattr(sys, "_base_executable", sys.executable)
    return subprocess.run(
        [python, *map(str, command)],
        capture_output=True,
        text=True,
        env={
            **{key: value for key, value in os.environ.items() if key != "COCOSEG_WHEELS"},
            "PYTHONPATH": sysconfig.get_paths()["purelib"],
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )


@pytest.fixture(scope="module")
def rehearsal(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """All parts, run on a checkout in a folder whose name is none of a package."""
    checkout = tmp_path_factory.mktemp("bench_gpu") / "a-b.c"
    checkout.mkdir()
    for package in sorted(path.parent for path in root.glob("*/__init__.py")):
        shutil.copytree(
            package, checkout / package.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for file in (*root.glob("*.py"), root / "pyproject.toml", root / "constraints.txt"):
        shutil.copyfile(file, checkout / file.name)
    for name in ("configs", "benchmarks/gpu", "tests/golden/shards"):
        shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "benchmarks" / "measure.py", checkout / "benchmarks" / "measure.py")
    return start(checkout / "benchmarks" / "gpu" / "run.py", "--device", "cpu", "--tiny")


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows but those of the headings."""
    table = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in table]
    return [row for row in cells if row[0] != "what"]


def test_every_part_is_rehearsed_on_a_checkout_of_any_name(
    rehearsal: Ran, module: Callable[[str], ModuleType]
) -> None:
    assert rehearsal.returncode == 0, rehearsal.stdout + rehearsal.stderr
    for part, (title, _) in module("cases").PARTS.items():
        section = rehearsal.stdout.split(f"\n### {title}\n", 1)[1].split("\n### ", 1)[0]
        assert rows(section), part
        assert re.search(rf"^{part}: \d+ s; \d+ s in all$", section, re.MULTILINE)


def test_a_row_has_six_cells_and_no_bar_is_missed(rehearsal: Ran) -> None:
    found = rows(rehearsal.stdout)
    assert len(found) > 45
    assert {len(row) for row in found} == {6}
    assert not [row for row in found if "failed" in row[2] or "no" in row[5]]
    assert [row for row in found if row[5] == "yes"]


def test_what_only_a_gpu_shows_is_skipped_by_name(
    rehearsal: Ran, module: Callable[[str], ModuleType]
) -> None:
    skipped = {row[0] for row in rows(rehearsal.stdout) if "only a GPU shows it" in row[2]}
    cases = [case for _, of_part in module("cases").PARTS.values() for case in of_part]
    assert {case.name for case in cases if case.cuda} <= skipped
    assert "synchronisations in the scoring loop" in skipped


def test_the_cases_fit_into_nine_minutes(module: Callable[[str], ModuleType]) -> None:
    cases = module("cases")
    reserved = sum(case.seconds for _, of_part in cases.PARTS.values() for case in of_part)
    assert reserved < cases.TOTAL < 9 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(folder: Path) -> None:
    ran = start(folder / "run.py")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(r"no GPU: torch \S+ .*\n", ran.stderr)


BLOCKING = """
import importlib.abc, runpy, sys

class Blocks(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocks())
sys.argv = [{script!r}]
runpy.run_path({script!r}, run_name="__main__")
"""


def without(folder: Path, *modules: str) -> Ran:
    """Start the benchmark where some modules cannot be found."""
    script = str(folder / "run.py")
    return start(
        "-c",
        f"import sys; sys.path.insert(0, {str(folder)!r})\n"
        + BLOCKING.format(names=set(modules), script=script),
    )


def test_missing_packages_are_named_at_once_before_anything_is_measured(folder: Path) -> None:
    ran = without(folder, "msgspec", "pydantic_core", "simplejpeg", "cv2", "google.protobuf")
    assert (ran.returncode, ran.stdout) == (1, "")
    first = ran.stderr.splitlines()[0]
    assert first == (
        "missing packages (5): msgspec opencv-python-headless protobuf pydantic-core simplejpeg"
    )
    assert "pip install --no-index --no-deps --find-links DIR" in ran.stderr
    assert "COCOSEG_WHEELS" in ran.stderr


def test_every_package_can_be_the_missing_one(
    folder: Path, module: Callable[[str], ModuleType]
) -> None:
    needed = module("packages").NEEDED
    ran = without(folder, *needed.values())
    assert ran.stderr.splitlines()[0].split(": ")[1].split() == list(needed)
    assert "torch: install a build for this machine's CUDA first" in ran.stderr


def test_the_list_of_packages_is_complete(root: Path, module: Callable[[str], ModuleType]) -> None:
    """Everything that the dependencies need, and need in turn, as installed here."""
    packages = module("packages")
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    open_names = {Requirement(text).name for text in project["dependencies"]}
    needed: set[str] = set()
    while open_names:
        name = canonicalize_name(open_names.pop())
        if name in needed:
            continue
        needed.add(name)
        if name in WITH_TORCH:
            continue
        requirements = map(Requirement, importlib.metadata.requires(name) or ())
        open_names |= {
            one.name
            for one in requirements
            if one.marker is None or one.marker.evaluate({"extra": ""})
        }
    listed = {canonicalize_name(name) for name in packages.NEEDED}
    of_hub = {
        canonicalize_name(Requirement(text).name)
        for text in importlib.metadata.requires("huggingface_hub") or ()
    }
    assert needed - listed <= of_hub | _in_turn(of_hub)
    assert packages.missing_packages() == []


def _in_turn(names: set[str]) -> set[str]:
    """Return what packages need, and need in turn, of those that are installed."""
    found: set[str] = set()
    while names:
        name = names.pop()
        try:
            requirements = importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        new = {canonicalize_name(Requirement(text).name) for text in requirements} - found
        found |= new
        names |= new
    return found


def test_wheels_are_unpacked_if_they_are_for_this_python(
    tmp_path: Path, module: Callable[[str], ModuleType]
) -> None:
    packages = module("packages")
    minor = sys.version_info.minor
    for name, tags in (
        ("pure", "py2.py3-none-any"),
        ("stable", "cp39-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64"),
        ("own", f"cp3{minor}-cp3{minor}-manylinux_2_28_{packages.platform.machine()}"),
        ("newer", f"cp3{minor + 1}-cp3{minor + 1}-manylinux2014_x86_64"),
        ("elsewhere", f"cp3{minor}-cp3{minor}-win_amd64"),
    ):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-{tags}.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "")
            wheel.writestr(f"{name}-1.0.data/purelib/{name}_beside.py", "")
    target = tmp_path / "unpacked"
    left_out = packages.unpack_wheels(tmp_path, target)
    assert [name.split("-")[0] for name in left_out] == ["elsewhere", "newer"]
    assert {path.name for path in target.iterdir() if not path.name.endswith(".data")} >= {
        *("pure", "pure_beside.py", "own", "own_beside.py"),
    }
    with pytest.raises(ValueError, match="holds no wheels"):
        packages.unpack_wheels(target, tmp_path / "other")
    (tmp_path / "pure-1.0-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        packages.unpack_wheels(tmp_path, tmp_path / "another")


def test_kernels_and_copies_are_counted_by_the_names_of_cupti(
    module: Callable[[str], ModuleType],
) -> None:
    launches = module("launches")
    copies = ("HtoD (Pageable -> Device)", "HtoD (Pinned -> Device)", "DtoH (Device -> Pinned)")
    events = [
        {"cat": "kernel", "name": "gemm"},
        {"cat": "kernel", "name": "softmax"},
        *({"cat": "gpu_memcpy", "name": f"Memcpy {name}"} for name in copies),
        {"cat": "gpu_memset", "name": "Memset (Device)"},
        {"cat": "cpu_op", "name": "aten::mm"},
        {"ph": "M"},
    ]
    assert launches.counted(events) == launches.Launched(kernels=2, to_host=1, blocking=1)


STUB = """
import json, os, sys, time

print(json.dumps({{"no_gpu": "", "cocoseg": {package!r}, "broken": {{}}}}), flush=True)
row = {{"what": "a row", "other": "", "ours": "fine", "ratio": "", "bar": "", "met": True}}
while line := sys.stdin.readline():
    if line.startswith("turn "):
        continue
    what = json.loads(line)["function"]
    if what == "dies":
        sys.exit("out of luck")
    if what == "hangs":
        time.sleep(600)
    if what == "fails":
        print(json.dumps({{"failure": "ValueError: no | luck", "traceback": ""}}), flush=True)
        continue
    if what == "waits":
        while sys.stdin.readline() != "turn waits\\n":
            pass
    if what == "misses":
        row = {{**row, "what": "a bar", "met": False}}
    print(json.dumps({{"row": row}}), flush=True)
    print(json.dumps({{"done": True}}), flush=True)
"""
DRIVER = """
import sys

sys.path[:0] = [{folder!r}]
from pathlib import Path

import cases, children, run

children._SCRIPT = Path({stub!r})
run.TOTAL = 602.0  # the last two may take nearly all of it: what hangs is ended after seconds
early = ("quick", "waits")
names = (*early, "dies", "works", "fails", "hangs", "misses", "again")
run.PARTS.clear()
run.PARTS["part"] = "A part", tuple(
    cases.Case(name, name, seconds, "own" if name in early else "one", early=name in early)
    for name, seconds in zip(names, (60, 60, 60, 60, 60, 0.5, 300, 300), strict=True)
)
sys.exit(run.main(["--device", "cpu"]))
"""


def test_a_case_that_dies_fails_or_hangs_is_a_row_and_the_next_one_runs(
    root: Path, folder: Path, tmp_path: Path
) -> None:
    stub = tmp_path / "stub.py"
    stub.write_text(STUB.format(package=os.path.realpath(root / "__init__.py")))
    ran = start("-c", textwrap.dedent(DRIVER).format(folder=str(folder), stub=str(stub)))
    assert ran.returncode == 1, ran.stderr
    ours = {row[0]: (row[2], row[5]) for row in rows(ran.stdout)}
    assert ours["a row"] == ("fine", "yes")
    assert ours["dies"] == ("failed: the process ended with exit code 1: out of luck", "**no**")
    assert ours["fails"] == ("failed: ValueError: no \\| luck", "**no**")
    assert ours["hangs"] == ("failed: timed out", "**no**")
    assert ours["a bar"] == ("fine", "**no**")
    assert sum(row[0] == "a row" for row in rows(ran.stdout)) == 3, ran.stdout
    told = ran.stdout.split("\n\n")[-2:]
    assert told[0].splitlines() == ["3 failed:", "- dies", "- fails", "- hangs"]
    assert told[1].splitlines()[:2] == ["2 not met:", "- a bar"]
