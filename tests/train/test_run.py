"""Whole runs: they learn, they resume exactly, and the number of processes changes nothing."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from cocoseg.checkpoint.layout import list_steps
from cocoseg.errors import ConfigError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.evaluate.run import evaluate
from cocoseg.model.config import ModelConfig
from cocoseg.storage import locate
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.losses import LOSSES
from cocoseg.train.run import RunResult, forecast
from cocoseg.train.run_plan import plan_run
from exact_oracle import plain_network
from small_runs import AUGMENT, MODEL, assert_same_weights, journal, losses, vouch

Train = Callable[..., RunResult]


def test_the_loss_falls(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, max_steps=40, val_every=40, learning_rate=3e-3)
    values = losses(tmp_path)
    first, last = [values[i] for i in range(1, 6)], [values[i] for i in range(36, 41)]
    assert sum(last) < 0.7 * sum(first)


@pytest.mark.parametrize("loss_type", sorted(LOSSES.keys() - {TrainConfig().loss_type}))
def test_the_other_losses_train_too(train_small: Train, tmp_path: Path, loss_type: str) -> None:
    train_small(tmp_path, max_steps=2, val_every=2, loss_type=loss_type)
    assert len(losses(tmp_path)) == 2


def test_a_run_that_is_cut_anywhere_ends_with_the_same_bits(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.train import trainer

    train_small(tmp_path / "whole")
    for fatal in (1, 4, 5):  # before, and after, the checkpoint at step 3
        steps = 0
        take = trainer.Trainer.step

        def dies(self, *args, fatal=fatal, take=take):
            nonlocal steps
            steps += 1
            if steps == fatal:
                raise KeyboardInterrupt
            return take(self, *args)

        run = tmp_path / f"cut-{fatal}"
        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "step", dies)
            with pytest.raises(KeyboardInterrupt):
                train_small(run)
        assert list_steps(locate(run)) == ([] if fatal == 1 else [3])
        train_small(run)
        assert_same_weights(run, tmp_path / "whole")
        assert losses(run) == losses(tmp_path / "whole")
        assert [line["step"] for line in journal(run)] == [1, 2, 3, 3, 4, 5, 6, 6]


def rates(run: Path) -> list[dict[str, float]]:
    return [line["learning_rate"] for line in journal(run) if "learning_rate" in line]


def saved_ratio(run: Path) -> float:
    return yaml.safe_load((run / "config.yaml").read_text())["train"]["backbone_lr_ratio"]


def test_random_weights_learn_at_one_rate_and_the_run_records_it(
    train_small: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train_small(tmp_path, max_steps=2, val_every=2)
    assert all(rate["backbone"] == rate["head"] for rate in rates(tmp_path))
    assert saved_ratio(tmp_path) == 1.0
    assert re.search("^learning rate +0.001 head, 0.001 backbone$", caplog.text, re.MULTILINE)


def test_pretrained_weights_learn_at_a_tenth_in_the_backbone(
    train_small: Train, tmp_path: Path
) -> None:
    train_small(tmp_path / "first", max_steps=1, val_every=1)
    pretrained = ModelConfig(name=str(tmp_path / "first" / "last"), input_size=32)
    train_small(tmp_path / "second", pretrained, max_steps=1, val_every=1)
    (rate,) = rates(tmp_path / "second")
    assert rate["backbone"] == pytest.approx(rate["head"] / 10)
    assert saved_ratio(tmp_path / "second") == 0.1


def test_a_ratio_that_is_given_is_used_for_random_weights_too(
    train_small: Train, tmp_path: Path
) -> None:
    train_small(tmp_path, max_steps=1, val_every=1, backbone_lr_ratio=0.1)
    (rate,) = rates(tmp_path)
    assert rate["backbone"] == pytest.approx(rate["head"] / 10)


def test_a_run_of_the_earlier_default_is_resumed_exactly(
    train_small: Train, tmp_path: Path
) -> None:
    """Before, 0.1 was the default for random weights too; its checkpoints hold the value."""
    train_small(tmp_path / "whole", backbone_lr_ratio=0.1)
    run = tmp_path / "cut"
    train_small(run, backbone_lr_ratio=0.1)
    for name in ("checkpoints/step-00000006", "best", "last"):
        path = run / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    train_small(run)
    assert_same_weights(run, tmp_path / "whole")
    assert rates(run) == rates(tmp_path / "whole")
    assert saved_ratio(run) == 0.1


def test_the_dry_run_prints_the_peak_rates(train_small: Train, tmp_path: Path, golden) -> None:
    config = TrainConfig(shards=(str(golden.shards("train")),), save_dir=str(tmp_path))
    told = forecast(config, MODEL, AugmentConfig()).to_dict()
    assert told["learning_rate"] == {"head": 6e-4, "backbone": 6e-4}
    given = config.model_copy(update={"backbone_lr_ratio": 0.5})
    assert forecast(given, MODEL, AugmentConfig()).to_dict()["learning_rate"]["backbone"] == 3e-4


def test_the_same_call_finds_a_finished_run_finished(train_small: Train, tmp_path: Path) -> None:
    first = train_small(tmp_path)
    stamp = (tmp_path / "last" / "model.safetensors").stat().st_mtime_ns
    assert train_small(tmp_path) == first
    assert (tmp_path / "last" / "model.safetensors").stat().st_mtime_ns == stamp


def test_nothing_left_to_do_is_said_and_nothing_is_written(
    train_small: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_small(tmp_path)
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with caplog.at_level("INFO"):
        train_small(tmp_path)
        assert "finished at step 6" in caplog.text
        assert train_small(tmp_path, max_steps=4).step == 6
        assert "step 6 is reached, and the plan is for 4: nothing is left to do" in caplog.text
    after = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "train.seed: 0 there, 5 now"),
        ({"loss_type": "ce"}, "train.loss_type: 'ce_dice' there, 'ce' now"),
        ({"class_weights": "auto"}, "train.class_weights: None there, "),
        ({"rare_class_sampling": 0.5}, "train.rare_class_sampling: 0.0 there, 0.5 now"),
        (
            {"model": ModelConfig(name="segformer-b0", input_size=32)},
            "model.name: 'segformer-tiny'",
        ),
        (
            {"model": ModelConfig(name="segformer-tiny", input_size=64)},
            "model.input_size: 32 there",
        ),
    ],
)
def test_a_run_of_other_settings_is_not_gone_on_with(
    train_small: Train, tmp_path: Path, change: dict, named: str
) -> None:
    train_small(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(named)):
        train_small(tmp_path, **change)


def test_other_shards_and_classes_are_refused_with_what_differs(
    train_small: Train, tmp_path: Path, golden, coco_set_class
) -> None:
    train_small(tmp_path / "run", val_shards=())
    with pytest.raises(
        ConfigError, match="shards: 3 of 3 there are gone or changed, 2 now are new"
    ):
        train_small(tmp_path / "run", shards=(str(golden.shards("val")),), val_shards=())
    other = coco_set_class(tmp_path / "other")  # cat, dog, fish
    other.photo(1)
    other.prepare(tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"classes: - person, - bicycle.*\(79 differ\)"):
        train_small(tmp_path / "run", shards=(str(tmp_path / "shards"),), val_shards=())


def test_the_global_batch_stays_when_a_run_goes_on(
    train_small: Train, tmp_path: Path, caplog
) -> None:
    """It was 2 images x 2 micro-batches; whatever is said now, it makes up 4 again or refuses."""
    train_small(tmp_path, max_steps=3)
    with caplog.at_level("INFO"):
        train_small(tmp_path, max_steps=6, batch_size=1)
    assert "accumulation_steps 4 instead of 2, so that the global batch stays 4" in caplog.text
    epochs = {line["step"]: line["epoch"] for line in journal(tmp_path) if "epoch" in line}
    assert epochs[6] == pytest.approx(2 * epochs[3])
    with pytest.raises(ConfigError, match=r"global batch of 4.*fits is 1, 2, 4"):
        train_small(tmp_path, max_steps=9, batch_size=3)


def test_what_may_change_changes_when_a_run_goes_on(
    train_small: Train, tmp_path: Path, caplog
) -> None:
    train_small(tmp_path, max_steps=3, learning_rate=1e-3, warmup_steps=0)
    with caplog.at_level("INFO"):
        train_small(tmp_path, max_steps=6, learning_rate=1e-4, warmup_steps=0)
    assert "train.learning_rate was 0.001, is 0.0001 from now on" in caplog.text
    rates = {line["step"]: line["learning_rate"] for line in journal(tmp_path) if "loss" in line}
    assert rates[1]["head"] == pytest.approx(1e-3)
    assert rates[4]["head"] == pytest.approx(1e-4 * (1 - 3 / 6))
    assert rates[4]["backbone"] == pytest.approx(1e-4 * (1 - 3 / 6))


def test_other_augmentations_are_told_when_a_run_goes_on(
    train_small: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_small(tmp_path, max_steps=3)
    with caplog.at_level("INFO"):
        train_small(tmp_path, max_steps=6, augment=AugmentConfig(flip=0.25))
    assert "augment.flip was 0.5, is 0.25 from now on" in caplog.text


def test_scores_on_other_validation_shards_begin_anew(
    train_small: Train, tmp_path: Path, golden, caplog: pytest.LogCaptureFixture
) -> None:
    """The first score can hardly be beaten: it is of the shards that are trained on, and 2."""
    train_small(tmp_path, max_steps=3)
    state = tmp_path / "last" / "training_state.pt"
    content = torch.load(state, weights_only=True)
    content["progress"]["best_score"] = 2.0
    torch.save(content, state)
    vouch(tmp_path / "last")
    again = train_small(tmp_path, max_steps=6)
    assert (again.best_step, again.best_score) == (3, 2.0)
    other = train_small(tmp_path, max_steps=9, val_shards=(str(golden.shards("train")),))
    assert "the validation shards are others now" in caplog.text
    assert other.best_step == 9
    assert 0 <= other.best_score < 1
    assert (tmp_path / "best").readlink().name == "step-00000009"


def test_a_lost_best_checkpoint_bars_no_better_one(
    train_small: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train_small(tmp_path, max_steps=3)
    assert first.best_step == 3
    train_small(tmp_path, max_steps=6, val_shards=())
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000003")
    found = train_small(tmp_path, max_steps=6, val_shards=())
    assert "the best checkpoint is gone or broken" in caplog.text
    assert found.best_step is None
    assert found.to_dict()["checkpoint"] == f"{tmp_path}/last"
    again = train_small(tmp_path, max_steps=7)
    assert again.best_step in (6, 7)


def test_the_best_checkpoint_outlives_its_link(train_small: Train, tmp_path: Path) -> None:
    from cocoseg.train import trainer

    save = trainer.Trainer.save

    def unlinks(self, **how: bool) -> None:
        (tmp_path / "best").unlink(missing_ok=True)
        save(self, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "save", unlinks)
        result = train_small(
            tmp_path, keep_last=1, learning_rate=1e-30, freeze_batch_norm=True, max_steps=9
        )
    assert result.best_step == 3
    assert list_steps(locate(tmp_path)) == [3, 9]
    assert (tmp_path / "best").readlink().name == "step-00000003"


def test_loss_scaling_comes_and_goes_between_parts_of_a_run(
    train_small: Train, tmp_path: Path
) -> None:
    train_small(tmp_path, max_steps=2)
    train_small(tmp_path, max_steps=4, amp_dtype="float16", val_shards=())
    assert train_small(tmp_path, max_steps=6).step == 6


def test_epochs_count_no_fillers(train_small: Train, tmp_path: Path) -> None:
    """8 samples, of which one epoch and a quarter: 10 of the last step's 12 slots."""
    train_small(tmp_path, max_steps=None, epochs=1.25)
    epochs = {line["step"]: line["epoch"] for line in journal(tmp_path) if "epoch" in line}
    assert epochs == {1: 0.5, 2: 1.0, 3: 1.25}


def test_resume_never_refuses_a_folder_that_holds_a_run(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, resume="never")
    with pytest.raises(ConfigError, match="holds a run already"):
        train_small(tmp_path, resume="never")


@pytest.mark.parametrize("precision", ["auto", "bfloat16", "float16"])
def test_validation_while_training_is_eval_without_tta(
    train_small: Train, tmp_path: Path, golden, precision: str
) -> None:
    model = MODEL.model_copy(update={"inference_precision": precision})
    train_small(tmp_path / "run", model=model, val_batch_size=3)
    during = [line for line in journal(tmp_path / "run") if "val_mIoU" in line][-1]
    config = InferConfig(
        checkpoint=str(tmp_path / "run" / "last"),
        shards=(str(golden.shards("val")),),
        output=str(tmp_path / "eval"),
        use_tta=False,
        batch_size=3,
        device="cpu",
    )
    after = evaluate(config, model).to_dict()
    used = {"auto": "float32"}.get(precision, precision)
    assert after["checkpoint"]["precision"] == used
    assert during["val_mIoU"] == after["mIoU"]
    assert during["val_pixel_accuracy"] == after["pixel_accuracy"]
    assert during["val_mean_accuracy"] == after["mean_accuracy"]


def test_a_run_without_validation_ends_with_last_alone(train_small: Train, tmp_path: Path) -> None:
    result = train_small(tmp_path, val_shards=())
    assert result.best_score is None
    assert (tmp_path / "last").is_symlink()
    assert not (tmp_path / "best").is_symlink()


def test_two_processes_follow_one_within_float_noise(
    torchrun, train_small: Train, tmp_path: Path
) -> None:
    """The same global batches, which batch norm sees whole; no dropout, of which each rank has its
    own.
    """
    plain_network().save_pretrained(tmp_path / "model")
    settings = {"accumulation_steps": 1, "max_steps": 12}
    both = torchrun(tmp_path / "two", 2, model=str(tmp_path / "model"), batch_size=2, **settings)
    out, err = both.communicate(timeout=600)
    assert both.returncode == 0, err
    assert json.loads(out)["steps"] == 12
    model = ModelConfig(name=str(tmp_path / "model"), input_size=32)
    train_small(tmp_path / "one", model=model, batch_size=4, **settings)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4), step
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    scores = [line for line in journal(tmp_path / "two") if "val_mIoU" in line]
    assert len(scores) == 4


@pytest.mark.parametrize(
    ("settings", "every"),
    [
        ({"epochs": 10}, 2),  # 8 samples, 4 a step
        ({"epochs": 50}, 2),
        ({"epochs": 51}, 3),  # 102 steps: 34 times
        ({"max_steps": 1001}, 21),
        ({"max_steps": 1}, 2),
        ({"max_steps": 1001, "val_every": 5}, 5),
    ],
)
def test_validation_is_once_an_epoch_and_at_most_fifty_times(golden, settings, every) -> None:
    shards = {name: (str(golden.shards(name.partition("_")[0])),) for name in ("train", "val")}
    config = TrainConfig(
        shards=shards["train"],
        val_shards=shards["val"],
        batch_size=2,
        accumulation_steps=2,
        **settings,
    )
    plan = plan_run(config, MODEL, AugmentConfig())
    assert plan.val_every == plan.checkpoint_every == every
    times = sum(plan.validates_after(step) for step in range(1, plan.total_steps + 1))
    assert times == -(-plan.total_steps // every)
    assert times <= 50 or "val_every" in settings


def test_masks_that_teach_nothing_are_warned_of(
    train_small: Train, coco_set_class, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    coco_set = coco_set_class(tmp_path / "set")
    for image_id in (1, 2):
        coco_set.photo(image_id, 40, 30)
        box = [3, 3, 20, 3, 20, 25, 3, 25]
        rle = {"size": [30, 40], "counts": [0, 1200]}
        coco_set.annotate(image_id, rle if image_id == 1 else [box], iscrowd=2 - image_id)
    coco_set.prepare(tmp_path / "shards", crowd="ignore")
    shards = (str(tmp_path / "shards"),)
    told = r"warning: {} shards: 1 of 2 masks are ignored as a whole and contribute nothing: 0+1$"
    train_small(tmp_path / "run", max_steps=1, shards=shards, val_shards=shards)
    for name in ("training", "validation"):
        assert re.search(told.format(name), caplog.text, re.MULTILINE)
    config = TrainConfig(shards=shards, save_dir=str(tmp_path / "other"))
    assert any(
        "ignored as a whole" in one
        for one in forecast(config, MODEL, AUGMENT).to_dict()["warnings"]
    )


def test_classes_without_a_pixel_are_named_for_the_training_shards_alone(golden) -> None:
    shards = {name: (str(golden.shards(name)),) for name in ("train", "val")}
    config = TrainConfig(shards=shards["train"], val_shards=shards["val"])
    (warning,) = plan_run(config, MODEL, AUGMENT).warnings()
    assert re.match(r"training shards: \d+ of 80 classes have no pixel and can be neither", warning)
