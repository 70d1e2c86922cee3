"""The learning rate as a function of the step."""

import pytest
from cocoseg.train.schedule import learning_rate_factor
from hypothesis import given
from hypothesis import strategies as st


@given(
    total=st.integers(1, 5000), warmup=st.integers(0, 5000), power=st.sampled_from([0.5, 0.9, 1, 2])
)
def test_the_factor_rises_to_one_and_falls_towards_zero(
    total: int, warmup: int, power: float
) -> None:
    factors = [learning_rate_factor(t, total, warmup, power) for t in range(total)]
    peak = min(warmup, total // 10)
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[peak] == 1
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_the_formula_at_known_points() -> None:
    assert learning_rate_factor(0, 100, 4, 1.0) == pytest.approx(1 / 5)
    assert learning_rate_factor(3, 100, 4, 1.0) == pytest.approx(4 / 5)
    assert learning_rate_factor(52, 100, 4, 1.0) == pytest.approx(0.5)
    assert learning_rate_factor(52, 100, 4, 2.0) == pytest.approx(0.25)
