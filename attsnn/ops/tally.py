"""Counts what neurons emit, and collects the scores of gates.

The kernels count while they compute, without another pass over memory.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """What one call of a neuron emitted.

    The counts are int64: the number of emitted values that are not zero, or the sum of integer spikes
    (`levels`).

    Args:
        flat: `by_step` [T] and `by_channel` [C], one after the other.
        shape: the shape of what was emitted, [T, N, C, ...] or [T, N].
    """

    flat: Tensor
    shape: torch.Size

    @property
    def by_step(self) -> Tensor:
        """The counts of every step, [T]."""
        return self.flat[: self.shape[0]]

    @property
    def by_channel(self) -> Tensor:
        """The counts of every channel, [C]; one value if the neurons have no channels ([T, N])."""
        return self.flat[self.shape[0] :]


Told = Callable[[Counts, Tensor], None]
_open: list[Told] = []  # one for each open context, the innermost last


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """Calls told(counts, emitted tensor) for every `ops.lif` and `ops.seam` that is called inside.

    Contexts may be nested; each is told. What torch.compile and torch.export run is not reported.
    """
    _open.append(told)
    try:
        yield
    finally:
        _open.remove(told)


Scored = Callable[[str, Tensor | tuple[Tensor, ...]], None]
_scoring: list[Scored] = []


@contextmanager
def telling_scores(told: Scored) -> Iterator[None]:
    """Calls told(kind, scores) for every gate that is applied inside.

    Scores are without gradient: "TA" [T, N], "CA" [N, C], "SA" [N, H, W], and for "PFA" the factors of its
    map (`PFAScores`).
    """
    _scoring.append(told)
    try:
        yield
    finally:
        _scoring.remove(told)


def scored(kind: str, scores: Tensor | tuple[Tensor, ...]) -> None:
    """Reports the scores of a gate to the open contexts."""
    for told in _scoring:
        told(kind, scores)


@contextmanager
def counting() -> Iterator[list[Counts]]:
    """A context that collects the `Counts` of every `lif` and `seam` that runs inside it.

    It yields a list, to which each call appends in turn: `with counting() as found: model(x)`. Contexts may
    be nested; each collects. What torch.compile and torch.export run is not counted.
    """
    found: list[Counts] = []
    with telling(lambda counts, _: found.append(counts)):
        yield found


@contextmanager
def pausing() -> Iterator[None]:
    """Suspends counting inside.

    A norm alone, for example, is computed as a seam whose neuron only passes its input on, and does not
    count.
    """
    held, _open[:] = list(_open), []
    try:
        yield
    finally:
        _open[:] = held


def asked() -> bool:
    """Whether a context wants counts."""
    return bool(_open) and not torch.compiler.is_compiling()


def take(flat: Tensor, out: Tensor) -> None:
    """Reports the counts [T + C] of what was emitted to the open contexts."""
    for told in _open:
        told(Counts(flat, out.shape), out)


@torch.no_grad()
def counts_of(out: Tensor, levels: int | None, normalize: bool) -> Tensor:
    """The same counts [T + C], taken from an emitted tensor in plain PyTorch."""
    channels = out.shape[2] if out.dim() > 2 else 1
    if levels is None:
        values = (out != 0).to(torch.int64)
    else:
        values = (out.double() * levels if normalize else out).round().to(torch.int64)
    maps = values.reshape(*out.shape[:2], channels, math.prod(out.shape[3:]))
    return torch.cat([maps.sum((1, 2, 3)), maps.sum((0, 1, 3))])
