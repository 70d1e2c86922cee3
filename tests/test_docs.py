"""The pages say what the code does: keys, links, and nothing that is not there."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import yaml
from cocoseg.cli import cli
from cocoseg.config import describe, load
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


def test_every_reason_to_leave_an_image_out_is_in_the_table(root: Path) -> None:
    sources = [root / "photo.py", *sorted((root / "prepare").glob("*.py"))]
    text = "".join(file.read_text() for file in sources)
    reasons = set(re.findall(r'"([a-z]+(?:-[a-z]+)+)"', text)) - {"zlib-ng"}
    table = section(root / "docs" / "shards.md", "What is refused, what is left out")
    cells = "".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE))
    assert set(re.findall(r"`([a-z-]+)`", cells)) == reasons


@pytest.mark.parametrize("page", ["README.md", "docs"])
def test_settings_that_pages_name_exist(root: Path, page: str) -> None:
    known = {
        f"{name}.{key}"
        for name, field in Settings.model_fields.items()
        for key in field.annotation.model_fields
    }
    for file in [root / page] if page.endswith(".md") else sorted((root / page).glob("*.md")):
        sections = "|".join(Settings.model_fields)
        for key in re.findall(
            rf"(?<![\w./])((?:{sections})\.(?!md\b|npy\b)[a-z_]+)\b(?!\()", file.read_text()
        ):
            assert key in known | {"model.safetensors"}, f"{file.name}: {key}"


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
    of_losses = how_to["tests/train/test_losses.py"]
    places = {
        "poly": [LOSSES, of_losses.FORMULAS],
        "mobilenet": [FAMILIES],
        "posterize": [AUGMENTATIONS],
    }
    known = {**how_to, "mobilenet": how_to["model/mobilenet.py"], "LossEntry": LossEntry}
    for name, entry in re.findall(r"```\n    \"(\w+)\": (.*),\n```", text):
        monkeypatch.setitem(places[name].pop(0), name, eval(entry, known))
    assert not any(places.values())
    (case,) = [eval(case) for case in re.findall(r"```\n    ({\"loss_type\": .*}),\n```", text)]
    of_losses.test_value_and_gradient_are_the_textbooks(case)
    of_losses.test_a_step_that_is_all_ignored_is_a_zero_of_the_graph(case)
    tests = [name for name in how_to if name.startswith("test_")]
    assert len(tests) == 2
    for name in tests:
        how_to[name]()


def test_every_loss_is_described_with_its_settings(root: Path) -> None:
    from cocoseg.train.losses import LOSSES

    text = section(root / "docs" / "training.md", "Loss")
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(LOSSES)
    for setting in ("class_weights", "label_smoothing", "ohem"):
        (losses,) = re.findall(rf"^- `train\.{setting}`.*? \((.*?)\):", text, re.MULTILINE)
        using = sorted(name for name, entry in LOSSES.items() if setting in entry.uses)
        assert sorted(re.findall(r"`(\w+)`", losses)) == using
    (described,) = describe(load(Settings), "train.loss_type")
    assert set(LOSSES) <= set(re.findall(r"'(\w+)'", described.description))


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def command_lines(root: Path) -> list[list[str]]:
    """What follows ``cocoseg`` on each line of shell in the pages."""
    found = []
    for page in [*pages(root), root / "CONTRIBUTING.md"]:
        lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
        for line in lines:
            before, name, after = re.split("#(?!SBATCH)", line)[0].partition("cocoseg ")
            if name and not re.search(r"\w$|[./]$", before) and not before.startswith("#SBATCH"):
                found.append(shlex.split(after))
    return found


def parse(arguments: list[str]) -> None:
    """Read a command line as the commands do, without running it."""
    command: click.Command = cli
    context = click.Context(cli, info_name="cocoseg", **cli.context_settings)
    words = [word for word in arguments if word != "…"]
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
        context = click.Context(command, parent=context)
    if words != arguments[-len(words) :] or isinstance(command, click.Group):  # abridged by "…"
        return command.parse_args(context, words) if words and words[0] == "--help" else None
    command.parse_args(context, words)
    overrides = [item for item in context.params.get("overrides", ()) if "…" not in item]
    load(Settings, None, overrides)


def test_every_command_line_of_the_pages_is_valid(root: Path) -> None:
    found = command_lines(root)
    assert len(found) > 45
    for arguments in found:
        try:
            parse(arguments)
        except click.exceptions.Exit:  # --help
            pass
        except click.ClickException as error:
            raise AssertionError(f"{arguments}: {error.format_message()}") from error


def test_every_yaml_of_the_pages_is_read(root: Path, tmp_path: Path) -> None:
    from cocoseg.classes_file import read_class_rules
    from cocoseg.prepare.label_values import named_classes

    read = 0
    for page in pages(root):
        for block in blocks(page, "yaml"):
            file = tmp_path / f"block-{read}.yaml"
            file.write_text(block)
            keys = set(yaml.safe_load(block))
            if keys <= set(Settings.model_fields):
                load(Settings, str(file))
            elif page.name == "classes.md" and "potted plant" in block:
                read_class_rules(str(file))
            else:
                named_classes(str(file), "", 1)
            read += 1
    assert read == 8


def test_shards_are_streamed_as_the_page_says(root: Path, golden: Any) -> None:
    (code,) = blocks(root / "docs" / "streaming.md", "python")
    assert code.count("s3://bucket/shards/train") == code.count("workers=4") == 1
    code = code.replace("s3://bucket/shards/train", str(golden.shards("train")))
    code = code.replace("workers=4", "workers=0") + "        if saved['position'] == 16: break\n"
    found: dict[str, Any] = {"__name__": "__main__", "crop": lambda image, mask: (1, 2)}
    exec(compile(code, "docs/streaming.md", "exec"), found)
    assert found["saved"]["position"] == 16


def test_predictions_are_scored_as_the_page_says(
    root: Path, golden: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cocoseg: Any
) -> None:
    (code,) = blocks(root / "docs" / "inference.md", "python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "instances_val2017.json").symlink_to(golden.annotations("val"))
    ran = run_cocoseg(
        *(
            "train",
            "--shards",
            golden.shards("train"),
            "--output",
            "run",
            "--set=train.max_steps=1",
        ),
        *("--set=model.name=segformer-tiny", "--set=model.input_size=32", "--set=train.workers=0"),
    )
    assert ran.code == 0, ran.err
    ran = run_cocoseg(
        *("infer", "--checkpoint", "run", "--input", golden.shards("val"), "--output", "masks"),
        *("--coco-json", "--no-tta"),
    )
    assert ran.code == 0, ran.err
    found: dict[str, Any] = {}
    exec(compile(code, "docs/inference.md", "exec"), found)
    assert found["predicted"].getImgIds() == found["annotated"].getImgIds()
