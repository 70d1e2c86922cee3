"""Predicting and scoring: flips, mixed sizes, ranks and workers change nothing they should not."""

import io

import numpy as np
import pytest
import torch
from cocoseg.errors import DataError
from cocoseg.model.counts import loss_units
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.score import NetworkPredicts, scored, totals_of
from cocoseg.model.view import View
from cocoseg.shards.order import evaluation_batches
from cocoseg.shards.reader import ShardSet
from PIL import Image, ImageOps
from torch.nn import functional as F

SIZES = [(40, 60), (60, 40), (40, 60), (90, 30), (60, 40), (1, 1)]


def photo(height, width, seed=0):
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC))


def forward(network, preprocess, images, view=View()):  # noqa: B008 - frozen
    """Logits of one view of each image."""
    predictor = Predictor(network, preprocess, [view])
    inputs = predictor.inputs(images)
    with torch.inference_mode():
        logits = predictor._logits(inputs, inputs.whole)
    return [view.mirror(logits[place][0], 1, 2) for place in range(len(images))]


def by_hand(network, preprocess, image, scale=1.0):
    """Logits of one image, resized by Pillow and normalized in NumPy."""
    height, width = image.shape[:2]
    side = round(preprocess.input_size * scale)
    size = (side, side)
    if preprocess.keep_ratio:
        size = tuple(max(32, round(n * side / max(width, height))) for n in (width, height))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) / 255
    pixels = (pixels - np.array(preprocess.mean)) / np.array(preprocess.std)
    x = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        return network(pixel_values=x).logits[0]


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.25])
def test_a_flip_mirrors_the_photograph_and_mirrors_the_logits_back(make_network, scale):
    network, preprocess, image = make_network(5), Preprocess(64), photo(40, 60)
    (got,) = forward(network, preprocess, [image], View(scale, flip=True))
    mirrored = np.ascontiguousarray(image[:, ::-1])
    expected = by_hand(network, preprocess, mirrored, scale).flip(2)
    assert (got - expected).abs().max() <= 1e-4
    (plain,) = forward(network, preprocess, [image], View(scale))
    assert (got - plain).abs().max() > 0.1  # the network sees a difference


@pytest.mark.parametrize("keep_ratio", [False, True])
def test_photographs_of_several_sizes_come_back_in_order(make_network, keep_ratio):
    network, preprocess = make_network(5), Preprocess(64, keep_ratio)
    images = [photo(*size, seed=i) for i, size in enumerate(SIZES)]
    got = forward(network, preprocess, images)
    for logits, image in zip(got, images, strict=True):
        expected = by_hand(network, preprocess, image)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max() <= 1e-4
    masks = Predictor(network, preprocess).predict(images)
    assert [mask.shape for mask in masks] == SIZES


def test_each_input_shape_goes_through_in_one_batch(make_network):
    network, shapes = make_network(5), []
    network.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
    )
    images = [photo(*size) for size in ((40, 60), (60, 40), (80, 120))]
    forward(network, Preprocess(96, keep_ratio=True), images)
    assert sorted(shapes) == [(1, 3, 96, 64), (2, 3, 64, 96)]


def test_prediction_leaves_no_gradients(make_network):
    (logits,) = forward(make_network(5), Preprocess(64), [photo(40, 60)])
    assert not logits.requires_grad


@pytest.fixture(scope="module")
def shards(golden):
    return ShardSet([str(golden.shards("train")), str(golden.shards("val"))])


@pytest.fixture(scope="module")
def predictor(make_network):
    return Predictor(make_network(81), Preprocess(64, keep_ratio=True))


def matrix_of(predictor, shards, batches):
    return totals_of(NetworkPredicts(predictor, confidence=False), shards, batches).confusion


@pytest.fixture(scope="module")
def whole(shards, predictor):
    return matrix_of(predictor, shards, evaluation_batches(len(shards), 3, world_size=1, rank=0))


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_ranks_matrices_sum_to_that_of_one(shards, predictor, whole, ranks):
    parts = [
        matrix_of(
            predictor, shards, evaluation_batches(len(shards), 3, world_size=ranks, rank=rank)
        )
        for rank in range(ranks)
    ]
    assert np.array_equal(sum(parts), whole)


def all_scored(predictor, shards, batches, confidence=False):
    predicts = NetworkPredicts(predictor, confidence=confidence)
    return list(scored(predicts, shards, batches, lambda one: one))


def test_the_matrix_counts_what_is_not_ignored(golden, stored, shards, predictor, whole):
    """Counted pixel by pixel from the tars, as plain `tarfile` and Pillow read them."""
    samples = [*stored(golden.shards("train")).values(), *stored(golden.shards("val")).values()]
    batches = evaluation_batches(len(shards), 3, world_size=1, rank=0)
    masks = {one.sample.key: one.mask for one in all_scored(predictor, shards, batches)}
    expected = np.zeros((81, 82), np.int64)
    for sample in samples:
        for truth, found in zip(sample.mask.flat, masks[sample.key].flat, strict=True):
            if truth != 255:
                expected[truth, found] += 1
    assert np.array_equal(whole, expected)
    assert np.count_nonzero(whole.sum(axis=0)) > 5


def test_asking_for_the_confidence_changes_no_mask(shards, predictor):
    batches = evaluation_batches(len(shards), 3, world_size=1, rank=0)
    plain = all_scored(predictor, shards, batches)
    sure = all_scored(predictor, shards, batches, confidence=True)
    for one, other in zip(plain, sure, strict=True):
        assert np.array_equal(one.mask, other.mask)
        assert np.array_equal(one.confusion, other.confusion)
        assert one.calibration.sum() == 0
        assert other.calibration[:, 0].sum() == other.confusion.sum()


def test_samples_come_in_the_order_of_the_batches_each_with_its_own_mask(shards, predictor):
    order = [5, 2, 7, 0]
    found = all_scored(predictor, shards, [order[:3], order[3:]])
    assert [one.position for one in found] == order
    assert [one.sample.key for one in found] == [shards.row(i).key for i in order]
    assert not np.array_equal(found[0].mask, found[2].mask)
    for one in found:
        (alone,) = predictor.predict([one.sample.image])
        assert (alone == one.mask).mean() > 0.999  # but for ties in the last bits of the logits


def test_what_the_check_raises_ends_the_loop_before_a_batch(shards, predictor):
    seen = []

    def check():
        if len(seen) == 2:
            raise KeyboardInterrupt

        seen.append(None)

    with pytest.raises(KeyboardInterrupt):
        totals_of(
            NetworkPredicts(predictor, confidence=False),
            shards,
            evaluation_batches(len(shards), 2, world_size=1, rank=0),
            check,
        )
    assert len(seen) == 2


def test_what_fails_in_a_thread_is_raised(shards, predictor):
    def fails(one):
        raise OSError(28, "No space left on device")

    batches = evaluation_batches(len(shards), 3, world_size=1, rank=0)
    with pytest.raises(OSError, match="No space left"):
        list(scored(NetworkPredicts(predictor, confidence=False), shards, batches, fails))


@pytest.mark.parametrize("confidence", [False, True])
def test_logits_that_are_not_finite_are_an_error_and_no_score(make_network, shards, confidence):
    network = make_network(81)
    with torch.no_grad():
        network.decode_head.classifier.bias[3] = float("nan")
    predictor = Predictor(network, Preprocess(64), origin="this one")
    batches = evaluation_batches(len(shards), 3, world_size=1, rank=0)
    predicts = NetworkPredicts(predictor, confidence=confidence)
    with pytest.raises(DataError, match=r"this one: the network's logits are not finite"):
        totals_of(predicts, shards, batches)


# --- the loss


def loss_of(predictor, shards, batches):
    return totals_of(NetworkPredicts(predictor, confidence=False, loss=True), shards, batches).loss


def test_the_loss_is_the_cross_entropy_at_the_masks_resolution(
    golden, stored, make_network, shards
):
    """PyTorch's, of upsampled logits, over the masks as `tarfile` and Pillow read them."""
    network, preprocess = make_network(81), Preprocess(64, keep_ratio=True)
    batches = evaluation_batches(len(shards), 3, world_size=1, rank=0)
    samples = [*stored(golden.shards("train")).values(), *stored(golden.shards("val")).values()]
    expected = 0.0
    for sample in samples:
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(sample.photo)))
        image = np.asarray(upright.convert("RGB"))
        logits = by_hand(network, preprocess, image)[None]
        upsampled = F.interpolate(logits, sample.mask.shape, mode="bilinear")
        truth = torch.from_numpy(sample.mask.astype(np.int64))[None]
        expected += float(F.cross_entropy(upsampled, truth, ignore_index=255, reduction="sum"))
    found = loss_of(Predictor(network, preprocess), shards, batches) / 2**20
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_losses_sum_to_that_of_one_exactly(shards, predictor, ranks):
    dealt = [evaluation_batches(len(shards), 3, ranks, rank) for rank in range(ranks)]
    parts = [loss_of(predictor, shards, batches) for batches in dealt]
    assert sum(parts) == loss_of(predictor, shards, evaluation_batches(len(shards), 3, 1, 0))
    assert all(parts)


def test_asking_for_the_loss_changes_no_count(shards, predictor, whole):
    predicts = NetworkPredicts(predictor, confidence=True, loss=True)
    batches = evaluation_batches(len(shards), 3, world_size=1, rank=0)
    found = list(scored(predicts, shards, batches, lambda one: one))
    assert np.array_equal(sum(one.confusion for one in found), whole)
    plain = all_scored(predictor, shards, batches, confidence=True)
    assert all(
        np.array_equal(a.calibration, b.calibration) for a, b in zip(found, plain, strict=True)
    )
    assert sum(one.loss for one in found) == loss_of(predictor, shards, batches)
    assert {one.loss for one in plain} == {0}


@pytest.mark.parametrize("ignored", [5, 255, 65535])
def test_loss_units_of_a_strip(ignored):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, 5, generator=generator) * 8
    truth = torch.randint(0, 5, (3, 7), generator=generator, dtype=torch.int32)
    truth[1, 2:5] = ignored
    exact = F.cross_entropy(
        logits.double().view(-1, 5),
        truth.long().view(-1),
        ignore_index=ignored,
        reduction="sum",
    )
    assert int(loss_units(logits, logits.amax(2), truth)) / 2**20 == pytest.approx(
        float(exact), rel=1e-6
    )
    truth[:] = ignored
    assert int(loss_units(logits, logits.amax(2), truth)) == 0


def test_a_loss_is_never_negative_and_never_overflows():
    sure = torch.tensor([[[30.0, -30.0]]])
    assert int(loss_units(sure, sure.amax(2), torch.tensor([[0]]))) == 0
    far = torch.tensor([[[3e38, -3e38]]])
    assert int(loss_units(far, far.amax(2), torch.tensor([[1]]))) == 2**30
