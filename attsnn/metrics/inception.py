"""The Inception score (Salimans et al., NeurIPS 2016), from the class probabilities of generated images."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

_SUM = 1e-2  # how far the sum of a row may be from 1, as in bfloat16


class Score(NamedTuple):
    """Mean and population standard deviation over the splits."""

    mean: float
    std: float


def inception_score(probabilities: Iterable[Tensor], splits: int | None = None) -> Score:
    """exp(mean over x of KL(p(y|x) || p(y))) of each split, from 1 to K, where p(y) is the
    split's mean of p(y|x).

    Args:
        probabilities: batches `[N, K]`; rows are scaled to the sum 1.
        splits: None: each batch is a split, as in the spiking VAE papers (FSVAE, PFA), which take 4 or 10
            batches of 256. A number, usually 10: all samples are divided into that many equal stretches, the
            usual score. Fewer samples per split give a lower score, so the two are not comparable.

    Raises:
        ValueError: rows are no probabilities, or there are fewer samples than splits.
    """
    if splits is not None and splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    batches = [batch for batch in map(_checked, probabilities) if len(batch) > 0]
    if len(classes := {batch.shape[1] for batch in batches}) > 1:
        raise ValueError(f"the batches are of {sorted(classes)} classes")
    samples = sum(map(len, batches))
    if samples < (splits or 1):
        raise ValueError(f"{samples} samples cannot be divided into {splits or 1} splits")
    if splits is not None:
        whole = torch.cat(batches)
        batches = [whole[a:b] for a, b in pairwise(i * samples // splits for i in range(splits + 1))]
    found = torch.tensor([_score(batch) for batch in batches], dtype=torch.float64)
    return Score(found.mean().item(), found.std(correction=0).item())


def _score(rows: Tensor) -> float:
    rows = rows.double()
    rows = rows / rows.sum(1, keepdim=True)
    marginal = torch.special.entr(rows.mean(0)).sum()
    score: float = (marginal - torch.special.entr(rows).sum(1).mean()).exp().item()
    return score


def _checked(batch: Tensor) -> Tensor:
    if batch.dim() != 2 or not batch.is_floating_point():
        raise ValueError(f"probabilities have shape [N, K], got {list(batch.shape)} of {batch.dtype}")
    batch = batch.detach().cpu()
    good = (batch >= 0).all(1) & ((batch.double().sum(1) - 1).abs() <= _SUM)  # NaN satisfies neither
    if not good.all():
        wrong = int((~good).sum())
        raise ValueError(
            f"{wrong} of {len(batch)} rows are not probabilities: wanted values >= 0 with a sum of 1"
        )
    return batch
