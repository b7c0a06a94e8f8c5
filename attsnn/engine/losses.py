"""Training losses: functions of scores and targets.

Scores are [N, K], or [T, N, K] for a loss that reads every step. Targets are labels, int64 [N], or the class
shares of mixed samples, [N, K]. With `smoothing` e, a target becomes (1 - e) target + e / K.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def shares(target: Tensor, classes: int, smoothing: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
    """The target as class shares [N, K] of type `dtype`."""
    whole = target if target.dim() == 2 else F.one_hot(target, classes)
    whole = whole.to(dtype or torch.get_default_dtype())
    return whole if smoothing == 0 else (1 - smoothing) * whole + smoothing / classes


def rate_mse(scores: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """The mean of (score - share)^2 over all elements: firing rates against labels, as
    MA-SNN and PFA train.
    """
    return F.mse_loss(scores, shares(target, scores.shape[1], smoothing, scores.dtype))


def cross_entropy(scores: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy of the scores, as a mean over the samples."""
    return F.cross_entropy(scores, target, label_smoothing=smoothing)


def tet(
    scores: Tensor, target: Tensor, smoothing: float = 0.0, *, weight: float = 1e-3, level: float = 1.0
) -> Tensor:
    """Temporal efficient training (Deng et al., ICLR 2022, eq. 10), of scores [T, N, K].

    (1 - weight) mean over t of CE(o_t, y) + weight mean over t of MSE(o_t, level).
    """
    if scores.dim() != 3:
        raise ValueError(f"TET reads the scores of every step [T, N, K], got shape {tuple(scores.shape)}")
    entropy = torch.stack([cross_entropy(step, target, smoothing) for step in scores.unbind()]).mean()
    return (1 - weight) * entropy + weight * (scores - level).square().mean()


LOSSES = {"mse": rate_mse, "cross_entropy": cross_entropy, "tet": tet}
EVERY_STEP = ("tet",)  # losses that read the scores of every step
