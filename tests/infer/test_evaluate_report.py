"""The report of an evaluation: self-contained, inert, the worst first."""

import numpy as np
import pytest
import torch
from cocoseg.infer.evaluate.images import WORST, ImageScore, ShownImage, Worst
from cocoseg.infer.evaluate.page import render_evaluation
from cocoseg.infer.evaluate.result import Evaluation
from cocoseg.infer.evaluate.scored import ScoredNetwork
from cocoseg.infer.evaluate.tally import Tally
from cocoseg.model.counts import BINS, calibration_counts, confusion_counts
from cocoseg.model.score import Scored
from cocoseg.shards.reader import Sample
from cocoseg.taxonomy import SemanticClass, Taxonomy
from hypothesis import given
from hypothesis import strategies as st

HOSTILE = "</script><script>alert(1)</script>"


def evaluated(pairs, names=("background", "cat", "dog"), confident=True):
    """Score (truth, prediction) pairs as `evaluate` does."""
    taxonomy = Taxonomy(tuple(map(SemanticClass, names)))
    total, images, worst = Tally.empty(len(names)), [], Worst()
    for position, (truth, found) in enumerate(pairs):
        sample = Sample(f"key{position}", np.zeros((*truth.shape, 3), np.uint8), truth)
        wide, ids = (torch.from_numpy(mask.astype(np.int32)) for mask in (truth, found))
        sure = torch.full(truth.shape, 0.75) if confident else None
        counts = [confusion_counts(wide, ids, len(names)).numpy(), np.zeros((BINS, 3), np.int64)]
        if sure is not None:
            counts[1] = calibration_counts(wide, ids, sure, len(names)).numpy()
        one = Scored(position, sample, found, *counts)
        total.add(Tally.of(one, taxonomy, boundary=True))
        images.append(ImageScore.of(one, f"photo {position}.jpg"))
        worst.add(ShownImage.of(images[-1], sample, found, counts[0], taxonomy.ignore_index))
    return Evaluation(
        checkpoint=ScoredNetwork("run/best", "step-00000012", "float32", "abc")
        if confident
        else None,
        predictions=None if confident else "/some/where/masks",
        views=int(confident),
        shards=("/some/where/shards/val",),
        taxonomy=taxonomy,
        tally=total,
        images=tuple(images),
        worst=tuple(worst.shown),
    )


def flat(value, dtype=np.uint8):
    return np.full((12, 16), value, dtype)


def test_the_page_tells_scores_confusions_images_and_calibration():
    page = render_evaluation(evaluated([(flat(1), flat(1)), (flat(1), flat(2))]))
    for text in ("step-00000012", "abc", "50.00%", "key1", "Calibration", "cat", "dog"):
        assert text in page, text
    assert page.index("key1") < page.index("key0")  # the worst first
    assert page.count("data:image/jpeg") == 8
    assert "Evaluation of run/best (step-00000012) on shards/val" in page
    assert "photo 1.jpg" in page
    assert "The worst images of each class" in page
    assert "/some/where/" not in page


def test_without_probabilities_there_is_no_calibration():
    page = render_evaluation(evaluated([(flat(1), flat(1))], confident=False))
    assert "Calibration" not in page
    assert "Not a single pixel is wrong." in page
    assert "where/masks" in page


def test_hostile_names_of_classes_are_inert():
    page = render_evaluation(evaluated([(flat(1), flat(2))], ("background", HOSTILE, "dog")))
    assert HOSTILE not in page
    assert page.count("<script>") == 1


def test_a_set_of_which_all_is_ignored_has_a_page_and_no_scores():
    result = evaluated([(flat(255), flat(0))])
    assert "nan" not in render_evaluation(result)
    told = result.to_dict()
    assert (told["mIoU"], told["boundary_mIoU"], told["calibration"]["ECE"]) == (None,) * 3
    assert (told["confusions"], told["worst_images"]) == ([], [])
    assert result.images_csv().splitlines()[1] == "key0,photo 0.jpg,16,12,0,,,,,,"
    assert "mIoU" in result.text()


@pytest.mark.parametrize("classes", [1, 256, 300])
def test_one_class_and_hundreds_of_16_bits(classes):
    names = [f"class {i}" for i in range(classes)]
    dtype, last = (np.uint8, 0) if classes == 1 else (np.uint16, classes - 1)
    truth = flat(last, dtype)
    truth[0] = 255 if classes == 1 else 65535
    result = evaluated([(truth, flat(last, dtype))], names)
    told = result.to_dict()
    assert (told["mIoU"], told["boundary_mIoU"], told["pixels"]) == (1, 1, 11 * 16)
    assert told["mIoU_foreground"] == (None if classes == 1 else 1)
    assert "nan" not in render_evaluation(result)


def score(position, miou):
    return ImageScore(position, f"k{position}", "a.jpg", 1, 1, 1, miou, 0.0, 0, 0.0, 1.0, 1.0, ())


def shown(one):
    return ShownImage(one, None, None, None, None, (), ())


@given(
    st.lists(st.sampled_from([0.0, 0.25, 0.5, float("nan")]), max_size=90),
    st.integers(1, 5),
)
def test_the_worst_of_parts_are_the_worst_of_all(mious, parts):
    scores = [score(position, miou) for position, miou in enumerate(mious)]
    found = []
    for part in range(parts):
        worst = Worst()
        for one in scores[part::parts]:
            worst.add(shown(one))
        found += worst.shown
    known = [one for one in scores if one.miou == one.miou]
    expected = sorted(known, key=lambda one: (one.miou, one.position))[:WORST]
    assert [one.score for one in Worst(found).shown] == expected


def test_an_image_better_than_the_worst_so_far_need_not_be_drawn():
    worst = Worst()
    for position in range(100):
        one = score(position, position / 100)
        assert worst.admits(one) == (position < WORST)
        worst.add(shown(one))
    assert worst.admits(score(100, 0.0)) is True
    assert worst.admits(score(101, float("nan"))) is False


def test_equal_confusions_come_in_the_order_of_train_ids():
    truth, found = flat(0), flat(0)
    truth[0, :4], found[0, :4] = [1, 2, 0, 1], [2, 1, 1, 0]
    told = evaluated([(truth, found)]).to_dict()["confusions"]
    pairs = [(one["truth"], one["predicted"], one["pixels"]) for one in told]
    assert pairs == [
        ("background", "cat", 1), ("cat", "background", 1), ("cat", "dog", 1), ("dog", "cat", 1),
    ]  # fmt: skip


@given(st.integers(1, 6), st.data())
def test_counts_travel_between_processes_as_one_row(num_classes, data):
    tally = Tally.empty(num_classes)
    for part in (tally.confusion, tally.boundary, tally.calibration):
        part[...] = data.draw(st.integers(0, 2**40))
    back = Tally.from_vector(tally.to_vector(), num_classes)
    assert np.array_equal(back.to_vector(), tally.to_vector())
    assert back.confusion.shape == (num_classes, num_classes + 1)
