"""Faults are planted one by one, and the doctor names each; it never falls ill itself."""

import importlib.metadata
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cocoseg.doctor import libraries, machine
from cocoseg.doctor.checks import Diagnosis, checks, examine
from cocoseg.doctor.finding import Finding, found_by, ok, problem, warning
from cocoseg.model.config import ModelConfig
from cocoseg.shards.reader import ShardSet
from cocoseg.taxonomy import SemanticClass, Taxonomy
from cocoseg.train.config import AugmentConfig, TrainConfig

MODEL = ModelConfig(name="segformer-tiny", input_size=32)
SMALL = {"batch_size": 2, "workers": 0, "device": "cpu", "backbone_lr_ratio": 1.0}
DATA = ("shards", "classes", "loader", "network", "learning", "scores")

Examine = Callable[..., list[Finding]]


@pytest.fixture
def examined(golden: Any) -> Examine:
    """Run the checks that read data, the others left out: `examined(shards, workers=…)`."""

    def run(
        *shards: Path, model: ModelConfig = MODEL, checkpoint: Path | None = None, **settings: Any
    ) -> list[Finding]:
        config = TrainConfig.model_validate(
            {
                "shards": tuple(map(str, shards)) or (str(golden.shards("train")),),
                "learning_rate": 2e-3,
                **SMALL,
                **settings,
            }
        )
        at_hand = None if checkpoint is None else str(checkpoint)
        todo = checks(config, model, AugmentConfig(), at_hand)
        return [one for name in DATA if name in todo for one in found_by(name, todo[name])]

    return run


@pytest.fixture
def copied(golden: Any, tmp_path: Path) -> Path:
    return shutil.copytree(golden.shards("train"), tmp_path / "copied")


def worst(findings: Iterable[Finding], check: str | None = None) -> list[str]:
    return [
        f"{one.check}: {one.text}"
        for one in findings
        if one.state == "problem" and check in (None, one.check)
    ]


def warned(findings: Iterable[Finding]) -> str:
    return "\n".join(f"{one.check}: {one.text}" for one in findings if one.state == "warning")


def test_healthy_shards_pass_every_check(examined: Examine, golden: Any) -> None:
    findings = examined(val_shards=(str(golden.shards("val")),))
    assert worst(findings) == []
    assert {one.check for one in findings} == set(DATA)
    told = "\n".join(one.text for one in findings)
    for part in ("training: 8 samples in 3 shards", "validation: 4 samples", "images/s", "81"):
        assert part in told


def test_a_truncated_and_a_missing_shard_are_named(examined: Examine, copied: Path) -> None:
    tar = copied / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-1024])
    (copied / "shard-000002.tar").unlink()
    (found,) = worst(examined(copied))
    assert found.startswith("shards: ")
    assert "shard-000001.tar has " in found
    assert "shard-000002.tar is missing" in found


def test_a_damaged_sample_is_named(examined: Examine, copied: Path) -> None:
    row = ShardSet([str(copied)]).row(4)
    tar = copied / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[row.offsets[0] + 7] ^= 1
    tar.write_bytes(content)
    (found,) = worst(examined(copied))
    assert found.startswith("loader: ")
    assert f"shard-000001.tar: sample {row.key}: " in found


@pytest.mark.parametrize("fault", ["no folder", "no manifest", "broken manifest", "index cut"])
def test_what_are_no_shards_is_a_problem_and_the_rest_is_left_out(
    examined: Examine, copied: Path, fault: str
) -> None:
    if fault == "no folder":
        shutil.rmtree(copied)
    elif fault == "no manifest":
        (copied / "manifest.json").unlink()
    elif fault == "broken manifest":
        (copied / "manifest.json").write_text('{"format": ')
    else:
        index = copied / "index.npy"
        index.write_bytes(index.read_bytes()[:-8])
    findings = examined(copied)
    assert len(worst(findings)) == 1
    assert str(copied) in worst(findings, "shards")[0]
    assert {one.check for one in findings} == {"shards"}


def test_pixels_that_manifest_and_index_count_differently_are_told(
    examined: Examine, copied: Path
) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["class_pixels"][0] += 1
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert worst(examined(copied)) == ["classes: the manifest counts other pixels than the index"]


WHOLE = {"counts": [0, 192], "size": [12, 16]}  # every pixel of 16 × 12


def test_masks_that_are_ignored_whole_are_named(
    examined: Examine, coco_set: Any, tmp_path: Path
) -> None:
    for number in range(1, 5):
        coco_set.photo(number)
        if number != 3:
            coco_set.annotate(number, [[1, 1, 9, 1, 9, 9, 1, 9]])
    coco_set.annotate(3, WHOLE, iscrowd=1)
    coco_set.prepare(tmp_path / "shards", crowd="ignore")
    findings = examined(tmp_path / "shards")
    assert worst(findings) == []
    assert "classes: 1 of 4 masks are ignored whole: 000000000003" in warned(findings)


def test_shards_of_which_nothing_can_be_learnt_are_a_problem(
    examined: Examine, coco_set: Any, tmp_path: Path
) -> None:
    for number in (1, 2):
        coco_set.photo(number)
        coco_set.annotate(number, WHOLE, iscrowd=1)
    coco_set.prepare(tmp_path / "shards", crowd="ignore")
    found = worst(examined(tmp_path / "shards"))
    assert len(found) == 2
    assert "there is nothing to learn" in found[0]
    assert found[1].startswith("learning: no sample was read of which something could be learnt")


def test_classes_in_no_mask_are_counted(examined: Examine) -> None:
    assert "75 classes are in no mask: bicycle, motorcycle" in warned(examined())


def test_other_classes_in_validation_are_told(
    examined: Examine, coco_set: Any, golden: Any, tmp_path: Path
) -> None:
    coco_set.photo(1)
    coco_set.annotate(1, [[1, 1, 9, 1, 9, 9, 1, 9]])
    coco_set.prepare(tmp_path / "other")
    findings = examined(val_shards=(str(tmp_path / "other"),))
    assert worst(findings) == ["shards: training and validation shards have different classes"]


def test_workers_that_cannot_start_are_told_and_the_rest_goes_on_without(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.train import batches

    usual = batches.loader_options

    def none_left(workers: int, module: str) -> dict[str, Any]:
        if workers:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return usual(workers, module)

    monkeypatch.setattr(batches, "loader_options", none_left)
    findings = examined(workers=3)
    (found,) = worst(findings)
    assert found.startswith("loader: 3 loader processes: BlockingIOError: ")
    assert any("0 workers" in one.text for one in findings if one.check == "loader")
    assert any(one.check == "scores" and one.state == "ok" for one in findings)


def test_a_learning_rate_that_explodes_is_a_problem(examined: Examine) -> None:
    found, scores = worst(examined(learning_rate=1e30))
    assert "the network's logits are not finite" in scores
    assert found.startswith("learning: loss ")
    assert "the loss is not finite" in found


def test_a_learning_rate_of_nothing_is_told(examined: Examine) -> None:
    assert "it does not fall" in warned(examined(learning_rate=1e-12))


def test_a_step_that_memory_cannot_hold_is_told_before_it_is_taken(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.doctor import trial

    monkeypatch.setattr(trial, "free_memory", lambda: 1_000_000)
    (found,) = worst(examined())
    assert found.startswith("network: ")
    assert "for steps of 2 × 32²" in found
    assert "1.0 MB are free (cpu)" in found


def test_scores_that_lose_pixels_are_a_problem(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.doctor import trial

    totals_of = trial.totals_of

    def loses(predicts: Any, shards: Any, batches: Any) -> Any:
        return totals_of(predicts, shards, [batch[1:] for batch in batches])

    monkeypatch.setattr(trial, "totals_of", loses)
    (found,) = worst(examined())
    assert found.startswith("scores: the confusion matrix counts ")


def test_a_network_that_cannot_be_fetched_is_replaced_by_a_small_one(
    examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    findings = examined(model=ModelConfig(name="nobody/nothing-at-all", input_size=32))
    assert worst(findings) == []
    assert "nobody/nothing-at-all" in warned(findings)
    assert "segformer-tiny stands in for it" in warned(findings)
    assert any(one.check == "learning" and one.state == "ok" for one in findings)


def test_a_checkpoint_is_loaded_and_its_classes_compared(
    examined: Examine, golden: Any, tmp_path: Path
) -> None:
    from cocoseg.checkpoint.folder import save_network
    from cocoseg.checkpoint.network import start_network

    theirs = ShardSet([str(golden.shards("train"))]).taxonomy
    other = Taxonomy((SemanticClass("background"), SemanticClass("cat")))
    for name, taxonomy in (("same", theirs), ("other", other)):
        (tmp_path / name).mkdir()
        network, preprocess = start_network(MODEL, taxonomy, 0)
        save_network(tmp_path / name, network, preprocess, taxonomy)
    findings = examined(checkpoint=tmp_path / "same")
    assert worst(findings) == []
    assert f"{tmp_path / 'same'}: " in "\n".join(one.text for one in findings)
    (found,) = worst(examined(checkpoint=tmp_path / "other"))
    assert found == "network: the checkpoint's classes are not those of the shards"
    weights = tmp_path / "same" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (found,) = worst(examined(checkpoint=tmp_path / "same"))
    assert "weights are damaged" in found


# The machine


def of(check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    return found_by("it", check)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that the doctor is made to see; None: not installed."""
    pretended: dict[str, str | None] = {}
    usual = importlib.metadata.version

    def version(name: str) -> str:
        found = pretended.get(name, "usual")
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return usual(name) if found == "usual" else found

    monkeypatch.setattr(importlib.metadata, "version", version)
    return pretended


def test_versions_here_are_in_their_ranges() -> None:
    assert [one.state for one in of(libraries.versions)] == ["ok"]
    assert [one.state for one in of(libraries.python)] == ["ok"]


@pytest.mark.parametrize(
    ("name", "version", "told"),
    [
        ("torch", "2.3.1", "torch 2.3.1 is outside "),
        ("torch", "2.99.0+cu130", "torch 2.99.0+cu130 is outside "),
        ("transformers", "not-a-version", "transformers not-a-version is outside "),
        ("albumentations", None, "albumentations is not installed"),
    ],
)
def test_a_wrong_version_is_named(
    installed: dict[str, str | None], name: str, version: str | None, told: str
) -> None:
    installed[name] = version
    (found,) = worst(of(libraries.versions))
    assert told in found
    (remedy,) = [one.remedy for one in of(libraries.versions) if one.state == "problem"]
    assert remedy.startswith(f"pip install '{name}")


def test_builds_of_torch_for_a_gpu_and_of_vendors_are_in_range(
    installed: dict[str, str | None],
) -> None:
    for version in ("2.13.0+cu130", "2.13.0a0+git1234567", "2.12.1"):
        installed["torch"] = version
        assert worst(of(libraries.versions)) == []


def test_another_opencv_serves_too_and_two_are_told(installed: dict[str, str | None]) -> None:
    installed["opencv-python"] = "4.12.0"
    assert "over each other" in warned(of(libraries.versions))
    installed["opencv-python-headless"] = None
    assert worst(of(libraries.versions)) == []


def test_a_torchvision_of_another_torch_is_a_problem(
    installed: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed |= {"torchvision": "0.20.1", "torch": "2.13.0"}
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["numpy", "torch==2.5.1"])
    (found,) = worst(of(libraries.torchvision))
    assert "torchvision 0.20.1 requires torch==2.5.1, installed is torch 2.13.0" in found
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch==2.13.0"])
    assert worst(of(libraries.torchvision)) == []
    installed |= {"torchvision": "0.28.0+cu130", "torch": "2.13.0+cpu"}
    assert "of different builds" in worst(of(libraries.torchvision))[0]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ImportError('libGL.so.1: cannot open')", "ImportError: libGL.so.1: cannot open"),
        ("import os; os.kill(os.getpid(), 11)", "killed by SIGSEGV"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_library_that_cannot_be_imported_is_named_even_if_it_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, told: str
) -> None:
    (tmp_path / "broken_library.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(libraries, "_IMPORTS", ("json", "broken_library", "csv"))
    (found,) = worst(of(libraries.imports))
    assert found.startswith("it: import broken_library: ")
    assert told in found
    monkeypatch.setattr(libraries, "_IMPORTS", ("json", "csv"))
    assert worst(of(libraries.imports)) == []


def test_a_gpu_whose_torch_is_for_the_cpu_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    config = TrainConfig()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(machine, "_nvidia_driver", lambda: "580.1")
    assert "580.1), but torch" in worst(of(lambda: machine.gpu(config)))[0]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError("too old")))
    assert "too old" in worst(of(lambda: machine.gpu(config)))[0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides every GPU" in warned(of(lambda: machine.gpu(config)))
    monkeypatch.setattr(machine, "_nvidia_driver", lambda: None)
    assert worst(of(lambda: machine.gpu(config))) == []
    asked = TrainConfig(device="cuda:7")
    assert "cuda:7" in worst(of(lambda: machine.gpu(asked)))[0]


def test_the_driver_is_read_from_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert machine._nvidia_driver() is None
    folder = tmp_path / "driver" / "nvidia"
    folder.mkdir(parents=True)
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build",
    ):
        (folder / "version").write_text(line)
        assert machine._nvidia_driver() == "535.104.05"


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def pretend(free: int) -> None:
        status = SimpleNamespace(f_bavail=free // 4096, f_frsize=4096)
        monkeypatch.setattr(os, "statvfs", lambda _: status)

    return pretend


def test_a_small_shared_memory_is_a_problem_and_docker_is_named(
    disk: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SHM", str(tmp_path))
    config = TrainConfig(workers=8, batch_size=8)
    model = ModelConfig(input_size=640)  # 8 · 3 · 8 · 640² · 4 = 315 MB
    expected = {64_000_000: "problem", 400_000_000: "warning", 2_000_000_000: "ok"}
    for free, state in expected.items():
        disk(free)
        (found,) = of(lambda: machine.shared_memory(config, model))
        assert found.state == state
        assert "314.6 MB" in found.text
        assert (state == "ok") == (found.remedy == "")
    disk(0)
    alone = TrainConfig(workers=0)
    assert worst(of(lambda: machine.shared_memory(alone, model))) == []


def test_few_open_files_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert "at most 256" in warned(of(machine.open_files))


@pytest.fixture
def control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("1:cpu:/x\n0::/pod/container\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   32000000 kB\n")
    (tmp_path / "cgroup" / "pod" / "container").mkdir(parents=True)
    return tmp_path / "cgroup"


def test_limits_of_version_two_count_at_every_level(
    control_groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (machine.cpu_quota(), machine.memory_limit()) == (None, None)
    (control_groups / "pod" / "container" / "cpu.max").write_text("max 100000\n")
    (control_groups / "pod" / "cpu.max").write_text("150000 100000\n")
    for folder, limit in (("pod", "max"), ("pod/container", "3000000000")):
        (control_groups / folder / "memory.max").write_text(f"{limit}\n")
        (control_groups / folder / "memory.current").write_text("1000000000\n")
    assert (machine.cpu_quota(), machine.memory_limit()) == (1.5, 2_000_000_000)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = warned(of(lambda: machine.cores(TrainConfig(workers=4))))
    assert "64 present, 16 usable, and a limit of 1.5 by the container" in told
    assert "libraries start 16 threads for 1.5 cores" in told
    assert "2.0 GB free within the limit of the container; a training process" in warned(
        of(lambda: machine.memory(TrainConfig(workers=8)))
    )
    assert warned(of(lambda: machine.memory(TrainConfig(workers=4)))) == ""


def test_limits_of_version_one_count_too(control_groups: Path) -> None:
    for name, text in (
        ("cpu/cpu.cfs_quota_us", "250000"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("memory/memory.limit_in_bytes", "4000000000"),
        ("memory/memory.usage_in_bytes", "500000000"),
    ):
        (control_groups / name).parent.mkdir(exist_ok=True)
        (control_groups / name).write_text(text)
    assert (machine.cpu_quota(), machine.memory_limit()) == (2.5, 3_500_000_000)
    (control_groups / "cpu/cpu.cfs_quota_us").write_text("-1")
    (control_groups / "memory/memory.limit_in_bytes").write_text("9223372036854771712")
    assert (machine.cpu_quota(), machine.memory_limit()) == (None, None)


def test_no_workers_and_too_many_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    states = [of(lambda n=n: machine.cores(TrainConfig(workers=n)))[0].state for n in (0, 1, 4, 5)]
    assert states == ["warning", "ok", "ok", "warning"]


def test_folders_without_room_or_permission_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    config = TrainConfig(
        shards=("s3://bucket/shards",),
        cache_dir=str(tmp_path / "file" / "cache"),
        save_dir=str(tmp_path / "not" / "there" / "yet"),
    )
    (found,) = worst(of(lambda: machine.folders(config)))
    assert f"train.cache_dir: {tmp_path / 'file' / 'cache'} cannot be written to" in found
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    assert "train.save_dir: 1.0 MB free" in warned(of(lambda: machine.folders(config)))

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert "No space left on device" in worst(of(lambda: machine.folders(config)))[0]


def test_weights_that_are_not_at_hand_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ModelConfig(name="nobody/nothing-at-all")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert "the first run fetches it" in warned(of(lambda: machine.hub(absent)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in worst(of(lambda: machine.hub(absent)))[0]
    assert worst(of(lambda: machine.hub(MODEL))) == []


# The doctor


def test_whatever_a_check_raises_is_its_problem_and_what_it_found_stays() -> None:
    def falls_ill() -> Iterable[Finding]:
        yield ok("one")
        raise ZeroDivisionError("first line\nsecond line")

    first, second = found_by("it", falls_ill)
    assert (first.state, first.text, first.check) == ("ok", "one", "it")
    assert (second.state, second.text) == ("problem", "ZeroDivisionError: first line")

    def leaves() -> Iterable[Finding]:
        raise SystemExit(2)

    assert found_by("it", leaves)[0].text == "SystemExit: 2"

    def is_interrupted() -> Iterable[Finding]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found_by("it", is_interrupted)


def test_every_check_may_fail_and_the_diagnosis_is_whole(
    golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ill(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no such luck")

    for module in (libraries, machine):
        for name in [n for n, v in vars(module).items() if callable(v) and n.islower()]:
            if getattr(module, name).__module__ == module.__name__ and not name.startswith("_"):
                monkeypatch.setattr(module, name, ill)
    monkeypatch.setattr("cocoseg.doctor.inspection.ShardSet", ill)
    config = TrainConfig.model_validate({"shards": (str(golden.shards("train")),), **SMALL})
    said: list[str] = []
    diagnosis = examine(config, MODEL, AugmentConfig(), say=said.append)
    assert diagnosis.problems == len(said) - 5  # data checks behind the first have no shards
    assert "RuntimeError: no such luck" in diagnosis.text()
    assert json.loads(json.dumps(diagnosis.to_dict()))["problems"] == diagnosis.problems


def test_the_table_tells_state_check_and_remedy() -> None:
    found = found_by("disk", lambda: [ok("fine"), warning("small", "buy"), problem("full", "go")])
    diagnosis = Diagnosis(tuple(found))
    assert diagnosis.problems == 1
    assert diagnosis.text().splitlines() == [
        "ok       disk  fine",
        "WARNING  disk  small",
        "               → buy",
        "PROBLEM  disk  full",
        "               → go",
        "",
        "1 problems, 1 warnings",
    ]
    assert diagnosis.to_dict()["findings"][2] == {
        "state": "problem",
        "text": "full",
        "remedy": "go",
        "check": "disk",
    }


def test_without_shards_only_the_machine_is_examined() -> None:
    assert not set(DATA) & set(checks(TrainConfig(), MODEL, AugmentConfig()))
    with_checkpoint = checks(TrainConfig(), MODEL, AugmentConfig(), "run")
    assert set(DATA) & set(with_checkpoint) == {"network"}
