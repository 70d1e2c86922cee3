"""`cocoseg eval`: its scores are those of the masks that `infer` writes."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.score import NetworkPredicts, scored
from cocoseg.shards.png import encode_mask
from cocoseg.shards.reader import ShardSet
from PIL import Image
from safetensors.torch import load_file, save_file
from warm import COMMAND


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


def test_scores_with_and_without_tta_are_those_of_two_runs(measure, out):
    found = {}
    for flags in (("--tta",), ("--no-tta",), ("--compare-tta",)):
        ran = measure(*flags)
        assert ran.code == 0, ran.err
        found[flags[0]] = json.loads((out / "metrics.json").read_text())
    both = found["--compare-tta"]
    plain = both.pop("without_tta")
    assert both == {k: v for k, v in found["--tta"].items() if k != "without_tta"}
    assert plain["mIoU"] != both["mIoU"]
    for name, value in plain.items():
        if name != "classes":
            assert found["--no-tta"][name] == value, name
    for one, other in zip(plain["classes"], found["--no-tta"]["classes"], strict=True):
        assert one["IoU"] == other["IoU"]
    assert f"mIoU without TTA {plain['mIoU']:.4f}" in ran.out
    assert "mIoU without TTA" in (out / "report.html").read_text()


def test_a_comparison_of_tta_needs_tta(measure):
    ran = measure("--compare-tta", "--no-tta")
    assert ran.code == 2
    assert "--compare-tta: needs --checkpoint, and --tta" in ran.err


def test_a_quick_evaluation_has_the_same_scores_without_boundary_and_calibration(
    measure, out, monkeypatch
):
    assert measure("--no-tta").code == 0
    whole = json.loads((out / "metrics.json").read_text())
    monkeypatch.setattr("cocoseg.infer.evaluate.tally.boundary_counts", None)
    ran = measure("--no-tta", "--quick")
    assert ran.code == 0, ran.err
    quick = json.loads((out / "metrics.json").read_text())
    assert (quick["boundary_mIoU"], quick["calibration"]) == (None, None)
    assert whole["boundary_mIoU"] is not None
    for name in whole.keys() - {"boundary_mIoU", "calibration", "classes"}:
        assert quick[name] == whole[name], name
    assert "boundary mIoU" not in ran.out
    assert "boundary mIoU" not in (out / "report.html").read_text()


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


def test_doubtful_pixels_of_a_checkpoint_are_scored_as_masks_only(measure, out):
    refused(measure("--set=infer.min_confidence=0.5"), out, 2, "scored at every pixel")


def test_pictures_of_the_evaluation_before_are_removed_and_no_others(measure, golden, stored, out):
    keys = list(stored(golden.shards("val")))
    assert measure("--no-tta", "--pictures", 3).code == 0
    (out / "pictures" / "mine.png").write_bytes(b"mine")
    assert measure("--no-tta", "--pictures", 1).code == 0
    there = {path.name for path in (out / "pictures").iterdir()}
    assert there == {f"{keys[0]}.png", "mine.png"}
    (out / "pictures" / f"{keys[1]}.png").write_bytes(b"mine")
    ran = measure("--no-tta", "--pictures", 2)
    assert (ran.code, f"{keys[1]}.png is there, and not of an evaluation" in ran.err) == (2, True)
    assert (out / "pictures" / f"{keys[1]}.png").read_bytes() == b"mine"
    assert (out / "metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.yaml", "train:\n  save_dir: run\n"), ("config.yaml", "- 1"), ("classes.csv", "a,b")],
)
def test_files_of_another_command_are_never_replaced(measure, out, name, content):
    out.mkdir()
    (out / name).write_text(content)
    refused(measure(), out, 2, f"{name} is there, and not of an evaluation")
    assert (out / name).read_text() == content


def test_scores_are_measured_again_where_an_evaluation_was(measure, out):
    assert measure("--no-tta").code == 0
    before = (out / "metrics.json").read_bytes()
    (out / "metrics.json").unlink()  # as one that was killed leaves it
    assert measure("--no-tta").code == 0
    assert (out / "metrics.json").read_bytes() == before


def test_scores_never_lie_beside_pictures_of_others(measure, out, monkeypatch):
    assert measure("--no-tta", "--pictures", 2).code == 0
    monkeypatch.setattr("cocoseg.infer.evaluate.run.visualize_prediction", None)
    with pytest.raises(TypeError):
        measure("--pictures", 2)
    assert not (out / "metrics.json").exists()


@pytest.mark.parametrize(
    "place",
    ["torch.nn.Module.to", "cocoseg.model.predictor.read_strips", "cocoseg.model.score.Transfer"],
)
def test_too_little_memory_is_one_message(measure, out, monkeypatch, place):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")

    monkeypatch.setattr(place, fails)
    ran = measure("--no-tta")
    refused(ran, out, 1, "out of memory: ", "Use infer.device=cpu")


def test_shards_that_are_given_twice_are_refused(measure, golden, out):
    shards = golden.shards("val")
    ran = measure("--no-tta", shards=[shards, golden.shards("train"), f"{shards}/"])
    refused(ran, out, 2, "is given twice")


def test_a_dry_run_refuses_a_checkpoint_that_is_not_there(measure, out, tmp_path):
    refused(measure("--dry-run", checkpoint=tmp_path / "later"), out, 2, "later: no such folder")


def test_a_dry_run_writes_nothing(measure, out):
    ran = measure("--dry-run", "--json")
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


def scored_checkpoint(out):
    return json.loads((out / "metrics.json").read_text())["checkpoint"]


def test_the_checkpoint_is_told_by_its_own_name_and_digest(measure, checkpoint, tmp_path, out):
    """What 'best' is changes while a run continues."""
    run = tmp_path / "run"
    digests = []
    for step in (3, 12):
        folder = shutil.copytree(checkpoint, run / "checkpoints" / f"step-{step:08}")
        (run / "best").unlink(missing_ok=True)
        (run / "best").symlink_to(folder.relative_to(run))
        for given in (run, run / "best", folder):
            assert measure("--no-tta", checkpoint=given).code == 0
            told = scored_checkpoint(out)
            assert (told["path"], told["name"]) == (str(given), f"step-{step:08}")
            digests.append(told["digest"])
    assert len(set(digests)) == 1
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert measure("--no-tta", checkpoint=run).code == 0
    assert scored_checkpoint(out)["digest"] != digests[0]
    assert "step-00000012" in (out / "report.html").read_text()


@pytest.fixture
def bare(tmp_path):
    """Weights of a tiny network without names of classes, and the settings that belong to them."""

    def write(num_classes):
        from cocoseg.model.registry import architecture
        from transformers import AutoModelForSemanticSegmentation

        torch.manual_seed(1)
        settings = architecture("segformer-tiny")
        settings.num_labels = num_classes
        path = tmp_path / f"{num_classes}.pt"
        torch.save(AutoModelForSemanticSegmentation.from_config(settings).state_dict(), path)
        return path

    return write


TINY = ("--set", "model.name=segformer-tiny", "--set", "model.input_size=32", "--no-tta")


def test_bare_weights_of_another_number_of_classes_are_refused(measure, bare, out):
    said = "5.pt: has 5 classes (background, class 1, class 2, class 3 …), the shards 81"
    refused(measure(*TINY, checkpoint=bare(5)), out, 2, said)


def test_bare_weights_are_scored_by_the_names_of_the_shards(
    measure, bare, golden, tmp_path, out, run_cocoseg
):
    assert measure(*TINY, checkpoint=bare(81)).code == 0
    assert scored_checkpoint(out)["name"] == "81.pt"
    shards = copy_of(golden.shards("val"), tmp_path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["taxonomy"]["classes"][1]["name"] = "a person"
    (shards / "manifest.json").write_text(json.dumps(manifest))
    assert measure(*TINY, checkpoint=bare(81), shards=[shards]).code == 0
    assert json.loads((out / "metrics.json").read_text())["classes"][1]["name"] == "a person"


def test_probabilities_are_calibrated_over_all_pixels(measure, out):
    assert measure("--no-tta").code == 0
    found = json.loads((out / "metrics.json").read_text())
    bins = found["calibration"]["bins"]
    assert sum(one["pixels"] for one in bins) == found["pixels"]
    right = sum(one["pixels"] * (one["accuracy"] or 0) for one in bins)
    assert right / found["pixels"] == pytest.approx(found["pixel_accuracy"])
    for one in bins:
        if one["pixels"]:
            assert one["above"] <= one["confidence"] <= one["up_to"] + 1e-7
    assert 0 < found["calibration"]["ECE"] < 1


def test_shards_whose_manifest_counts_other_pixels_are_refused(measure, golden, tmp_path, out):
    shards = copy_of(golden.shards("val"), tmp_path)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["class_pixels"][1] += 1
    (shards / "manifest.json").write_text(json.dumps(manifest))
    refused(measure("--no-tta", shards=[shards]), out, 3, "pixels of person were scored")


def test_a_folder_that_cannot_be_written_is_told(measure, out):
    out.write_text("a file")
    ran = measure("--no-tta")
    assert (ran.code, "Traceback" in ran.err) == (2, False)
    assert "is a file, expected a folder" in ran.err


def test_one_view_is_scored_by_its_logits_even_where_probabilities_are_equal(make_network, golden):
    """As training does; of a new network, float32 probabilities of near logits are equal."""
    network = make_network(81)
    with torch.no_grad():
        network.decode_head.classifier.weight.mul_(1e-4)
        network.decode_head.classifier.bias.zero_()
    predictor = Predictor(network, Preprocess(64))
    shards = ShardSet([str(golden.shards("val"))])
    predicts = NetworkPredicts(predictor, confidence=True)
    for one in scored(predicts, shards, [range(len(shards))], lambda one: one):
        inputs = predictor.inputs([one.sample.image])
        (alone,) = predictor.predictions(inputs, confidence=True)
        assert (alone.mask.numpy() == one.mask).mean() > 0.999
        assert np.array_equal(predictor.predict([one.sample.image])[0], alone.mask.numpy())
        assert alone.confidence.min() > 1 / 82


def torchrun(warm, processes, *arguments):
    return warm.start(processes, COMMAND, "eval", *arguments)


def test_processes_together_write_the_bytes_of_one(warm, checkpoint, golden, tmp_path):
    folders = [part for split in ("train", "val") for part in ("--shards", golden.shards(split))]
    written, printed = [], []
    for processes in (1, 3):
        output = tmp_path / "scores"
        ran = torchrun(
            *(
                warm,
                processes,
                "--checkpoint",
                checkpoint,
                *folders,
                "--output",
                output,
                "--no-tta",
            ),
            *("--batch-size", 2, "--pictures", 5, "--json", "--set", "infer.device=cpu"),
        )
        out, err = ran.communicate(timeout=600)
        assert ran.returncode == 0, err
        files = (path for path in sorted(output.rglob("*")) if path.is_file())
        written.append({str(path.relative_to(output)): path.read_bytes() for path in files})
        printed.append(json.loads(out))
        shutil.rmtree(output)
    assert {"metrics.json", "classes.csv", "images.csv", "report.html"} < written[0].keys()
    assert len([name for name in written[0] if name.startswith("pictures")]) == 5
    assert written[0] == written[1]
    assert printed[0] == printed[1]


def test_what_one_process_meets_ends_all_and_is_told_once(warm, golden, stored, tmp_path):
    masks = tmp_path / "masks"
    masks.mkdir()
    samples = stored(golden.shards("val"))
    for key, sample in samples.items():
        (masks / f"{key}.png").write_bytes(encode_mask(sample.mask))
    second = list(samples)[1]
    (masks / f"{second}.png").write_bytes(b"no picture")
    ran = torchrun(
        *(warm, 2, "--predictions", masks, "--shards", golden.shards("val"), "--batch-size", 1),
        *("--output", tmp_path / "scores"),
    )
    out, err = ran.communicate(timeout=600)
    assert ran.returncode != 0
    assert err.count(f"error: {masks / second}.png: mask") == 1
    assert out == ""
    assert not (tmp_path / "scores").exists()
