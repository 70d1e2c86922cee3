"""What is written beside the masks says the same as they do."""

import json

import numpy as np
import pytest
from cocoseg.colors import VOID_COLOR
from cocoseg.errors import ConfigError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.predict.outputs import Outputs
from cocoseg.model.predictor import Prediction
from cocoseg.taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

IDS = [0, *(entry.category_ids[0] for entry in coco_taxonomy().classes[1:])]


@pytest.fixture
def photos(tmp_path, draw):
    for i, size in enumerate([(30, 44), (50, 20), (30, 44)]):
        path = tmp_path / "photos" / f"{i}" / "photo.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(draw(*size, seed=i)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def infer(run_cocoseg, checkpoint, photos, tmp_path):
    def run(name, *more):
        out = tmp_path / name
        paths = ("--checkpoint", checkpoint, "--input", photos, "--output", out)
        ran = run_cocoseg("infer", *paths, *more)
        assert ran.code == 0, ran.err
        return out

    return run


def read(path):
    with Image.open(path) as image:
        return np.array(image)


def lines(out):
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("tta", ["--tta", "--no-tta"])
def test_probabilities_confidence_and_mask_agree(infer, tta):
    out = infer("all", tta, "--probabilities", "--confidence")
    plain = infer("masks", tta)
    for i in range(3):
        name = f"{i}/photo"
        p = np.load(out / "probabilities" / f"{name}.npy", allow_pickle=False)
        mask = read(out / f"{name}.png")
        assert p.dtype == np.float16
        assert p.shape == (*mask.shape, 81)
        assert np.abs(p.astype(np.float64).sum(2) - 1).max() < 5e-3
        top = np.sort(p.astype(np.float64), axis=2)
        sure = top[..., -1] - top[..., -2] > 2e-3
        assert sure.mean() > 0.8
        assert np.array_equal(p.argmax(2)[sure], mask[sure])
        confidence = read(out / "confidence" / f"{name}.png")
        assert confidence.dtype == np.uint8
        assert np.abs(confidence / 255 - top[..., -1]).max() < 4e-3
        same = read(plain / f"{name}.png")
        assert np.array_equal(same[sure], mask[sure])


def test_asking_for_confidence_changes_no_mask(infer):
    """One view's mask is that of its logits; probabilities may tie where those differ."""
    plain, more = infer("plain", "--no-tta"), infer("more", "--no-tta", "--confidence")
    for i in range(3):
        name = f"{i}/photo.png"
        assert (plain / name).read_bytes() == (more / name).read_bytes()


def test_doubtful_pixels_are_ignored(infer):
    out = infer("out", "--no-tta", "--confidence", "--min-confidence", "0.3", "--color")
    plain = infer("plain", "--no-tta")
    doubts = 0
    for i in range(3):
        mask, before = read(out / f"{i}/photo.png"), read(plain / f"{i}/photo.png")
        confidence = read(out / "confidence" / f"{i}/photo.png") / 255
        ignored = mask == 255
        doubts += ignored.sum()
        assert np.array_equal(mask[~ignored], before[~ignored])
        assert (confidence[ignored] < 0.302).all()
        assert (confidence[~ignored] > 0.298).all()
        assert (read(out / "color" / f"{i}/photo.png")[ignored] == VOID_COLOR).all()
    assert 0 < doubts < 3000
    assert sum(line["class_pixels"].get("255", 0) for line in lines(out)) == doubts


def test_masks_may_hold_category_ids(infer):
    out, plain = infer("out", "--no-tta", "--ids", "coco"), infer("plain", "--no-tta")
    for i in range(3):
        mask, train_ids = read(out / f"{i}/photo.png"), read(plain / f"{i}/photo.png")
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, np.array(IDS)[train_ids])


def test_the_list_counts_what_the_masks_hold(infer, photos):
    out = infer("out", "--no-tta")
    told = lines(out)
    assert [line["image"] for line in told] == [str(photos / f"{i}/photo.png") for i in range(3)]
    for line in told:
        mask = read(out / line["mask"])
        assert (line["height"], line["width"]) == mask.shape
        counted = {str(i): int((mask == i).sum()) for i in np.unique(mask)}
        assert line["class_pixels"] == counted


def test_coco_json_holds_every_class_of_every_mask(infer):
    out = infer("out", "--no-tta", "--coco-json", "--batch-size", "2")
    coco = COCO(out / "coco.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(coco_taxonomy().names[1:])
    assert len(coco.getImgIds()) == 3
    for i, (image_id, line) in enumerate(zip(coco.getImgIds(), lines(out), strict=True)):
        mask = read(out / f"{i}/photo.png")
        painted = np.zeros_like(mask)
        found = coco.loadAnns(coco.getAnnIds(image_id))
        assert len(found) == len(np.unique(mask[mask > 0]))
        for annotation in found:
            region = coco.annToMask(annotation).astype(bool)
            assert annotation["area"] == region.sum()
            assert annotation["bbox"] == list(rle.toBbox(annotation["segmentation"]))
            assert not painted[region].any()
            painted[region] = IDS.index(annotation["category_id"])
        assert np.array_equal(painted, mask)
        assert "segments" not in line
    assert len(set(coco.getAnnIds())) == len(coco.getAnnIds())


def merged():
    return Taxonomy((SemanticClass("background"), SemanticClass("pet", (17, 18))))


@pytest.mark.parametrize("settings", [{"ids": "coco"}, {"coco_json": True}])
def test_category_ids_that_no_class_has_are_refused(settings, tmp_path):
    config = InferConfig(output=str(tmp_path), **settings)
    with pytest.raises(ConfigError, match=r"pet .*use train ids"):
        Outputs(config, merged())


@pytest.mark.parametrize(
    ("classes", "largest", "dtype", "ignored"),
    [
        (3, 90, np.uint8, 255),
        (3, 300, np.int32, 65535),  # Pillow's 16-bit PNG
        (300, 400, np.int32, 65535),
    ],
)
def test_wide_masks_are_written_in_16_bits(tmp_path, classes, largest, dtype, ignored):
    names = [SemanticClass("background")]
    names += [SemanticClass(f"c{i}", (i,)) for i in range(1, classes - 1)]
    taxonomy = Taxonomy((*names, SemanticClass("last", (largest,))))
    config = InferConfig(output=str(tmp_path), ids="coco", min_confidence=0.5)
    mask = np.array([[0, 1, classes - 1, 1]], np.uint8 if classes <= 256 else np.uint16)
    confidence = np.array([[0.9, 0.9, 0.9, 0.4]], np.float32)
    record = Outputs(config, taxonomy).write(
        "a", np.zeros((1, 4, 3), np.uint8), Prediction(mask, confidence)
    )
    assert read(tmp_path / "a.png").tolist() == [[0, 1, largest, ignored]]
    own = taxonomy.ignore_index
    assert record["class_pixels"] == {"0": 1, "1": 1, str(classes - 1): 1, str(own): 1}


def shards_of(coco_set, output, **settings):
    for image_id, size in ((7, (40, 30)), (3, (24, 32)), (11, (40, 30))):
        coco_set.photo(image_id, *size, name=f"below/photo {image_id}.jpg")
        coco_set.annotate(image_id, [[1, 1, 20, 2, 15, 20]], image_id % 2 + 1, area=150)
    coco_set.prepare(output, classes="auto", **settings)


@pytest.fixture
def own_checkpoint(make_checkpoint):
    """A network of the three classes of `coco_set`."""
    names = ("background", "cat", "dog", "fish")
    ids = ((), (1,), (2,), (7,))
    return make_checkpoint(Taxonomy(tuple(map(SemanticClass, names, ids))))


def test_coco_json_of_shards_scores_against_the_annotations(
    run_cocoseg, coco_set, own_checkpoint, tmp_path
):
    shards_of(coco_set, tmp_path / "shards")
    paths = ("--checkpoint", own_checkpoint, "--input", tmp_path / "shards")
    ran = run_cocoseg("infer", *paths, "--output", tmp_path / "out", "--coco-json", "--no-tta")
    assert ran.code == 0, ran.err
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    assert names == {number: f"below/photo {number}.jpg" for number in (3, 7, 11)}
    annotated = COCO(coco_set.json)
    predicted = annotated.loadRes(content["annotations"])
    scores = COCOeval(annotated, predicted, "segm")
    scores.evaluate()
    scores.accumulate()
    assert {image_id for image_id, _ in scores.ious} == {3, 7, 11}
    assert all(0 < one["score"] <= 1 for one in content["annotations"])


def test_pseudo_labels_are_prepared_to_the_predicted_masks(
    run_cocoseg, coco_set, own_checkpoint, tmp_path, stored
):
    """Photographs → coco.json → shards: the masks of the shards are those predicted."""
    shards_of(coco_set, tmp_path / "shards")
    paths = ("--checkpoint", own_checkpoint, "--input", coco_set.images)
    ran = run_cocoseg("infer", *paths, "--output", tmp_path / "out", "--coco-json", "--no-tta")
    assert ran.code == 0, ran.err
    again = tmp_path / "again"
    pair = ("--annotations", tmp_path / "out" / "coco.json", "--images", coco_set.images)
    ran = run_cocoseg("prepare", *pair, "--output", again)
    assert ran.code == 0, ran.err
    found = {sample.meta["file_name"]: sample.mask for sample in stored(again).values()}
    assert len(found) == 3
    for name, mask in found.items():
        assert np.array_equal(mask, read((tmp_path / "out" / name).with_suffix(".png")))


def test_ids_that_two_sources_repeat_are_numbered_instead(
    run_cocoseg, make_coco_set, own_checkpoint, tmp_path
):
    sets = [make_coco_set(name) for name in ("one", "two")]
    for one in sets:
        one.photo(5)
        one.annotate(5, [[1, 1, 9, 2, 9, 9]])
        one.write()
    pairs = [flag for one in sets for flag in one.flags]
    assert run_cocoseg("prepare", *pairs, "--output", tmp_path / "shards").code == 0
    paths = ("--checkpoint", own_checkpoint, "--input", tmp_path / "shards")
    ran = run_cocoseg("infer", *paths, "--output", tmp_path / "out", "--coco-json", "--no-tta")
    assert ran.code == 0, ran.err
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]


def test_a_first_class_with_a_category_id_is_no_background(tmp_path):
    """Cityscapes' road is train id 0."""
    taxonomy = Taxonomy((SemanticClass("road", (7,)), SemanticClass("tree", (21,))))
    config = InferConfig(output=str(tmp_path), ids="coco", coco_json=True)
    mask = np.array([[0, 1], [255, 0]], np.uint8)
    prediction = Prediction(mask, np.array([[0.5, 1], [0.1, 0.75]], np.float32))
    record = Outputs(config, taxonomy).write("a", np.zeros((2, 2, 3), np.uint8), prediction)
    assert read(tmp_path / "a.png").tolist() == [[7, 21], [255, 7]]
    told = [(one["category_id"], one["area"], one["score"]) for one in record["segments"]]
    assert told == [(7, 2, 0.625), (21, 1, 1.0)]
