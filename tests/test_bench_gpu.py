"""`make bench-gpu` without a GPU: it rehearses, names what is missing, and survives its cases."""

import contextlib
import dataclasses
import importlib
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
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from cocoseg.model import predictor
from cocoseg.train import trainer
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


def command_of(*arguments: str | Path, **environment: str) -> tuple[list[str], dict[str, str]]:
    """Return a command of Python without cocoseg installed, and its environment.

    No .pth file of an editable install is read.
    """
    python = getattr(sys, "_base_executable", sys.executable)
    return [python, *map(str, arguments)], {
        **{key: value for key, value in os.environ.items() if key != "COCOSEG_WHEELS"},
        "PYTHONPATH": sysconfig.get_paths()["purelib"],
        "OMP_NUM_THREADS": "1",
        **environment,
    }


def start(*arguments: str | Path, **environment: str) -> Ran:
    """Run Python without cocoseg installed."""
    command, variables = command_of(*arguments, **environment)
    return subprocess.run(command, capture_output=True, text=True, env=variables)


@pytest.fixture(scope="module", autouse=True)
def rehearsing(
    root: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[], Ran] | None]:
    """Run all parts, on a checkout in a folder whose name is none of a package.

    It takes as long as the other tests and runs beside them: those that wait for it come last.
    """
    if not any("rehearsal" in getattr(item, "fixturenames", ()) for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("bench_gpu")
    checkout = folder / "a-b.c"
    checkout.mkdir()
    for package in sorted(path.parent for path in root.glob("*/__init__.py")):
        shutil.copytree(package, checkout / package.name)
    for file in (*root.glob("*.py"), root / "pyproject.toml", root / "constraints.txt"):
        shutil.copyfile(file, checkout / file.name)
    for name in ("configs", "benchmarks/gpu", "tests/golden/shards"):
        shutil.copytree(root / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(root / "benchmarks" / "measure.py", checkout / "benchmarks" / "measure.py")
    script = checkout / "benchmarks" / "gpu" / "run.py"
    command, variables = command_of(script, "--device", "cpu", "--tiny")
    texts = folder / "stdout", folder / "stderr"
    with texts[0].open("w") as out, texts[1].open("w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=variables)

    def finish() -> Ran:
        code = process.wait()
        return subprocess.CompletedProcess(command, code, *(path.read_text() for path in texts))

    try:
        yield finish
    finally:
        process.terminate()  # it ends its processes, if there are any left
        process.wait()


@pytest.fixture(scope="module")
def rehearsal(rehearsing: Callable[[], Ran]) -> Ran:
    return rehearsing()


def rows(text: str) -> list[list[str]]:
    """Return the cells of all rows but those of the headings."""
    table = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in table]
    return [row for row in cells if row[0] != "what"]


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

if "late-0." in os.readlink("/proc/self/fd/2"):  # its log: the first process of that name
    sys.exit("cannot start")
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
    if what == "breaks off":
        print('{{"row": {{"what', end="", flush=True)
        os._exit(9)
    if what == "chatters":
        print("a library's banner", flush=True)
    if what == "misspells":
        print(json.dumps({{"rows": [row]}}), flush=True)
    if what == "miscounts":
        print(json.dumps({{"row": {{**row, "ours": 1}}}}), flush=True)
    if what == "spoils":
        last = {{"failure": "RuntimeError: CUDA error", "traceback": "", "ends": True}}
        print(json.dumps(last), flush=True)
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

import run, cases, children

children._SCRIPT = Path({stub!r})
run.TOTAL = 602.0
run.PARTS.clear()
run.PARTS["part"] = "A part", tuple(
    cases.Case(name, name, seconds, process, early=early)
    for name, seconds, process, early in {of_part!r}
)
sys.exit(run.main(["--device", "cpu"]))
"""
Part = list[tuple[str, float, str, bool]]
"""Of each case: its name, the seconds reserved for it, its process, whether it is early."""


@pytest.fixture
def drive(root: Path, folder: Path, tmp_path: Path) -> Callable[[Part], Ran]:
    """Run a part whose cases are those of `STUB`."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB.format(package=os.path.realpath(root / "__init__.py")))

    def run(of_part: Part) -> Ran:
        driver = textwrap.dedent(DRIVER)
        return start("-c", driver.format(folder=str(folder), stub=str(stub), of_part=of_part))

    return run


def test_a_case_that_dies_fails_or_hangs_is_a_row_and_the_next_one_runs(
    drive: Callable[[Part], Ran],
) -> None:
    ran = drive(
        [
            ("quick", 60, "own", True),
            ("waits", 60, "own", True),
            ("dies", 60, "one", False),
            ("works", 60, "one", False),
            ("fails", 60, "one", False),
            ("hangs", 0.5, "one", False),  # the others reserve nearly all: it is ended soon
            ("misses", 300, "one", False),
            ("again", 300, "one", False),
        ]
    )
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


SENT = "failed: the process sent something that is not an answer: "
FAILURES = {
    "dies": "failed: the process ended with exit code 1: out of luck",
    "breaks off": "failed: the process ended with exit code 9: no output",
    "hangs": "failed: timed out",
    "chatters": SENT + "a library's banner",
    "misspells": SENT + '{"rows": [{"what": "a row"',
    "miscounts": SENT + '{"row": {"what": "a row"',
    "spoils": "failed: RuntimeError: CUDA error",
}


@pytest.mark.parametrize("early", [True, False])
def test_the_next_case_of_a_process_that_is_gone_is_asked_again_in_another(
    early: bool, drive: Callable[[Part], Ran]
) -> None:
    ran = drive(
        [
            *(
                (name, 0.5 if name == "hangs" else 60, what, early)
                for what in FAILURES
                for name in (what, "works")
            ),
            ("works", 600, "one", False),  # reserves nearly all: what hangs is ended soon
        ]
    )
    assert ran.returncode == 1, ran.stderr
    found = [(row[0], row[2]) for row in rows(ran.stdout)]
    assert found[1::2] + found[-1:] == [("a row", "fine")] * (len(FAILURES) + 1)
    for (what, told), failure in zip(FAILURES.items(), found[:-1:2], strict=True):
        assert (failure[0], failure[1][: len(told)]) == (what, told)


def test_early_cases_whose_process_cannot_start_are_asked_in_order_in_another(
    drive: Callable[[Part], Ran],
) -> None:
    ran = drive(
        [
            ("works", 60, "one", False),
            ("waits", 60, "late", True),
            ("misses", 60, "late", True),
        ]
    )
    assert ran.returncode == 1, ran.stderr
    assert [(row[0], row[2]) for row in rows(ran.stdout)] == [
        *[("a row", "fine")] * 2,
        ("a bar", "fine"),
    ]


# ---- cases in this process, on a CPU, with the shapes that a GPU gets


@pytest.fixture
def imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Import a module of the benchmark as its processes do, for the length of a test."""
    for path in (folder.parent, folder):
        monkeypatch.syspath_prepend(path)
    before, threads = set(sys.modules), torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)  # `Bench` takes one on a CPU
    names = {path.stem for path in (*folder.glob("*.py"), folder.parent / "measure.py")}
    for name in names & set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def bench(imported: Callable[[str], Any], tmp_path: Path) -> Any:
    return imported("bench").Bench.of("cpu", False, tmp_path)


def test_eval_scores_what_the_one_validation_of_a_run_scored(
    imported: Callable[[str], Any], bench: Any
) -> None:
    found = list(imported("device").validation(bench))
    assert [(row.ours, row.bar, row.met) for row in found] == [
        ("equal", "equal", True),
        ("0", "≤ 0", True),
    ]


def test_both_runs_whose_synchronizations_are_compared_write_one_checkpoint(
    imported: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer.save_checkpoint
    written: list[tuple[str, int]] = []

    def save(run: str, *more: Any) -> Any:
        written.append((Path(run).name, more[-1].step))
        return real(run, *more)

    monkeypatch.setattr(trainer, "save_checkpoint", save)
    monkeypatch.setattr(trainer, "introduction", lambda *_: "")  # half of the time
    list(imported("sync").training_loop(bench))
    assert written == [("loop-3", 3), ("loop-4", 4), ("loop-10", 10)]


@pytest.mark.long
def test_the_largest_batch_is_found_where_memory_runs_out(
    imported: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = imported("training")
    monkeypatch.setattr(training, "_shape", lambda bench: ("segformer-tiny", 4, 32))
    monkeypatch.setattr(training, "_free", lambda: None)  # half of the time, and idle on a CPU

    def limited(learner: Any, most: int) -> Callable[[Any], object]:
        real = learner.__call__

        def step(self: Any) -> object:
            if len(self.batch.images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(self)

        return step

    for learner, most in ((training.PlainLearner, 3), (training.Learner, 5)):
        monkeypatch.setattr(learner, "__call__", limited(learner, most))
    largest, pace = training.largest_batch(bench)
    assert (largest.other, largest.ours, largest.met) == ("3", "5", True)
    assert pace.ours.endswith(" images/s")


@pytest.mark.long
def test_exported_programs_are_right_on_their_device(
    imported: Callable[[str], Any], bench: Any
) -> None:
    found = list(imported("device").exported_program(bench))
    assert [row.met for row in found] == [True, True]


@pytest.fixture
def plant_memory(
    imported: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int], None]:
    """Let the network take so many images, and strips so many numbers, where memory is short."""
    device = imported("device")
    monkeypatch.setattr(device, "peak_memory", lambda bench, function: (function(), 2**30))

    def plant(images: int, numbers: int) -> None:
        @contextlib.contextmanager
        def memory_left(bench: Any, left: float) -> Iterator[None]:
            assert left < 2**30
            with monkeypatch.context() as planted:
                for owner, name, place, most in (
                    (predictor.Predictor, "_run_network", 2, images),
                    (predictor, "class_strips", 3, numbers),
                    (predictor, "probability_strips", 3, numbers),
                ):
                    planted.setattr(owner, name, limited(getattr(owner, name), place, most))
                yield

        monkeypatch.setattr(device, "memory_left", memory_left)

    def limited(real: Callable[..., Any], place: int, most: int) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            size = arguments[place]
            if (size if isinstance(size, int) else len(size)) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(*arguments)

        return call

    return plant


def inference_memory(imported: Callable[[str], Any], bench: Any) -> list[tuple[str, str, bool]]:
    found = imported("device").inference_memory(bench)
    return [(row.what.removeprefix("too little memory for "), row.ours, row.met) for row in found]


@pytest.fixture
def small(imported: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give cases of `device` a small network, small images and small inputs of the network."""
    of_bench, device = imported("bench"), imported("device")
    for name, of_size in {
        "plain_network": lambda _: of_bench.plain_network("segformer-tiny"),
        "draw_image": lambda h, w, seed: of_bench.draw_image(h // 8, w // 8, seed),
        "Preprocess": lambda side: of_bench.Preprocess(side // 4),
    }.items():
        monkeypatch.setattr(device, name, of_size)


@pytest.mark.parametrize("size", ["small", pytest.param("large", marks=pytest.mark.long)])
def test_inference_with_too_little_memory_is_done_in_halves(
    size: str,
    imported: Callable[[str], Any],
    bench: Any,
    plant_memory: Callable[[int, int], None],
    request: pytest.FixtureRequest,
) -> None:
    if size == "small":
        request.getfixturevalue("small")
    plant_memory(8, 2**18)
    assert inference_memory(imported, bench) == [
        ("strips", "halved", True),
        ("strips: share of the pixels that differ", "0", True),
        ("a batch", "halved", True),
        ("a batch: share of the pixels that differ", "0", True),
    ]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (1, "out of memory: upsampling the logits of one image"),
        (0, "out of memory: the network, at batch size 1"),
    ],
)
@pytest.mark.usefixtures("small")
def test_inference_that_runs_out_of_memory_is_a_row_of_each_case(
    images: int,
    told: str,
    imported: Callable[[str], Any],
    bench: Any,
    plant_memory: Callable[[int, int], None],
) -> None:
    plant_memory(images, 2)
    assert inference_memory(imported, bench) == [("strips", told, False), ("a batch", told, False)]


def test_a_gradient_that_overflows_is_not_the_one_that_is_compared(
    imported: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fused optimizer is called all the same; it leaves out the update by itself."""
    parity = imported("parity")

    class Overflowing:
        def __init__(self, network: torch.nn.Module, *_: Any, **settings: Any) -> None:
            groups = [
                {"params": [p], "part": "head", "weight_decay": float(p.ndim > 1)}
                for p in network.parameters()
            ]
            self.step = SimpleNamespace(optimizer=torch.optim.AdamW(groups, fused=True))
            self.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
            self.losses = iter((1.0, 2.0, 3.0))

        def __call__(self) -> float:
            loss = next(self.losses)
            self.scaler.scale(torch.zeros(()))
            for group in self.step.optimizer.param_groups:
                overflows = loss < 2 and group["weight_decay"]  # in one group alone
                for p in group["params"]:
                    p.grad = torch.full_like(p, torch.inf if overflows else loss)
            self.scaler.unscale_(self.step.optimizer)
            self.scaler.step(self.step.optimizer)
            self.scaler.update()
            return loss

    monkeypatch.setattr(parity, "Learner", Overflowing)
    monkeypatch.setattr(parity, "ours_of", lambda network: network)
    loss, found = parity._gradients(
        parity._as_it_is, torch.nn.Linear(3, 2), 2, 32, torch.device("cpu"), {}, "float16"
    )
    assert loss == 2.0
    assert {kind: set(gradient.tolist()) for kind, gradient in found.items()} == {
        "head, weights": {1.0},  # 2 over the scale after an overflow
        "head, norms and biases": {1.0},
    }


def test_the_image_that_is_cut_into_tiles_is_drawn_once(
    imported: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = imported("sync")
    real, drawn = sync.draw_image, []

    def draw(height: int, width: int, seed: int) -> Any:
        drawn.append((height, width))
        return real(height, width, seed)

    monkeypatch.setattr(sync, "draw_image", draw)
    list(sync.inference_kernels(dataclasses.replace(bench, tiny=True)))
    assert len(drawn) == 9
    assert len(set(drawn)) == 2


def test_float32_is_compared_without_tf32(
    imported: Callable[[str], Any], bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, allowed = predictor.Predictor.predict, []

    def predict(self: Any, images: Any) -> Any:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return real(self, images)

    monkeypatch.setattr(predictor.Predictor, "predict", predict)
    list(imported("device").half_checkpoints(dataclasses.replace(bench, tiny=True)))
    assert allowed == [False] * 4
    assert torch.backends.cudnn.allow_tf32


# ---- the rehearsal, which has run beside the tests above


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
    assert "synchronizations in the scoring loop" in skipped
