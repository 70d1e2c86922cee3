"""Small pictures."""

import io

import numpy as np
import pytest
from cocoseg.colors import VOID_COLOR, distinct_colormap
from cocoseg.report.thumbnails import overlay_thumbnail, thumbnail
from PIL import Image


def decoded(jpeg):
    with Image.open(io.BytesIO(jpeg.content)) as image:
        assert image.format == "JPEG"
        assert image.size == (jpeg.width, jpeg.height)
        return np.asarray(image).astype(int)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (320, 240)),
        ((16, 12), (16, 12)),
        ((1, 2000), (1, 320)),
        ((330, 320), (320, 310)),
    ],
)
def test_the_longer_side_is_limited_and_small_pictures_stay(size, expected):
    image = np.zeros((size[1], size[0], 3), np.uint8)
    jpeg = thumbnail(image)
    assert (jpeg.width, jpeg.height) == expected
    decoded(jpeg)


@pytest.mark.parametrize("height", [90, 1500])
@pytest.mark.parametrize(("dtype", "ignored"), [(np.uint8, 255), (np.uint8, 9), (np.uint16, 65535)])
def test_masks_keep_their_places_and_colors(height, dtype, ignored):
    train_id = 3 if dtype == np.uint8 else 1234
    image = np.full((height, height * 2, 3), 100, np.uint8)
    mask = np.zeros(image.shape[:2], dtype)
    mask[:, : height // 2] = train_id
    mask[:, -height // 2 :] = ignored
    pixels = decoded(overlay_thumbnail(image, mask, ignored))
    middle, right = pixels.shape[0] // 2, pixels.shape[1]
    for x, color in (
        (right // 8, distinct_colormap(65536)[train_id]),
        (right * 7 // 8, VOID_COLOR),
    ):
        expected = 0.45 * 100 + 0.55 * np.array(color)
        np.testing.assert_allclose(pixels[middle, x], expected, atol=6)
    np.testing.assert_allclose(pixels[middle, right // 2], 100, atol=6)


def test_shrinking_a_mask_mixes_no_train_ids():
    mask = 2 * np.random.default_rng(0).integers(0, 2, (1280, 1280), np.uint8)  # green, or nothing
    pixels = decoded(overlay_thumbnail(np.full((1280, 1280, 3), 100, np.uint8), mask))
    half = (100 + 0.45 * 100 + 0.55 * distinct_colormap()[2].astype(float)) / 2
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), half, atol=3)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="differ in size"):
        overlay_thumbnail(np.zeros((900, 900, 3), np.uint8), np.zeros((900, 901), np.uint8))
