"""The fake device reports planted faults."""

import pytest


def test_a_sound_network_copies_nothing(count):
    seen = count("planted", fault="none")
    assert seen.to_host == []
    assert seen.blocking == []
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
        ("thread", 'torch.zeros(4).to("cuda")'),
        ("pageable", 'host.to("cuda", non_blocking=True)'),
        ("host index", "x_BC[:, torch.tensor([0, 1])]"),
    ],
)
def test_a_planted_blocking_copy_is_counted_for_its_line(count, fault, line):
    (copy,) = count("planted", fault=fault, inference=True).blocking
    assert "cases_harness.py" in copy
    assert line in copy


@pytest.mark.parametrize("fault", ["non-blocking", "page-locked"])
def test_a_non_blocking_copy_is_not_counted_as_blocking(count, fault):
    assert count("planted", fault=fault).blocking == []


def test_a_shape_that_depends_on_values_fails(count):
    with pytest.raises(pytest.fail.Exception, match="DynamicOutputShapeException"):
        count("planted", fault="mask")


def test_synchronizing_with_the_device_fails(count):
    with pytest.raises(pytest.fail.Exception, match="the host waits for all kernels"):
        count("planted", fault="synchronize")


def test_composite_operators_of_inference_mode_are_counted_by_their_parts(count):
    ((op, line, kernels),) = count("planted", fault="none", inference=True).launches
    assert (op, kernels) == ("aten.addmm.default", 1)
    assert "x_BC = self.linear(x_BC)" in line


@pytest.mark.long
def test_a_case_that_kills_the_child_fails_alone(count):
    with pytest.raises(pytest.fail.Exception, match="exit code -6"):
        count("crash")
    assert count("planted", fault="none").to_host == []
