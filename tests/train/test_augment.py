"""Augmentation: image and mask move as one, masks keep their values, and each draw is its own."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from cocoseg.errors import ConfigError
from cocoseg.model.preprocess import Preprocess
from cocoseg.shards.order import SampleOrder
from cocoseg.shards.reader import ShardSet
from cocoseg.train.augment import AUGMENTATIONS, TrainingTransform, check_extra
from cocoseg.train.batches import TrainingSamples
from cocoseg.train.config import AugmentConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

OUTSIDE = (124, 116, 104)  # ImageNet's mean color
STILL: dict[str, Any] = {"color_jitter": 0, "blur": 0}
WHOLE: dict[str, Any] = {"scale_range": (1, 1), "ratio_range": (1, 1), "flip": 0, **STILL}
"""On square images, no change at all."""

ranges = st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)).map(sorted).map(tuple)
wide_ranges = st.tuples(st.floats(0.05, 40), st.floats(0.05, 40)).map(sorted).map(tuple)
chances = st.sampled_from([0.0, 0.5, 1.0])
configs = st.builds(
    AugmentConfig,
    enabled=st.sampled_from([True, True, True, False]),
    scale_range=ranges,
    scale_jitter=st.none() | wide_ranges,
    flip=chances,
    rotation=st.sampled_from([0.0, 10.0, 180.0]),
    color_jitter=chances,
    blur=chances,
    extra=st.dictionaries(st.sampled_from(["vertical_flip", "grayscale"]), chances),
)
sides = st.integers(1, 70) | st.sampled_from([1, 2, 500])
seeds = st.integers(0, 2**32 - 1)


def places(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image that is x in red and y in green, and a 16-bit mask that is y · width + x."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.zeros_like(x)], axis=-1)
    return image.astype(np.uint8), (y * width + x).astype(np.uint16)


@settings(max_examples=150)
@given(configs, sides, sides, st.sampled_from([4, 33, 64]), st.booleans(), seeds, st.data())
def test_whatever_the_image_a_square_comes_out_and_no_mask_value_is_new(
    config: AugmentConfig, height: int, width: int, size: int, wide: bool, seed: int, data: Any
) -> None:
    rng = np.random.default_rng(data.draw(seeds))
    classes, ignored, kind = (400, 65535, np.uint16) if wide else (81, 255, np.uint8)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    mask = rng.choice([0, 3, 17, classes, ignored], (height, width)).astype(kind)
    found, labels = TrainingTransform(config, size, ignored)(image.copy(), mask.copy(), seed)
    assert (found.shape, found.dtype) == ((size, size, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((size, size), kind)
    possible = set(np.unique(mask).tolist())
    if config.enabled and (config.rotation or config.scale_jitter):
        possible.add(ignored)
    assert set(np.unique(labels).tolist()) <= possible
    again = TrainingTransform(config, size, ignored)
    again(image.copy(), mask.copy(), seed ^ 1)  # what came before changes nothing
    same, labels_again = again(image, mask, seed)
    assert np.array_equal(same, found)
    assert np.array_equal(labels_again, labels)


MOVING = {
    "crop": {},
    "flip": {"flip": 1},
    "vertical flip": {"extra": {"vertical_flip": 1}},
    "rotation": {"rotation": 180},
    "scale jitter": {"scale_jitter": (0.4, 2.5)},
    "all": {"scale_jitter": (0.5, 2), "rotation": 25, "extra": {"vertical_flip": 0.5}},
}


@pytest.mark.parametrize("moving", MOVING.values(), ids=MOVING.keys())
@pytest.mark.parametrize("shape", [(240, 180), (60, 250)])
def test_every_pixel_of_image_and_mask_is_of_the_same_place(
    moving: dict[str, Any], shape: tuple[int, int]
) -> None:
    image, mask = places(*shape)
    transform = TrainingTransform(AugmentConfig(**{**STILL, **moving}), 96, 65535)
    seen = 0
    for seed in range(25):
        found, labels = transform(image, mask, seed)
        inside = labels != 65535
        place = np.stack(np.divmod(labels.astype(int), shape[1])[::-1], axis=-1)
        padded = np.pad(inside, 2, constant_values=False)  # colors mix at the border
        windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
        inside = windows.all(axis=(2, 3))
        if inside.sum() < 100:
            continue
        both = inside[1:, 1:] & inside[:-1, 1:] & inside[1:, :-1]
        steps = [place[1:, 1:] - place[:-1, 1:], place[1:, 1:] - place[1:, :-1]]
        apart = max(np.linalg.norm(step[both].mean(axis=0)) for step in steps)
        difference = (found[..., :2].astype(int) - place)[inside]
        assert abs(difference).max() <= 1 + 1.5 * apart
        if apart < 0.75:  # no shift by half a pixel
            assert (abs(difference.mean(axis=0)) < 0.25 + 0.15 * apart).all()
        seen += int(inside.sum())
    assert seen > 25 * 96 * 96 / 5


@pytest.mark.parametrize("config", [{"scale_jitter": (0.3, 0.9)}, {"rotation": 45}])
def test_what_comes_from_outside_is_ignored_and_has_the_mean_color(config: dict) -> None:
    image = np.full((50, 70, 3), 255, np.uint8)
    mask = np.full((50, 70), 7, np.uint8)
    transform = TrainingTransform(AugmentConfig(**{**STILL, **config}), 64, 255)
    shares = []
    for seed in range(20):
        found, labels = transform(image, mask, seed)
        outside = labels == 255
        mixed = (found != 255).any(axis=-1) & (found != OUTSIDE).any(axis=-1)  # along the border
        assert (found[outside & ~mixed] == OUTSIDE).all()
        assert (found[~outside & ~mixed] == 255).all()
        assert mixed.sum() <= 5 * 64
        shares.append(outside.mean())
    assert 0.02 < np.mean(shares) < 0.9


def test_scale_jitter_zooms_by_its_factors_keeps_the_aspect_and_goes_everywhere() -> None:
    image, mask = places(120, 250)
    transform = TrainingTransform(AugmentConfig(scale_jitter=(0.5, 2), flip=0, **STILL), 60, 65535)
    factors, lefts, margins = [], [], []
    for seed in range(300):
        _, labels = transform(image, mask, seed)
        rows, columns = np.nonzero(labels != 65535)
        y, x = np.divmod(labels[rows, columns].astype(int), 250)
        across = np.polyfit(columns, x, 1)[0]  # pixels of the image a pixel
        down = np.polyfit(rows, y, 1)[0]
        assert across == pytest.approx(down, rel=0.06)
        assert 1 / 1.06 < 120 / 60 / across / np.clip(120 / 60 / across, 0.5, 2) < 1.06
        factors.append(120 / 60 / across)
        lefts.append(x.min())
        margins.append(rows.min())
    histogram, _ = np.histogram(factors, bins=5, range=(0.5, 2))
    assert histogram.min() > 300 / 5 / 2  # uniform
    assert min(lefts) < 10 and max(lefts) > 180
    assert min(margins) == 0 and max(margins) > 20  # padding lies on both sides, not on one


def test_a_scale_jitter_of_one_takes_the_whole_shorter_side() -> None:
    image, mask = places(64, 64)
    config = AugmentConfig(scale_jitter=(1, 1), flip=0, **STILL)
    found, labels = TrainingTransform(config, 64, 65535)(image, mask, 5)
    assert np.array_equal(found, image)
    assert np.array_equal(labels, mask)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 5)])
def test_of_an_image_that_would_vanish_a_pixel_stays(shape: tuple[int, int]) -> None:
    image, mask = np.full((*shape, 3), 255, np.uint8), np.full(shape, 3, np.uint8)
    transform = TrainingTransform(AugmentConfig(scale_jitter=(0.01, 0.02), **STILL), 16, 255)
    for seed in range(50):
        found, labels = transform(image, mask, seed)
        assert 1 <= (labels == 3).sum() <= 16
        assert np.array_equal((found == 255).all(axis=-1), labels == 3)


def test_rotation_turns_to_both_sides_as_far_as_it_says_and_about_the_center() -> None:
    image, mask = places(101, 101)
    transform = TrainingTransform(AugmentConfig(rotation=30, **WHOLE), 101, 65535)
    angles = []
    for seed in range(200):
        _, labels = transform(image, mask, seed)
        assert labels[50, 50] in {50 * 101 + 50 + i for i in (-102, -101, -1, 0, 1, 101, 102)}
        y, x = np.divmod(labels[50, 50:85].astype(int), 101)  # to the right of the center
        angles.append(np.degrees(np.arctan2(y[-1] - y[0], x[-1] - x[0])))
    assert -32 < min(angles) < -25 and 25 < max(angles) < 32
    assert abs(np.mean(angles)) < 5


@pytest.mark.parametrize("shape", [(40, 30), (500, 700), (1, 9), (64, 64)])
@pytest.mark.parametrize("size", [32, 64])
def test_none_is_the_resize_of_validation(shape: tuple[int, int], size: int) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    mask = rng.integers(0, 81, shape).astype(np.uint8)
    config = AugmentConfig(enabled=False, rotation=90, blur=1, extra={"grayscale": 1})
    for seed in (0, 1):
        found, labels = TrainingTransform(config, size, 255)(image, mask, seed)
        assert np.array_equal(found, Preprocess(size).resize(image))
        nearest = Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST)
        assert np.array_equal(labels, np.asarray(nearest))


def test_what_is_on_besides_changes_no_other_draw() -> None:
    image, mask = places(200, 150)
    plain = TrainingTransform(AugmentConfig(blur=0), 64, 65535)
    more = TrainingTransform(AugmentConfig(blur=1, extra={"grayscale": 0.5}), 64, 65535)
    for seed in range(20):
        assert np.array_equal(plain(image, mask, seed)[1], more(image, mask, seed)[1])


def test_one_augmentation_does_not_tell_of_another() -> None:
    image, mask = places(64, 64)
    image[..., 2] = 200
    image[20:, :30] = (250, 0, 0)
    config = AugmentConfig(
        **{**WHOLE, "flip": 0.5, "blur": 0.5}, extra={"vertical_flip": 0.5, "grayscale": 0.5}
    )
    transform = TrainingTransform(config, 64, 65535)
    drawn: Counter[tuple[bool, ...]] = Counter()
    for seed in range(800):
        found, labels = transform(image, mask, seed)
        flipped = labels[0, 0] % 64 != 0, labels[0, 0] // 64 != 0
        gray = bool((found[..., 0] == found[..., 2]).all())
        unmoved = found[:: -1 if flipped[1] else 1, :: -1 if flipped[0] else 1]
        blurred = len(np.unique(unmoved[19:22, 10].reshape(3, -1), axis=0)) == 3
        drawn[(*flipped, gray, blurred)] += 1
    for outcome in itertools.product([False, True], repeat=4):
        assert 20 < drawn[outcome] < 90  # 50 expected, deviation 7; all alike drew two outcomes


def test_extra_is_by_name_and_a_wrong_one_is_told_before_anything_is_read(golden: Any) -> None:
    check_extra(AugmentConfig(extra={"grayscale": 0.1, "vertical_flip": 0}))
    with pytest.raises(ConfigError, match=r"'greyscale'; did you mean 'grayscale'\? there are"):
        check_extra(AugmentConfig(extra={"greyscale": 0.1}))
    with pytest.raises(ConfigError, match=r"'rotation' is a key of its own, augment\.rotation"):
        check_extra(AugmentConfig(extra={"rotation": 0.1}))
    shards = ShardSet([str(golden.shards("train"))])
    with pytest.raises(ConfigError, match="unknown augmentation"):
        TrainingSamples(
            shards,
            SampleOrder(shards.shard_sizes, 0),
            AugmentConfig(extra={"no-such-thing": 1}),
            32,
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale_range": (0.5, 1.5)}, {"scale_range": (0.9, 0.5)}, {"ratio_range": (2, 1)},
        {"scale_jitter": (2, 0.5)}, {"scale_jitter": (0, 1)}, {"rotation": 181}, {"rotation": -1},
        {"extra": {"grayscale": 1.1}}, {"scale_range": (0, 1)}, {"extra": {"grayscale": None}},
    ],
)  # fmt: skip
def test_ranges_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)


def test_settings_can_be_given_on_the_command_line(run_cocoseg: Any) -> None:
    ran = run_cocoseg(
        "config", "show", "--set", "augment.scale_jitter=[0.5, 2.0]",
        "--set", "augment.extra={grayscale: 0.2}",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "scale_jitter: [0.5, 2.0]" in ran.out
    assert "extra: {grayscale: 0.2}" in ran.out


def test_an_augmentation_is_a_builder_and_a_line_in_the_registry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import albumentations

    def invert(config: AugmentConfig, size: int, ignore: int) -> albumentations.BasicTransform:
        return albumentations.InvertImg(p=config.extra["invert"])

    monkeypatch.setitem(AUGMENTATIONS, "invert", invert)
    config = AugmentConfig(**WHOLE, extra={"invert": 1.0})
    check_extra(config)
    image, mask = places(64, 64)
    found, labels = TrainingTransform(config, 64, 65535)(image, mask, 0)
    assert np.array_equal(found, 255 - image)
    assert np.array_equal(labels, mask)


def test_every_augmentation_is_off_or_alone_changes_the_picture() -> None:
    image, mask = places(64, 64)
    on = {"scale_range": (0.3, 0.3), "scale_jitter": (2, 2), "rotation": 40}
    for name in AUGMENTATIONS:
        own = name in AugmentConfig.model_fields
        change = {name: on.get(name, 1.0)} if own else {"extra": {name: 1.0}}
        config = AugmentConfig(**{**WHOLE, **change})
        found, _ = TrainingTransform(config, 64, 65535)(image, mask, 3)
        assert not np.array_equal(found, image), name
    found, labels = TrainingTransform(AugmentConfig(**WHOLE), 64, 65535)(image, mask, 3)
    assert np.array_equal(found, image)
    assert np.array_equal(labels, mask)
