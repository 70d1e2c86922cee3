"""The fake device sees what it is there to see: planted faults."""

import pytest


def test_a_sound_network_copies_nothing(count):
    seen = count("planted", fault="none")
    assert seen.to_host == []
    assert seen.blocking == []
    # addmm, sum; ones, backward: sum of the bias, mm of the weight, twice clone of a gradient
    assert 0 < seen.kernels < 10


def test_a_planted_mismatch_of_devices_fails_and_names_its_line(count):
    with pytest.raises(pytest.fail.Exception, match=r"cuda:0.*cpu") as failed:
        count("planted", fault="mismatch")
    assert "return x_BC + torch.ones(4)" in str(failed.value)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("item", "x_BC.sum().item()"),
        ("tolist", "x_BC.sum(1).tolist()[0]"),
        ("branch", "if (x_BC > 0).all()"),
    ],
)
def test_a_planted_read_of_the_host_is_one_transfer_of_its_line(count, fault, line, inference):
    (transfer,) = count("planted", fault=fault, inference=inference).to_host
    assert "cases_harness.py" in transfer
    assert line in transfer


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("constant", "device=x_BC.device)"),
        ("to", 'torch.ones(4).to("cuda")'),
        ("host index", "x_BC[:, torch.tensor([0, 1])]"),
    ],
)
def test_a_planted_blocking_copy_is_counted_for_its_line(count, fault, line):
    (copy,) = count("planted", fault=fault, inference=True).blocking
    assert "cases_harness.py" in copy
    assert line in copy


def test_a_copy_that_does_not_block_is_none_of_them(count):
    assert count("planted", fault="non-blocking").blocking == []


def test_a_shape_that_depends_on_numbers_fails(count):
    with pytest.raises(pytest.fail.Exception, match="DynamicOutputShapeException"):
        count("planted", fault="mask")


def test_inference_mode_launches_the_same_kernels(count):
    """Composite operators arrive whole there, and are taken apart."""
    assert count("planted", fault="none", inference=True).kernels == 1


@pytest.mark.long
def test_a_case_that_kills_the_child_fails_alone(count):
    with pytest.raises(pytest.fail.Exception, match="exit code -6"):
        count("crash")
    assert count("planted", fault="none").to_host == []
