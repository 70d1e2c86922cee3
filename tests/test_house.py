"""The house: the repository root is the package, and what it promises in writing is there."""

import importlib.metadata
import re
import subprocess
import tomllib

import click
import pytest
from cocoseg import __version__
from cocoseg.cli import cli
from cocoseg.options import options_of
from cocoseg.settings import Settings

OUTSIDE = {"tests", "benchmarks", "docs", "build", "dist"}  # of the package


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


def test_packages_are_exactly_the_folders_that_hold_an_init(root, project):
    packages = {"cocoseg"}
    for room in root.iterdir():
        if room.name not in OUTSIDE and not room.name.startswith("."):
            folders = (path.parent.relative_to(root) for path in room.rglob("__init__.py"))
            packages |= {".".join(("cocoseg", *folder.parts)) for folder in folders}
    assert packages == set(project["tool"]["setuptools"]["packages"])


def test_every_folder_with_modules_is_a_package(root):
    rooms = {path.parent.name for path in root.glob("[!.]*/*.py")} - OUTSIDE
    assert rooms == {path.parent.name for path in root.glob("[!.]*/__init__.py")}


def test_the_installed_version_is_the_packages():
    assert importlib.metadata.version("cocoseg") == __version__


def test_torchvision_is_never_a_dependency(project):
    extras = project["project"]["optional-dependencies"].values()
    wanted = [*project["project"]["dependencies"], *(item for extra in extras for item in extra)]
    assert not [item for item in wanted if item.startswith("torchvision")]


OPTIONS = {
    "prepare": "annotations boxes check-images classes crowd engine exif group-by image-suffix "
    "images limit mask-suffix masks max-bad max-side only output overlap overwrite "
    "samples-per-shard skip-empty split workers",
    "index": "classes exif split workers",
    "train": "output resume shards val-shards",
    "infer": "batch-size checkpoint coco-json color confidence ids input min-confidence output "
    "overlay probabilities tta",
    "eval": "batch-size checkpoint compare-tta output pictures predictions quick save-predictions "
    "shards tta",
    "doctor": "checkpoint shards",
    "onnx": "checkpoint input-type opset output output-type overwrite",
    "program": "checkpoint input-type output output-type overwrite",
    "hf": "checkpoint metrics output overwrite",
}


@pytest.mark.parametrize(("name", "expected"), OPTIONS.items(), ids=OPTIONS)
def test_the_options_of_the_commands_are_these(name, expected):
    command = {**cli.commands, **cli.commands["export"].commands}[name]
    options = command.get_params(click.Context(command, **cli.context_settings))
    found = {
        one.opts[0].removeprefix("--")
        for one in options
        if isinstance(one, click.Option) and "--help" not in one.opts
    }
    assert sorted(found - {"config", "set", "dry-run", "json"}) == expected.split()


def test_an_option_has_the_words_the_choices_and_the_default_of_its_field():
    overlap = next(one for one in options_of("prepare", "prepare") if one.name == "overlap")
    field = Settings.model_fields["prepare"].annotation.model_fields["overlap"]
    assert overlap.help == f"{' '.join(field.description.split())} [area]"
    assert overlap.type.choices == ("area", "order")
    tta = next(one for one in options_of("infer", "eval") if one.name == "use_tta")
    assert (tta.opts, tta.secondary_opts, tta.default) == (["--tta"], ["--no-tta"], None)
    assert next(one for one in options_of("train", "train") if one.name == "shards").multiple


def test_tests_mirror_the_rooms(root):
    rooms = {path.name for path in (root / "tests").iterdir() if path.is_dir()}
    rooms -= {"golden", "fake_cuda", "__pycache__"}
    assert rooms <= {path.parent.name for path in root.glob("*/__init__.py")}


def test_the_docstring_of_a_package_names_its_modules(root):
    for package in root.glob("[!.]*/**/__init__.py"):
        if package.relative_to(root).parts[0] in OUTSIDE:
            continue
        text = package.read_text().split('"""')[1]
        modules = {path.name for path in package.parent.glob("*.py")} - {"__init__.py"}
        if len(modules) > 1 and package.parent.name not in ("losses", "augment"):
            assert {f"{name}.py" for name in re.findall(r"(\w+)\.py", text)} == modules, package


NOT = (
    r"whole road|\b([Gg]o|goes|going|went|gone) on\b|\b[Ss]trangers?\b|\b[Aa]new\b",
    r"\b[Mm]end(s|ed|ing)?\b|\b[Hh]eed(s|ed)?\b|\b[Ss]tarv(e|es|ed|ing)\b|[Mm]et on the way",
    r"does not do for|did not come\b|(is|are) no UTF-8|told (once|at once)|[Ii]mages a shard",
    r"colour|normalise|synchronise|initialise|[Nn]either in the masks nor predicted",
)
"""Phrases of an early dialect, and British spellings."""


def test_texts_use_the_usual_words(root):
    phrases = re.compile("|".join(NOT))
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    found = []
    for name in listed.stdout.split():
        if (
            name.endswith((".py", ".md", ".yaml", ".yml", ".toml"))
            and name != "tests/test_house.py"
        ):
            for number, line in enumerate((root / name).read_text().splitlines(), 1):
                if phrases.search(line):
                    found.append(f"{name}:{number}: {line.strip()}")
    assert found == []
