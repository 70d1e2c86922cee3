"""The house: the repository root is the package, and what it promises in writing is there."""

import importlib.metadata
import tomllib

import pytest
from cocoseg import __version__
from cocoseg.cli import cli
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


STAGES = {"prepare": "prepare", "train": "train", "infer": "infer", "eval": "infer"}


@pytest.mark.parametrize(("command", "section"), STAGES.items())
def test_every_flag_of_a_stage_is_a_config_key(command, section):
    common = {"config_file", "overrides", "dry_run", "as_json"}
    flags = {parameter.name for parameter in cli.commands[command].params} - common
    assert flags
    assert flags <= set(Settings.model_fields[section].annotation.model_fields)


def test_tests_mirror_the_rooms(root):
    rooms = {path.name for path in (root / "tests").iterdir() if path.is_dir()}
    rooms -= {"golden", "fake_cuda", "__pycache__"}
    assert rooms <= {path.parent.name for path in root.glob("*/__init__.py")}
