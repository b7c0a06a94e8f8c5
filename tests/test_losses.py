"""What a training minimises, by hand."""

import math

import pytest
import torch

from attsnn.engine import losses

SCORES = torch.tensor([[0.5, 0.0, 0.25], [1.0, 0.75, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
SHARES = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]], dtype=torch.float64)


def entropy(row, share) -> float:
    log_sum = math.log(sum(math.exp(v) for v in row))
    return sum(s * (log_sum - v) for v, s in zip(row, share, strict=True))


def test_rates_against_labels_and_shares():
    """The mean over all elements."""
    wanted = (0.25 + 0.0625 + 1 + 0.5625 + 1) / 6
    assert losses.rate_mse(SCORES, LABELS).item() == pytest.approx(wanted, abs=1e-12)
    wanted = ((0.2**2 + 0.3**2 + 0.25**2) + (1 + 0.25**2 + 0.25)) / 6
    assert losses.rate_mse(SCORES, SHARES).item() == pytest.approx(wanted, abs=1e-12)


def test_smoothing_is_the_same_of_every_loss():
    """(1 - e) target + e / K, for labels and for shares."""
    for target in (LABELS, SHARES):
        whole = target if target.dim() == 2 else torch.nn.functional.one_hot(target, 3).double()
        smooth = 0.7 * whole + 0.1
        assert torch.equal(losses.shares(target, 3, 0.3, torch.float64), 0.7 * whole + 0.3 / 3)
        for loss in (losses.rate_mse, losses.cross_entropy):
            torch.testing.assert_close(loss(SCORES, target, 0.3), loss(SCORES, smooth))


def test_cross_entropy():
    rows = zip(SCORES.tolist(), SHARES.tolist(), strict=True)
    wanted = sum(entropy(row, share) for row, share in rows) / 2
    assert losses.cross_entropy(SCORES, SHARES).item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("target", [LABELS, SHARES])
def test_tet_is_the_mean_over_the_steps(target):
    """Deng et al., 2022, equation 10: not the loss of the mean."""
    steps = torch.stack([SCORES, -2 * SCORES, SCORES.flip(1)])
    each = sum(losses.cross_entropy(step, target).item() for step in steps) / 3
    square = sum((v - 1) ** 2 for v in steps.flatten().tolist()) / 18
    wanted = 0.999 * each + 0.001 * square
    assert losses.tet(steps, target).item() == pytest.approx(wanted, abs=1e-12)
    assert losses.tet(steps, target, weight=0.5, level=0.25).item() == pytest.approx(
        0.5 * each + 0.5 * sum((v - 0.25) ** 2 for v in steps.flatten().tolist()) / 18, abs=1e-12
    )
    assert abs(losses.tet(steps, target).item() - losses.cross_entropy(steps.mean(0), target).item()) > 0.05


def test_tet_wants_every_step():
    with pytest.raises(ValueError, match=r"every step \[T, N, K\], got shape \(2, 3\)"):
        losses.tet(SCORES, LABELS)
