"""The commands of docs/tutorial.md work on the exports that it names, and print what it shows."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from cocoseg.demo.objects import KINDS
from cocoseg.demo.scenes import DemoSplit, draw_dataset

NAMES = [kind.name for kind in KINDS]


def write_export(split: DemoSplit, json_file: Path, images: Path, root: str, rename: Any) -> None:
    """Write a drawn split as a tool does, its images under other names and its ids from 1."""
    content = json.loads(split.annotations.read_text())
    drawn = {category["id"]: category["name"] for category in content["categories"]}
    content["categories"] = [
        {"id": k, "name": name, "supercategory": root} for k, name in enumerate(NAMES, 1)
    ]
    if root:
        content["categories"].insert(0, {"id": 0, "name": root, "supercategory": "none"})
    for annotation in content["annotations"]:
        annotation["category_id"] = NAMES.index(drawn[annotation["category_id"]]) + 1
    images.mkdir(parents=True, exist_ok=True)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        name = rename(image["file_name"])
        shutil.copy(split.images / image["file_name"], images / Path(name).name)
        image["file_name"] = name
    json_file.write_text(json.dumps(content))


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    drawn = draw_dataset(tmp_path / "drawn", train_images=40, val_images=10, seed=0)
    for split, name in ((drawn.train, "train"), (drawn.val, "valid")):
        folder = tmp_path / "toys" / name
        write_export(
            *(split, folder / "_annotations.coco.json", folder, "toys"),
            lambda file: file.replace(".jpg", "_jpg.rf.0123456789abcdef.jpg"),
        )
    cvat, studio = tmp_path / "cvat", tmp_path / "label-studio"
    cvat_json = cvat / "annotations" / "instances_default.json"
    write_export(drawn.val, cvat_json, cvat / "images" / "default", "", str)
    write_export(
        *(drawn.val, studio / "result.json", studio / "images", ""),
        lambda file: f"images/1a2b3c4d-{file}",
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run_and_print_what_it_shows(
    root: Path, exports: Path, run_cocoseg: Any
) -> None:
    page = (root / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"```(bash|text)\n(.*?)```", page, re.DOTALL)
    tried = 0
    printed = ""
    for kind, block in blocks:
        if kind == "text":
            for line in block.splitlines():
                if not line.startswith(("time ", "shards ")):  # of this machine
                    assert line in printed, line
            continue
        printed = ""
        for line in block.splitlines():
            arguments = shlex.split(line)[1:]
            if arguments[0] == "train":
                if "tiny" not in arguments:  # needs weights of the hub
                    continue
                arguments += ["--set=train.max_steps=2", "--set=model.input_size=32"]
                arguments += ["--set=train.workers=0", "--set=train.device=cpu"]
            shutil.rmtree("photos", ignore_errors=True)
            shutil.copytree(exports / "drawn" / "val", "photos")
            if "--split" in arguments:
                shutil.rmtree("split", ignore_errors=True)
                arguments[arguments.index("--output") + 1] = "split"
            if arguments[0] in ("infer", "eval"):
                arguments.append("--no-tta")
            ran = run_cocoseg(*arguments)
            assert ran.code == 0, (line, ran.err)
            printed += ran.out
            tried += 1
    assert tried == 9
    assert len(list(Path("masks").glob("*.png"))) == 10
    assert (exports / "masks" / "overlay").is_dir()
    assert (exports / "scores" / "report.html").is_file()
