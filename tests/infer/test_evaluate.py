"""`cocoseg eval`: its scores are those of the masks that `infer` writes."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores"


@pytest.fixture
def measure(run_cocoseg, checkpoint, golden, out):
    def run(*more, shards=None, checkpoint=checkpoint):
        folders = [p for folder in shards or [golden.shards("val")] for p in ("--shards", folder)]
        return run_cocoseg("eval", "--checkpoint", checkpoint, *folders, "--output", out, *more)

    return run


def scores_of(pairs, classes):
    """Scores by class from (truth, prediction) pairs: sets of pixels, no confusion matrix."""
    truth = np.concatenate([truth.ravel() for truth, _ in pairs])
    found = np.concatenate([found.ravel() for _, found in pairs])
    truth, found = truth[truth != 255], found[truth != 255]
    by_class = []
    for i in range(classes):
        both, either = ((truth == i) & (found == i)).sum(), ((truth == i) | (found == i)).sum()
        there = (truth == i).sum()
        by_class.append(
            {
                "IoU": both / either if either else None,
                "accuracy": both / there if there else None,
                "pixels": there,
            }
        )
    ious = [c["IoU"] for c in by_class if c["IoU"] is not None]
    foreground = [c["IoU"] for c in by_class[1:] if c["IoU"] is not None]
    accuracies = [c["accuracy"] for c in by_class if c["accuracy"] is not None]
    return by_class, {
        "mIoU": np.mean(ious),
        "mIoU_foreground": np.mean(foreground),
        "pixel_accuracy": (truth == found).mean(),
        "mean_accuracy": np.mean(accuracies),
    }


@pytest.mark.parametrize("flags", [("--no-tta",), ("--tta",), ("--no-tta", "--batch-size", "3")])
def test_scores_are_those_of_the_masks_that_infer_writes(
    measure, run_cocoseg, golden, stored, checkpoint, out, tmp_path, flags
):
    shards = golden.shards("val")
    ran = measure(*flags)
    assert ran.code == 0, ran.err
    paths = ("--checkpoint", checkpoint, "--input", shards, "--output", tmp_path / "masks")
    assert run_cocoseg("infer", *paths, *flags).code == 0
    pairs = []
    for key, sample in stored(shards).items():
        with Image.open(tmp_path / "masks" / f"{key}.png") as image:
            pairs.append((sample.mask, np.array(image)))
    by_class, expected = scores_of(pairs, 81)

    found = json.loads((out / "metrics.json").read_text())
    assert (found["samples"], found["tta"]) == (len(pairs), "--tta" in flags)
    assert expected["mIoU"] > 0
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    assert [entry["train_id"] for entry in found["classes"]] == list(range(81))
    assert [entry["name"] for entry in found["classes"]][:3] == ["background", "person", "bicycle"]
    for entry, one in zip(found["classes"], by_class, strict=True):
        for name, value in one.items():
            assert entry[name] == (None if value is None else pytest.approx(value, abs=1e-12))


def test_scores_do_not_depend_on_tta_by_accident(measure, out):
    """The test above would not see a flag that does nothing."""
    scores = []
    for flag in ("--tta", "--no-tta"):
        assert measure(flag).code == 0
        scores.append(json.loads((out / "metrics.json").read_text())["classes"])
    assert scores[0] != scores[1]


def test_several_folders_of_shards_are_one_set(measure, golden, out):
    counts = []
    for folders in (("train",), ("val",), ("train", "val")):
        assert measure("--no-tta", shards=[golden.shards(f) for f in folders]).code == 0
        found = json.loads((out / "metrics.json").read_text())
        counts.append((found["samples"], sum(entry["pixels"] for entry in found["classes"])))
    assert counts[2] == tuple(np.add(counts[0], counts[1]))


def test_json_is_one_object_on_stdout_and_what_the_file_says(measure, out):
    ran = measure("--no-tta", "--json")
    assert ran.code == 0
    assert ran.out.count("\n") == 1
    assert json.loads(ran.out) == json.loads((out / "metrics.json").read_text())


def test_the_table_tells_the_mean_and_each_class_that_occurs(measure, out):
    ran = measure("--no-tta")
    found = json.loads((out / "metrics.json").read_text())
    assert f"mIoU            {found['mIoU']:.4f}" in ran.out
    seen = [entry for entry in found["classes"] if entry["IoU"] is not None]
    for entry in seen:
        assert f"{entry['name']} " in ran.out
        assert f"{entry['IoU']:.4f}" in ran.out
    assert f"over {len(seen)} classes" in ran.out


@pytest.mark.parametrize(("asked", "written"), [(0, 0), (2, 2), (99, 4)])
def test_as_many_pictures_as_were_asked_for_are_written(
    measure, golden, stored, out, asked, written
):
    assert measure("--no-tta", "--pictures", asked).code == 0
    keys = list(stored(golden.shards("val")))[:written]
    pictures = sorted((out / "pictures").glob("*")) if written else []
    assert [p.stem for p in pictures] == sorted(keys)
    assert (out / "pictures").exists() == bool(written)
    for key in keys:
        height, width = stored(golden.shards("val"))[key].mask.shape
        with Image.open(out / "pictures" / f"{key}.png") as picture:
            assert picture.mode == "RGB"
            assert picture.width > 3 * width
            assert picture.height > height


def test_the_settings_lie_beside_the_scores(measure, out):
    assert measure("--no-tta").code == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["infer"]["use_tta"] is False


def refused(ran, out, code, *said):
    assert (ran.code, ran.out) == (code, "")
    assert "Traceback" not in ran.err
    for text in said:
        assert text in ran.err
    assert not (out / "metrics.json").exists()


def test_a_checkpoint_of_other_classes_is_refused(measure, three_classes, out):
    refused(measure(checkpoint=three_classes), out, 2, "3 classes", "the shards 81")


def test_a_dry_run_writes_nothing(measure, out, tmp_path):
    ran = measure("--dry-run", "--json", checkpoint=tmp_path / "later")
    assert ran.code == 0
    plan = json.loads(ran.out)
    assert (plan["samples"], plan["classes"], plan["views"]) == (4, 81, 6)
    assert not out.exists()


def copy_of(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


def test_a_shard_whose_bytes_differ_is_bad_data(measure, golden, tmp_path, out):
    shards = copy_of(golden.shards("val"), tmp_path)
    content = bytearray((shards / "shard-000001.tar").read_bytes())
    content[700] ^= 255
    (shards / "shard-000001.tar").write_bytes(content)
    refused(measure("--no-tta", shards=[shards]), out, 3, "shard-000001.tar: sample")


def test_a_shard_that_was_cut_is_bad_data(measure, golden, tmp_path, out):
    shards = copy_of(golden.shards("val"), tmp_path)
    content = (shards / "shard-000001.tar").read_bytes()
    (shards / "shard-000001.tar").write_bytes(content[:1200])
    refused(measure("--no-tta", shards=[shards]), out, 3, "shard-000001.tar")


def test_a_missing_shard_is_bad_data(measure, golden, tmp_path, out):
    shards = copy_of(golden.shards("val"), tmp_path)
    (shards / "shard-000000.tar").unlink()
    refused(measure("--no-tta", shards=[shards]), out, 3, "shard-000000.tar")


def test_shards_without_a_manifest_are_refused(measure, golden, tmp_path, out):
    shards = copy_of(golden.shards("val"), tmp_path)
    (shards / "manifest.json").unlink()
    ran = measure("--no-tta", shards=[shards])
    assert ran.code in (2, 3)
    assert "manifest.json" in ran.err


def test_absent_shards_are_refused(measure, tmp_path, out):
    refused(measure(shards=[tmp_path / "absent"]), out, 2, "absent")


@pytest.mark.parametrize("left_out", ["--checkpoint", "--shards", "--output"])
def test_a_path_left_out_is_asked_for(run_cocoseg, checkpoint, golden, out, left_out):
    paths = {"--checkpoint": checkpoint, "--shards": golden.shards("val"), "--output": out}
    del paths[left_out]
    ran = run_cocoseg("eval", *(part for pair in paths.items() for part in pair))
    refused(ran, out, 2, left_out)
