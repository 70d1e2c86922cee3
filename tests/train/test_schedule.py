"""The learning rate as a function of the step, and which parameters get which."""

import pytest
from cocoseg.model.config import ModelConfig
from cocoseg.model.weights import start_network
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train.config import TrainConfig
from cocoseg.train.schedule import learning_rate_factor, parameter_groups
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


def test_every_parameter_is_in_one_group_with_its_rate_and_decay() -> None:
    network, _ = start_network(ModelConfig(name="segformer-tiny"), coco_taxonomy(), seed=0)
    config = TrainConfig(learning_rate=1e-3, backbone_lr_ratio=0.1, weight_decay=0.05)
    groups = parameter_groups(network, config)
    placed = {id(p): group for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert len(placed) == len(named) == sum(len(group["params"]) for group in groups)
    for name, parameter in named.items():
        group = placed[id(parameter)]
        assert group["peak_lr"] == pytest.approx(1e-4 if name.startswith("segformer.") else 1e-3)
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0), name
