"""What `import cocoseg` offers: names, types of names, effects; and the page that shows it."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import cocoseg
import numpy as np
import pytest
import torch
from cocoseg.meter import Advance


def test_importing_it_imports_nothing_heavy_and_takes_no_time() -> None:
    code = "import sys, cocoseg; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not {"torch", "numpy", "pydantic", "transformers", "webdataset", "PIL"} & loaded


@pytest.mark.parametrize("name", cocoseg.__all__)
def test_every_public_name_is_a_class_or_a_function_with_types_and_words(name: str) -> None:
    offered = getattr(cocoseg, name)
    assert offered.__module__.startswith("cocoseg.")
    assert offered.__name__ == name  # one thing has one name
    assert inspect.getdoc(offered)
    if inspect.isfunction(offered):
        signature = inspect.signature(offered)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(one.annotation is not one.empty for one in signature.parameters.values())


def test_no_public_name_is_hidden_by_a_module() -> None:
    outside = ("tests", "benchmarks", "docs", "__main__", "build")
    for module in pkgutil.walk_packages(cocoseg.__path__, "cocoseg."):
        if module.name.split(".")[1] not in outside:
            importlib.import_module(module.name)
    assert [
        name for name in cocoseg.__all__ if isinstance(getattr(cocoseg, name), ModuleType)
    ] == []


def test_windows_is_refused_with_what_to_do() -> None:
    code = "import sys; sys.platform = 'win32'; import cocoseg"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 1
    assert ran.stderr.endswith("on Windows, use it in WSL (it needs POSIX file locks)\n")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cocoseg.nothing  # noqa: B018
    assert {*cocoseg.__all__, "__version__"} <= set(dir(cocoseg))


@pytest.fixture
def settings(golden: Any, tmp_path: Path) -> dict[str, Any]:
    """Settings of a training of four steps."""
    return {
        "train": cocoseg.TrainConfig(
            shards=(str(golden.shards("train")),),
            val_shards=(str(golden.shards("val")),),
            save_dir=str(tmp_path / "run"),
            max_steps=4,
            workers=0,
            device="cpu",
        ),
        "model": cocoseg.ModelConfig(name="segformer-tiny", input_size=32),
    }


def test_training_restores_what_it_changes(settings: dict[str, Any]) -> None:
    torch.manual_seed(7)
    state, filters = torch.get_rng_state(), list(warnings.filters)
    cudnn = torch.backends.cudnn
    kernels = (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    result = cocoseg.train_model(**settings)
    assert result is not None
    assert result.step == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert list(warnings.filters) == filters
    after = (cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled())
    assert after == kernels


def test_progress_can_be_a_function(
    settings: dict[str, Any], capfd: pytest.CaptureFixture[str], golden: Any, tmp_path: Path
) -> None:
    seen: list[Advance] = []
    cocoseg.train_model(**settings, progress=seen.append)
    steps = [one for one in seen if one.what == "train"]
    assert [(one.done, one.total, one.unit) for one in steps] == [
        (i, 4, "step") for i in range(1, 5)
    ]
    assert "loss" in steps[-1].facts
    assert {one.what for one in seen} == {"train", "validation"}
    seen.clear()
    config = cocoseg.PrepareConfig(
        annotations=(str(golden.annotations("train")),),
        images=(str(golden.images("train")),),
        output=str(tmp_path / "shards"),
        engine="inline",
    )
    cocoseg.prepare_shards(config, progress=seen.append)
    assert [one.done for one in seen][-1] == 8
    assert capfd.readouterr().out == ""


def test_the_page_runs_from_top_to_bottom(
    root: Path, golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        (tmp_path / "data" / split).symlink_to(golden.images(split))
        (tmp_path / "data" / f"instances_{split}.json").symlink_to(golden.annotations(split))
    monkeypatch.chdir(tmp_path)
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", (root / "docs" / "python.md").read_text(), re.DOTALL)
    )
    found: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), found)
    assert found["run"].step == 4
    assert found["mask"].shape == found["image"].shape[:2]
    assert np.isfinite(found["scores"].miou)
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert len(list((tmp_path / "masks").glob("*.png"))) == 4


def test_training_runs_in_a_notebook(golden: Any, tmp_path: Path) -> None:
    """A cell runs in a process whose `__main__` is no file, inside of a running event loop."""
    cell = textwrap.dedent(
        f"""
        import asyncio
        import cocoseg

        async def cell():
            return cocoseg.train_model(
                cocoseg.TrainConfig(
                    shards=({str(golden.shards("train"))!r},),
                    save_dir={str(tmp_path / "run")!r},
                    max_steps=2,
                    workers=1,
                    device="cpu",
                ),
                cocoseg.ModelConfig(name="segformer-tiny", input_size=32),
                progress=True,
            )

        print("steps", asyncio.run(cell()).step)
        """
    )
    ran = subprocess.run(
        [sys.executable, "-c", cell], capture_output=True, text=True, timeout=600, check=False
    )
    assert ran.stdout == "steps 2\n", ran.stderr
