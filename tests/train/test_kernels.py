"""Which kernels training asks for, and that PyTorch's settings come back."""

import contextlib
import os
from pathlib import Path

import pytest
import torch
from cocoseg.model.config import ModelConfig
from cocoseg.train.kernels import chosen_kernels, usual_kernels
from cocoseg.train.trainer import Trainer

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def settings() -> tuple[object, ...]:
    return (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        os.environ.get(VARIABLE),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
    )


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_the_fastest_kernels_are_searched_for_and_settings_come_back() -> None:
    before = settings()
    with contextlib.suppress(ZeroDivisionError), chosen_kernels(deterministic=False):
        assert settings()[:5] == (True, False, False, False, None)
        with contextlib.suppress(KeyError), usual_kernels():
            assert settings()[0] is False
            raise KeyError
        assert settings()[0] is True
        raise ZeroDivisionError
    assert settings() == before


def test_deterministic_kernels_override_the_search_and_settings_come_back() -> None:
    before = settings()
    with contextlib.suppress(ZeroDivisionError), chosen_kernels(deterministic=True):
        assert settings()[:5] == (False, True, True, True, ":4096:8")
        raise ZeroDivisionError
    assert settings() == before


def test_a_workspace_that_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, ":16:8")
    with chosen_kernels(deterministic=True):
        assert os.environ[VARIABLE] == ":16:8"
    assert os.environ[VARIABLE] == ":16:8"


def test_a_run_trains_with_what_was_asked_for(
    train_small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, step, before = [], Trainer.step, settings()

    def noting(self, *args):
        seen.append(settings())
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", noting)
    model = ModelConfig(name="segformer-tiny", input_size=32, tf32=True)
    train_small(tmp_path / "a", model=model, deterministic=True, max_steps=1, val_shards=())
    train_small(tmp_path / "b", max_steps=1, val_shards=())
    assert seen == [
        (False, True, True, True, ":4096:8", True, True),
        (True, False, False, False, None, False, False),
    ]
    assert settings() == before
