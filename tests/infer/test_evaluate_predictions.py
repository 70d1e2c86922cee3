"""`cocoseg eval --predictions`: masks that anything made, scored as a network's are."""

import csv
import json
import shutil

import fsspec
import numpy as np
import pytest
from cocoseg.shards.png import encode_mask
from cocoseg.storage import LocalPath
from PIL import Image


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores"


@pytest.fixture
def truths(golden, stored):
    return {key: sample.mask for key, sample in stored(golden.shards("val")).items()}


@pytest.fixture
def masks(tmp_path, truths):
    """A folder of perfect predictions."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for key, mask in truths.items():
        (folder / f"{key}.png").write_bytes(encode_mask(np.where(mask == 255, 0, mask)))
    return folder


@pytest.fixture
def measure(run_cocoseg, golden, masks, out):
    def run(*more, masks=masks, shards=()):
        folders = [
            part for folder in shards or [golden.shards("val")] for part in ("--shards", folder)
        ]
        return run_cocoseg("eval", "--predictions", masks, *folders, "--output", out, *more)

    return run


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_perfect_masks_score_1(measure, out):
    ran = measure()
    assert ran.code == 0, ran.err
    found = metrics(out)
    for name in ("mIoU", "boundary_mIoU", "mean_Dice", "frequency_weighted_IoU", "mean_accuracy"):
        assert found[name] == 1, name
    assert (found["confusions"], found["pixels_without_prediction"]) == ([], 0)
    assert (found["checkpoint"], found["calibration"], found["tta"]) == (None, None, None)
    assert found["predictions"].endswith("masks")


@pytest.mark.parametrize("flag", ["--no-tta", "--tta"])
def test_the_masks_of_infer_score_as_their_checkpoint_does(
    measure, run_cocoseg, golden, checkpoint, out, tmp_path, flag
):
    shards, made = golden.shards("val"), tmp_path / "made"
    paths = ("--checkpoint", checkpoint, "--input", shards, "--output", made)
    assert run_cocoseg("infer", *paths, flag, "--color", "--overlay", "--confidence").code == 0
    assert measure(masks=made).code == 0
    by_masks, pictures = metrics(out), (out / "report.html").read_text().count("data:image/jpeg")
    paths = ("--checkpoint", checkpoint, "--shards", shards, "--output", out)
    assert run_cocoseg("eval", *paths, flag).code == 0
    by_network = metrics(out)
    assert by_masks["mIoU"] > 0
    assert pictures == 4 * 4
    for name in by_network.keys() - {"checkpoint", "predictions", "tta", "views", "calibration"}:
        assert by_masks[name] == by_network[name], name


def test_scores_may_lie_below_the_masks(run_cocoseg, golden, masks):
    command = (
        *("eval", "--predictions", masks, "--shards", golden.shards("val")),
        *("--output", masks / "scores", "--pictures", 3),
    )
    for _ in range(2):
        ran = run_cocoseg(*command)
        assert ran.code == 0, ran.err
    (masks / "scores" / "pictures" / "mine.png").write_bytes(b"")
    ran = run_cocoseg(*command)
    assert (ran.code, "mine.png: belongs to no sample" in ran.err) == (3, True)


def test_pixels_of_255_have_no_prediction_and_are_misses(measure, masks, truths, out):
    key, mask = next(iter(truths.items()))
    mask = mask.copy()
    hidden = mask[:10] != 255
    mask[:10] = 255
    (masks / f"{key}.png").write_bytes(encode_mask(mask))
    ran = measure()
    found = metrics(out)
    assert found["pixels_without_prediction"] == hidden.sum()
    assert found["pixel_accuracy"] == pytest.approx(1 - hidden.sum() / found["pixels"])
    assert {one["predicted"] for one in found["confusions"]} == {"(no prediction)"}
    assert f"no prediction   {hidden.sum():,} pixels" in ran.out
    assert "have no prediction" in (out / "report.html").read_text()
    assert found["worst_images"][0]["key"] == key


def test_each_image_has_a_row_and_the_worst_come_first_in_the_report(
    measure, masks, truths, out, golden, stored
):
    keys = list(truths)
    for key in keys[1:3]:  # equally bad: the first in the shards leads
        (masks / f"{key}.png").write_bytes(encode_mask(np.full_like(truths[key], 80)))
    assert measure().code == 0
    rows = list(csv.DictReader((out / "images.csv").open()))
    assert [row["key"] for row in rows] == keys
    assert [float(row["mIoU"]) for row in rows] == [1, 0, 0, 1]
    assert [(int(row["height"]), int(row["width"])) for row in rows] == [
        truths[key].shape for key in keys
    ]
    names = {key: sample.meta["file_name"] for key, sample in stored(golden.shards("val")).items()}
    assert [row["file_name"] for row in rows] == [names[key] for key in keys]
    lines = list(csv.DictReader((out / "image_classes.csv").open()))
    wrong = [line for line in lines if line["key"] == keys[1] and int(line["pixels"])]
    assert {int(line["train_id"]) for line in wrong} == set(np.unique(truths[keys[1]]).tolist())
    assert {float(line["IoU"]) for line in wrong} == {0}
    order = [one["key"] for one in metrics(out)["worst_images"]]
    assert order == [keys[1], keys[2], keys[0], keys[3]]


def test_classes_csv_says_what_metrics_json_says(measure, masks, truths, out):
    key = next(iter(truths))
    (masks / f"{key}.png").write_bytes(encode_mask(np.full_like(truths[key], 5)))
    assert measure().code == 0
    rows = list(csv.DictReader((out / "classes.csv").open()))
    entries = metrics(out)["classes"]
    assert len(rows) == 81
    for row, entry in zip(rows, entries, strict=True):
        assert row.keys() == entry.keys()
        for name, value in entry.items():
            assert row[name] == ("" if value is None else str(value))


def palette(mask):
    image = Image.fromarray(mask.astype(np.uint8)).convert("P")
    image.putpalette(list(range(256)) * 3)
    return image


BROKEN = {
    "palette": (lambda mask: palette(mask), "mode P"),
    "colors": (lambda mask: Image.fromarray(np.stack([mask] * 3, 2)), "mode RGB"),
    "size": (lambda mask: Image.fromarray(mask[1:]), "differ in size"),
    "ids": (
        lambda mask: Image.fromarray(np.full_like(mask, 81)),
        "holds 81; expected train ids 0…80",
    ),
    "16 bits": (
        lambda mask: Image.fromarray(np.full(mask.shape, 65535, np.uint16)),
        "holds 65535; expected train ids 0…80, and 255",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mask_that_is_none_is_bad_data_and_named(measure, masks, truths, out, kind):
    make, said = BROKEN[kind]
    key = list(truths)[2]
    make(truths[key]).save(masks / f"{key}.png")
    refused(measure(), out, 3, f"{key}.png", said)


def refused(ran, out, code, *said):
    assert (ran.code, ran.out) == (code, ""), ran.err
    for text in said:
        assert text in ran.err
    assert "Traceback" not in ran.err
    assert not (out / "metrics.json").exists()


def test_16_bit_masks_of_train_ids_are_taken(measure, masks, truths, out):
    for key, mask in truths.items():
        (masks / f"{key}.png").write_bytes(encode_mask(np.where(mask == 255, 0, mask).astype("u2")))
    assert measure().code == 0
    assert metrics(out)["mIoU"] == 1


def test_a_mask_that_is_missing_is_named(measure, masks, truths, out):
    first, *_, last = truths
    (masks / f"{last}.png").unlink()
    refused(measure(), out, 3, f"{last}.png: is missing; the shards hold 4 samples")
    (masks / f"{first}.png").unlink()
    refused(measure("--dry-run"), out, 3, f"{first}.png: is missing, and 1 more")


def test_a_mask_too_many_is_named(measure, masks, out):
    (masks / "color").mkdir()  # what infer puts there does not matter
    for name in ("color/other.png", "foreign.png"):
        Image.new("L", (3, 3)).save(masks / name)
    (masks / "notes.txt").write_text("these neither")
    refused(measure(), out, 3, "foreign.png: belongs to no sample")


def test_masks_of_category_ids_are_refused_before_they_look_like_train_ids(
    measure, run_cocoseg, golden, checkpoint, out, tmp_path
):
    made = tmp_path / "made"
    paths = ("--checkpoint", checkpoint, "--input", golden.shards("val"), "--output", made)
    assert run_cocoseg("infer", *paths, "--no-tta", "--ids", "coco").code == 0
    refused(measure(masks=made), out, 2, "category ids", "infer.ids: coco")


def test_masks_of_an_inference_that_has_not_ended_are_refused(measure, masks, out):
    (masks / ".progress").mkdir()
    refused(measure(), out, 2, "has not ended")


def test_a_key_of_two_samples_is_refused(measure, golden, tmp_path, out):
    twice = (golden.shards("val"), shutil.copytree(golden.shards("val"), tmp_path / "again"))
    refused(measure(shards=twice), out, 2, "would belong to two samples")


def test_a_checkpoint_and_masks_are_one_too_many(measure, checkpoint, out):
    refused(measure("--checkpoint", checkpoint), out, 2, "give one of them")


def test_an_absent_folder_is_refused(measure, tmp_path, out):
    refused(measure(masks=tmp_path / "absent"), out, 2, "absent: no such folder")


def test_a_dry_run_says_what_would_be_scored(measure, out):
    plan = json.loads(measure("--dry-run", "--json").out)
    assert (plan["samples"], plan["views"], plan["checkpoint"]) == (4, 0, None)
    assert not out.exists()


def test_masks_and_scores_may_lie_in_an_object_store(run_cocoseg, golden, masks, out, measure):
    store = fsspec.filesystem("memory")
    store.put(str(masks), "/masks", recursive=True)
    urls = ("--predictions", "memory://masks", "--output", "memory://scores")
    ran = run_cocoseg("eval", *urls, "--shards", golden.shards("val"))
    assert ran.code == 0, ran.err
    assert measure().code == 0
    assert store.cat("/scores/report.html").startswith(b"<!DOCTYPE html>")
    for name in ("metrics.json", "classes.csv", "images.csv"):
        there, here = store.cat(f"/scores/{name}"), (out / name).read_bytes()
        assert there.replace(b"memory://masks", b"") == here.replace(str(masks).encode(), b"")


def test_an_evaluation_that_is_ended_while_it_writes_leaves_no_sign_of_completeness(
    measure, out, monkeypatch
):
    assert measure().code == 0
    publish = LocalPath.publish_bytes

    def full(self, content):
        if self.name == "images.csv":
            raise OSError(28, "No space left on device")
        publish(self, content)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPath, "publish_bytes", full)
        ran = measure()
    refused(ran, out, 1, "cannot be written: No space left on device")
    assert measure().code == 0
    assert metrics(out)["mIoU"] == 1
