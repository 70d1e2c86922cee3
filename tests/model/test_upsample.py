"""Upsampling by matrix products against PyTorch's own: values, gradients, rounding, compilers."""

import pytest
import torch
from cocoseg.model import upsample as module
from cocoseg.model.precision import tf32
from cocoseg.model.upsample import by_products, upsample
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

SIZES = [
    ((8, 8), (32, 32)),
    ((20, 20), (160, 160)),
    ((7, 5), (31, 64)),
    ((1, 3), (4, 4)),
    ((9, 9), (9, 9)),
    ((12, 10), (5, 7)),  # smaller: neighbors are skipped, as by PyTorch
    ((3, 4), (1, 1)),
]


def reference(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def both(function, x, size, gradient):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = function(x, *size) if function is by_products else function(x, size)
    out.backward(gradient)
    return out.detach(), x.grad


def maps(source, dtype, channels_last, channels=5):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, channels, *source, generator=generator, dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def gradient_of(size, dtype, channels=5):
    generator = torch.Generator().manual_seed(4)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("source", "size"), SIZES)
def test_values_and_gradients_are_those_of_interpolate(source, size, channels_last):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        x, gradient = maps(source, dtype, channels_last), gradient_of(size, dtype)
        found = both(by_products, x, size, gradient)
        expected = both(reference, x.double(), size, gradient.double())
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            assert ours.shape == theirs.shape
            scale = max(1.0, theirs.abs().max().item())
            assert (ours.double() - theirs).abs().max().item() <= tolerance * scale
        if channels_last and min(source) > 1 and min(size) > 1:
            assert found[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once_in_both_directions(dtype):
    x, gradient = maps((6, 6), dtype, True), gradient_of((48, 48), dtype)
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        found = both(by_products, x, (48, 48), gradient)
    expected = both(reference, x.double(), (48, 48), gradient.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        off = (ours.double() - theirs).abs()
        one_rounding = torch.finfo(dtype).eps / 2 * theirs.abs()
        assert (off <= one_rounding * 1.01 + 2e-6).all()


def test_float32_products_stay_float32_where_tf32_is_allowed(monkeypatch):
    """As `tf32` allows it: PyTorch refuses two ways of saying so in one process."""
    seen, products = [], torch.backends.cuda.matmul
    product = torch.bmm

    def noting(*args):
        seen.append(products.allow_tf32)
        return product(*args)

    monkeypatch.setattr(module.torch, "bmm", noting)
    x, gradient = maps((4, 4), torch.float32, False), gradient_of((8, 8), torch.float32)
    with tf32(True):
        both(by_products, x, (8, 8), gradient)
        assert products.allow_tf32
    both(by_products, x, (8, 8), gradient)
    assert seen == [False] * 4


def test_the_matrices_are_made_once_and_outlive_inference():
    module._kept_matrix.cache_clear()
    x, gradient = maps((4, 4), torch.float32, False), gradient_of((8, 8), torch.float32)
    with torch.inference_mode():
        by_products(x, 8, 8)
    for _ in range(3):
        both(by_products, x, (8, 8), gradient)
    assert module._kept_matrix.cache_info().misses == 1


def test_fake_tensors_leave_nothing_behind_for_real_ones():
    module._kept_matrix.cache_clear()
    for _ in range(2):
        with FakeTensorMode():
            x = torch.empty(2, 3, 4, 4, requires_grad=True)
            by_products(x, 8, 8).sum().backward()
            assert x.grad.shape == x.shape
    x = maps((4, 4), torch.float32, False)
    assert torch.equal(by_products(x, 8, 8), by_products(x, 8, 8))
    assert type(by_products(x, 8, 8)) is torch.Tensor


def test_a_cpu_and_a_compiler_have_a_way_of_their_own():
    x = maps((4, 4), torch.float32, False)
    assert torch.equal(upsample(x, 8, 8), reference(x, (8, 8)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_compiled_graph_is_whole_and_gives_the_same(channels_last):
    torch.compiler.reset()
    x = maps((4, 6), torch.float32, channels_last)
    gradient = gradient_of((8, 9), torch.float32)
    compiled = torch.compile(
        lambda x, size: 2 * by_products(x + 1, *size), backend="aot_eager", fullgraph=True
    )
    found = both(compiled, x, (8, 9), gradient)
    expected = both(lambda x, size: 2 * reference(x + 1, size), x, (8, 9), gradient)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_operators_keep_what_they_declare():
    for channels_last in (False, True):
        x = maps((3, 4), torch.float32, channels_last).requires_grad_()
        torch.library.opcheck(torch.ops.cocoseg.upsample.default, (x, 6, 5))
