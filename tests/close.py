"""The three comparisons of the suite.

`same_bits` for what must be equal to the bit: spikes, states, runs that are repeated. `as_exact_as_eager` for
gradients in low precision. `close64` for what two correct programs may round differently: in float64, where
rounding flips no spike.
"""

import torch
from torch import Tensor


def same_bits(a: Tensor, b: Tensor, what: str = "") -> None:
    """Equal values, type and shape, NaN equal to NaN."""
    assert a.dtype == b.dtype and a.shape == b.shape, f"{what}: {a.dtype} {a.shape} != {b.dtype} {b.shape}"
    different = (a != b) & ~(a.isnan() & b.isnan())
    if different.any():
        first = tuple(int(i) for i in different.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(different.sum())} of {a.numel()} values differ, first at {first}: "
            f"{a[first].item()!r} != {b[first].item()!r}"
        )


def as_exact_as_eager(ours: Tensor, eager: Tensor, exact: Tensor, what: str = "") -> None:
    """The error against a float64 result is at most twice that of eager PyTorch in the same type."""
    assert ours.shape == exact.shape, f"{what}: {ours.shape} != {exact.shape}"
    if exact.numel() == 0:
        return
    scale = exact.abs().max().item() + 1e-30
    error = (ours.double() - exact).abs().max().item() / scale
    bound = 2 * (eager.double() - exact).abs().max().item() / scale + 2 * torch.finfo(ours.dtype).eps
    assert error <= bound, f"{what}: relative error {error:.3g}, eager's bound {bound:.3g}"


def close64(a: Tensor, b: Tensor, tolerance: float, what: str = "") -> None:
    """Float64 results equal to rounding: |a - b| <= tolerance (1 + max |b|)."""
    assert a.dtype == b.dtype == torch.float64 and a.shape == b.shape, what
    error = (a - b).abs().max().item() if a.numel() else 0.0
    scale = 1 + (b.abs().max().item() if b.numel() else 0.0)
    assert error <= tolerance * scale, f"{what}: error {error:.3g} > {tolerance:g} x {scale:.3g}"
