"""The pages say what the code does: keys, links, and nothing that is not there."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cocoseg.settings import Settings

LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", title.lower()) for title in titles]
    return {title.replace(" ", "-") for title in kept}


def test_links_lead_to_pages_and_titles_that_are_there(root: Path) -> None:
    for page in pages(root):
        for target, anchor in LINK.findall(page.read_text()):
            if "://" in target:
                continue
            file = page.parent / target if target else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor:
                assert anchor in anchors(file), f"{page.name}: {target}#{anchor}"


def test_every_page_is_reached_from_the_readme(root: Path) -> None:
    linked = {target for target, _ in LINK.findall((root / "README.md").read_text())}
    assert {f"docs/{page.name}" for page in (root / "docs").glob("*.md")} <= linked


def section(page: Path, title: str) -> str:
    return page.read_text().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_every_setting_of_training_is_in_the_table_of_purposes(root: Path) -> None:
    table = section(root / "docs" / "training.md", "Settings by purpose")
    named = set(re.findall(r"`(\w+)`", table)) - {"train", "adamw", "sgd"}
    assert named == set(Settings.model_fields["train"].annotation.model_fields)


def test_the_keys_that_a_run_keeps_are_listed(root: Path) -> None:
    text = section(root / "docs" / "training.md", "Resuming")
    for name in ("model", "train"):
        (listed,) = re.findall(rf"^- `{name}`:((?:.|\n  )*)", text, re.MULTILINE)
        fixed = Settings.model_fields[name].annotation.fixed_keys
        assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(fixed)


@pytest.mark.parametrize("page", ["README.md", "docs"])
def test_settings_that_pages_name_exist(root: Path, page: str) -> None:
    known = {
        f"{name}.{key}"
        for name, field in Settings.model_fields.items()
        for key in field.annotation.model_fields
    }
    for file in [root / page] if page.endswith(".md") else sorted((root / page).glob("*.md")):
        sections = "|".join(Settings.model_fields)
        for key in re.findall(rf"(?<![\w./])((?:{sections})\.[a-z_]+)\b(?!\()", file.read_text()):
            assert key in known | {"model.safetensors", "index.npy"}, f"{file.name}: {key}"


def test_what_a_run_records_is_what_the_table_says(
    root: Path, tmp_path: Path, run_cocoseg: Any, golden: Any
) -> None:
    table = section(root / "docs" / "training.md", "What is recorded").split("|---|---|", 1)[1]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    documented = {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}
    ran = run_cocoseg(
        *("train", "--shards", golden.shards("train"), "--val-shards", golden.shards("val")),
        *("--output", tmp_path, "--set=model.name=segformer-tiny", "--set=model.input_size=32"),
        *("--set=train.max_steps=1", "--set=train.workers=0", "--set=train.device=cpu"),
    )
    assert ran.code == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    recorded = {key for line in lines for key in line}
    assert documented - recorded == {"scaler_overflows"}
    assert recorded <= documented


@pytest.fixture
def how_to(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The code of docs/how-to.md: new modules in their places, and its tests among others'."""
    text = (root / "docs" / "how-to.md").read_text()
    found: dict[str, Any] = {}
    for path, code in re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL):
        if path.startswith("tests/"):
            spec = importlib.util.spec_from_file_location(Path(path).stem, root / path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            assert not (root / path).exists()
            module = ModuleType(f"cocoseg.{path[:-3].replace('/', '.')}")
            module.__package__ = module.__name__.rpartition(".")[0]
            monkeypatch.setitem(sys.modules, module.__name__, module)
        before = set(vars(module))
        exec(compile(code, path, "exec"), vars(module))
        found[path] = module
        found |= {name: vars(module)[name] for name in set(vars(module)) - before}
    return found


def test_the_loss_network_and_augmentation_of_the_how_tos_work(
    root: Path, how_to: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.model.registry import FAMILIES
    from cocoseg.train.augment import AUGMENTATIONS
    from cocoseg.train.losses import LOSSES, LossEntry

    text = (root / "docs" / "how-to.md").read_text()
    places = {"poly": LOSSES, "mobilenet": FAMILIES, "posterize": AUGMENTATIONS}
    known = {**how_to, "mobilenet": how_to["model/mobilenet.py"], "LossEntry": LossEntry}
    for name, entry in re.findall(r"```\n    \"(\w+)\": (.*),\n```", text):
        monkeypatch.setitem(places.pop(name), name, eval(entry, known))
    assert not places
    tests = [name for name in how_to if name.startswith("test_")]
    assert len(tests) == 3
    for name in tests:
        how_to[name]()
