"""Which validation pictures a run shows, and what is in them."""

import numpy as np
import pytest
from cocoseg.colors import distinct_colormap
from cocoseg.taxonomy import SemanticClass, Taxonomy
from cocoseg.train.pictures import chosen, side_by_side
from hypothesis import given
from hypothesis import strategies as st

TAXONOMY = Taxonomy(tuple(SemanticClass(name) for name in ("background", "cat", "dog")))


@given(st.integers(0, 10_000), st.integers(0, 50))
def test_the_chosen_are_different_in_order_and_evenly_spread(samples: int, count: int) -> None:
    numbers = chosen(samples, count)
    assert len(numbers) == min(samples, count)
    assert list(numbers) == sorted(set(numbers))
    assert all(0 <= number < samples for number in numbers)
    gaps = np.diff(numbers)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


def test_few_of_many_lie_in_the_middle_of_equal_parts() -> None:
    assert chosen(100, 4) == (12, 37, 62, 87)
    assert chosen(3, 8) == (0, 1, 2)
    assert chosen(0, 4) == chosen(5, 0) == ()


def panels(sheet: np.ndarray, width: int, height: int) -> list[np.ndarray]:
    return [sheet[16 : 16 + height, 6 + i * (width + 6) :][:, :width] for i in range(4)]


def test_image_truth_prediction_and_errors_stand_side_by_side_and_ignored_pixels_are_void() -> None:
    image = np.full((20, 30, 3), 100, np.uint8)
    truth, prediction = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    truth[:, :10], truth[:, 20:] = 1, 255
    prediction[:10] = 2
    seen, true, predicted, wrong = panels(side_by_side(image, truth, prediction, TAXONOMY), 30, 20)
    assert (seen == 100).all()

    def over(color: tuple[int, int, int]) -> list[int]:
        return [round(0.55 * c + 0.45 * 100) for c in color]

    cat, dog = (tuple(color) for color in distinct_colormap()[1:3].tolist())
    assert (true[:, :10] == over(cat)).all()
    assert (true[:, 10:20] == 100).all()
    assert (true[:, 20:] == over((224, 224, 192))).all()
    assert (predicted[:10] == over(dog)).all()
    assert (predicted[10:] == 100).all()
    assert (wrong[:10, :20, 0] > 200).all()
    assert (wrong[10:, 10:20] == 146).all()


@pytest.mark.parametrize(("height", "width"), [(2000, 900), (3, 4000), (512, 512), (10, 10)])
def test_pictures_are_no_larger_than_needed(height: int, width: int) -> None:
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2 + 1] = 1
    image = np.repeat(truth[..., None] * np.uint8(90), 3, axis=2)
    sheet = side_by_side(image, truth, truth, TAXONOMY)
    factor = min(1, 512 / max(height, width))
    w, h = max(1, round(width * factor)), max(1, round(height * factor))
    assert sheet.shape[1] == 4 * w + 30
    assert sheet.dtype == np.uint8
    seen, true, *_ = panels(sheet, w, h)
    assert ((seen[..., 0] > 45) == (true.max(2) > 60)).mean() > 0.95  # still over each other


def test_between_two_classes_no_third_one_appears() -> None:
    names = tuple(SemanticClass(name) for name in ("background", "a", "b", "c"))
    truth = np.ones((900, 901), np.uint8)
    truth[:, ::3] = 3  # whose mean is class 2
    sheet = side_by_side(np.zeros((900, 901, 3), np.uint8), truth, truth, Taxonomy(names))
    for panel in panels(sheet, 512, round(900 * 512 / 901))[1:3]:
        assert len(np.unique(panel.reshape(-1, 3), axis=0)) == 2


def test_masks_of_sixteen_bits_with_a_prediction_of_eight() -> None:
    names = tuple(SemanticClass(f"class {i}") for i in range(256))
    taxonomy = Taxonomy(names)
    assert taxonomy.ignore_index == 65535
    truth = np.array([[0, 255], [65535, 1]], np.uint16)
    sheet = side_by_side(
        np.zeros((2, 2, 3), np.uint8), truth, np.array([[0, 255], [3, 1]], np.uint8), taxonomy
    )
    _, true, predicted, _ = panels(sheet, 2, 2)
    assert (true[0, 1] == predicted[0, 1]).all()  # class 255 is a class in both
    assert predicted[0, 1].any()
