"""Pictures for people: VOC's colors, overlays and side by sides."""

import numpy as np
import pytest
from cocoseg.colors import (
    ERROR_COLOR,
    VOID_COLOR,
    add_legend,
    distinct_colormap,
    mask_to_color,
    overlay_errors,
    overlay_mask,
    visualize_prediction,
    voc_colormap,
)

# The first colors of the VOC development kit, as its documentation lists them.
VOC = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128),
    (0, 128, 128), (128, 128, 128), (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0),
    (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128), (0, 64, 0), (128, 64, 0),
    (0, 192, 0), (128, 192, 0), (0, 64, 128),
]  # fmt: skip


def test_the_colors_are_vocs():
    assert voc_colormap().tolist()[: len(VOC)] == [list(color) for color in VOC]
    assert tuple(voc_colormap()[255]) == VOID_COLOR  # the formula gives VOC's void color too


@pytest.mark.parametrize("size", [21, 256, 65536])
def test_every_class_has_a_color_of_its_own(size):
    colors = voc_colormap(size)
    assert colors.shape == (size, 3)
    assert len(np.unique(colors, axis=0)) == size
    assert np.array_equal(colors[:21], VOC)
    with pytest.raises(ValueError, match="read-only"):
        colors[0] = 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_colored_by_its_train_ids_and_void_where_ignored(dtype):
    ignored = np.iinfo(dtype).max
    mask = np.array([[0, 1, 2], [20, 3, ignored]], dtype)
    expected = [[VOC[0], VOC[1], VOC[2]], [VOC[20], VOC[3], VOID_COLOR]]
    assert np.array_equal(mask_to_color(mask, palette="voc"), expected)


def test_another_ignore_index_may_be_given():
    mask = np.array([[1, 9]], np.uint8)
    assert np.array_equal(mask_to_color(mask, 9, "voc"), [[VOC[1], VOID_COLOR]])


@pytest.mark.parametrize(
    "mask",
    [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8), np.zeros((2, 2), np.float32)],
)
def test_what_is_no_mask_is_api_misuse(mask):
    with pytest.raises(ValueError, match="a mask is uint8 or uint16"):
        mask_to_color(mask)


def test_an_overlay_leaves_background_clear_and_blends_the_rest():
    image = np.full((1, 3, 3), 100, np.uint8)
    mask = np.array([[0, 1, 255]], np.uint8)
    blended = overlay_mask(image, mask, alpha=0.5, palette="voc")
    assert blended.dtype == np.uint8
    assert blended.tolist() == [[[100, 100, 100], [114, 50, 50], [162, 162, 146]]]
    assert np.array_equal(overlay_mask(image, mask, alpha=0), image)
    assert overlay_mask(image, mask, alpha=1, palette="voc").tolist() == [
        [[100] * 3, [128, 0, 0], [224, 224, 192]]
    ]


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_overlay_of_wrong_size_or_weight_is_api_misuse(alpha):
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="differ in size"):
        overlay_mask(image, np.zeros((3, 2), np.uint8))
    with pytest.raises(ValueError, match="alpha"):
        overlay_mask(image, np.zeros((2, 3), np.uint8), alpha=alpha)


def shown_colors(picture):
    return {tuple(color) for color in np.asarray(picture).reshape(-1, 3).tolist()}


def test_side_by_side_shows_four_panels_and_a_key_of_what_is_in_them():
    image = np.full((40, 50, 3), 10, np.uint8)
    truth, prediction = np.zeros((40, 50), np.uint8), np.zeros((40, 50), np.uint8)
    truth[5:20, 5:20] = 1
    prediction[5:20, 5:20] = 2
    names = ["background", "person", "bicycle", "car"]
    with_key = visualize_prediction(image, truth, prediction, names)
    without = visualize_prediction(image, truth, prediction)
    assert with_key.mode == "RGB"
    assert with_key.width == without.width >= 200
    assert with_key.height > without.height >= 40
    first, second, third = (tuple(color) for color in distinct_colormap()[1:4].tolist())
    assert {first, second} <= shown_colors(with_key)
    assert third not in shown_colors(with_key)
    assert not {first, second} & shown_colors(without)


def test_the_key_has_the_masks_colors_beyond_256_classes_too():
    truth = np.full((20, 20), 300, np.uint16)
    names = [f"c{i}" for i in range(400)]
    picture = visualize_prediction(np.zeros((20, 20, 3), np.uint8), truth, truth, names)
    assert tuple(mask_to_color(truth)[0, 0].tolist()) in shown_colors(picture)


def test_ignored_pixels_have_no_entry_in_the_key():
    truth = np.full((20, 20), 255, np.uint8)
    visualize_prediction(np.zeros((20, 20, 3), np.uint8), truth, truth, ["background"])


def lightness_and_hue(rgb):
    """CIELAB by scikit-image's constants, written down a second time."""
    linear = ((np.asarray(rgb) / 255 + 0.055) / 1.055) ** 2.4
    matrix = [[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169]]
    matrix.append([0.019334, 0.119193, 0.950227])
    xyz = np.cbrt(linear @ np.array(matrix).T / [0.95047, 1.0, 1.08883])
    x, y, z = xyz.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


@pytest.mark.parametrize(("classes", "apart"), [(8, 60), (21, 35), (81, 18), (256, 10)])
def test_the_colors_of_classes_are_far_apart(classes, apart):
    lab = lightness_and_hue(distinct_colormap(classes)[1:])
    distances = np.linalg.norm(lab[:, None] - lab, axis=2)
    np.fill_diagonal(distances, 999)
    assert distances.min() > apart
    assert np.array_equal(distinct_colormap(300)[:classes], distinct_colormap(classes))


def test_errors_are_red_and_what_is_ignored_is_no_error():
    image = np.full((1, 4, 3), 100, np.uint8)
    truth = np.array([[1, 2, 255, 0]], np.uint8)
    prediction = np.array([[1, 1, 3, 5]], np.uint8)
    right, wrong, ignored, other = overlay_errors(image, truth, prediction, 255)[0].tolist()
    assert right == [146] * 3
    assert ignored == [33] * 3
    assert wrong == other == [48 + ERROR_COLOR[0] * 2 // 3, 48, 48]


def test_a_legend_lies_below_and_changes_no_pixel():
    image = np.random.default_rng(0).integers(0, 256, (30, 120, 3), np.uint8)
    mask = np.zeros((30, 120), np.uint8)
    mask[3:9] = 2
    legend = add_legend(image, mask, ["background", "person", "bicycle"])
    assert legend.width == 120
    assert legend.height > 40
    assert np.array_equal(np.asarray(legend)[:30], image)
    assert tuple(distinct_colormap()[2].tolist()) in shown_colors(np.asarray(legend)[30:])
    mask[mask == 2] = 0
    assert add_legend(image, mask, ["background"]).height == 30
