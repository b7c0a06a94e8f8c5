"""The average pool on its own, against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from close import close64, same_bits

from attsnn import layers, ops


def maps(shape, dtype, channels_last):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.movedim(2, -1).contiguous().movedim(-1, 2) if channels_last else x
    return x.requires_grad_()


def both(x, pool, backend="fused"):
    """The pooled maps of ours and of PyTorch, and their gradients for the same one."""
    found = []
    for f in (
        lambda x: ops.average_pool(x, pool, backend=backend),
        lambda x: F.avg_pool2d(x.flatten(0, 1), pool).unflatten(0, x.shape[:2]),
    ):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        out = f(leaf)
        out.backward(torch.linspace(-1, 1, out.numel()).to(out).reshape(out.shape))
        found.append((out.detach(), leaf.grad))
    return found


SHAPES = [
    *((2, 3, 5, 8, 8), (2, 3, 5, 9, 7), (1, 2, 3, 32, 32)),
    *((3, 2, 40, 2, 2), (2, 2, 6, 16, 4), (2, 2, 3, 6, 16)),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_of_pytorch(fused, shape, channels_last, dtype):
    x = maps(shape, dtype, channels_last)
    (out, grad), (expected, expected_grad) = both(x, 2)
    same_bits(out, expected)
    same_bits(grad, expected_grad)
    assert grad.stride() == x.stride() and (out.stride(2) == 1) == (
        channels_last or out[0, 0, 0].numel() == 1
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("pool", [1, 3, 4, 7])
def test_other_windows(fused, pool, channels_last):
    ours, theirs = both(maps((2, 2, 3, 7, 9), torch.float64, channels_last), pool)
    for a, b in zip(ours, theirs, strict=True):
        close64(a, b, 1e-15)


def test_layouts_that_it_copies_or_shares(fused):
    """An image at every step (stride 0), and an order that is neither of the two."""
    image = torch.randn(1, 2, 3, 6, 6)
    same_bits(ops.average_pool(image.expand(4, -1, -1, -1, -1), 2)[3:], ops.average_pool(image, 2))
    same_bits(ops.average_pool(image.mT, 2), ops.average_pool(image.mT.contiguous(), 2))
    x = torch.randn(2, 2, 3, 4, 4, requires_grad=True)
    ops.average_pool(x, 2).sum().backward()  # whose gradient is one value, expanded
    same_bits(x.grad, torch.full_like(x, 0.25))


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(fused, channels_last):
    x = maps((2, 2, 3, 5, 4), torch.float32, channels_last)
    torch.library.opcheck(torch.ops.attsnn.average_pool.default, (x, 2))
    grad = ops.average_pool(x.detach(), 2)
    backward = torch.ops.attsnn.average_pool_backward.default
    torch.library.opcheck(backward, (grad, 2, 5, 4, channels_last))
    with pytest.raises(RuntimeError, match="shape and the layout"):
        backward(grad, 2, 7, 4, channels_last)


def test_the_layer(backend):
    layer = layers.AveragePool(2, backend=backend)
    x = torch.randn(3, 2, 4, 6, 6)
    same_bits(layer(x), both(x, 2, "reference")[1][0])
    assert repr(layer) == "AveragePool(2)"


@pytest.mark.parametrize(("shape", "pool"), [((2, 3, 4, 4), 2), ((2, 1, 3, 4, 4), 5), ((2, 1, 3, 4, 4), 0)])
def test_sentences(backend, shape, pool):
    with pytest.raises(ValueError, match=r"x must be \[T, N, C, H, W\]"):
        ops.average_pool(torch.zeros(shape), pool, backend=backend)


def test_no_double_backward(fused):
    x = torch.randn(1, 1, 1, 4, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(ops.average_pool(x, 2).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no double backward"):
        grad.sum().backward()
