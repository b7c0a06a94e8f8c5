"""What neurons emit, counted where it is computed: no further pass over memory on the kernels; and what gates
gave.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """Of one call of a neuron: by_step [T] and by_channel [C], int64, the emitted values that are not zero,
    of integer spikes (`levels`) their sum. flat: both, one behind the other; shape: of what was emitted,
    [T, N, C, ...] or [T, N].
    """

    flat: Tensor
    shape: torch.Size

    @property
    def by_step(self) -> Tensor:
        return self.flat[: self.shape[0]]

    @property
    def by_channel(self) -> Tensor:
        return self.flat[self.shape[0] :]


Told = Callable[[Counts, Tensor], None]
_open: list[Told] = []  # of those that ask, the one within the others last


@contextmanager
def telling(told: Told) -> Iterator[None]:
    """Calls told(counts, emitted tensor) for every `ops.lif` and `ops.seam` that is called inside; where one
    is opened inside of another, both are told. Not of what torch.compile and torch.export run.
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
    """Calls told(kind, scores) for every gate that is applied inside, without gradient: "TA" [T, N], "CA" [N,
    C], "SA" [N, H, W], "PFA" the factors of its map (`PFAScores`).
    """
    _scoring.append(told)
    try:
        yield
    finally:
        _scoring.remove(told)


def scored(kind: str, scores: Tensor | tuple[Tensor, ...]) -> None:
    """A gate of that kind gave these."""
    for told in _scoring:
        told(kind, scores)


@contextmanager
def counting() -> Iterator[list[Counts]]:
    """Collects the `Counts` of every `ops.lif` and `ops.seam` that is called inside, in their order; where
    one is opened inside of another, both collect. Not of what torch.compile and torch.export run.
    """
    found: list[Counts] = []
    with telling(lambda counts, _: found.append(counts)):
        yield found


@contextmanager
def pausing() -> Iterator[None]:
    """Nobody is told inside: of a norm alone, say, which is a seam whose neuron stands for none."""
    held, _open[:] = list(_open), []
    try:
        yield
    finally:
        _open[:] = held


def asked() -> bool:
    """Whether anybody wants to know."""
    return bool(_open) and not torch.compiler.is_compiling()


def take(flat: Tensor, out: Tensor) -> None:
    """The counts [T + C] of what was emitted."""
    for told in _open:
        told(Counts(flat, out.shape), out)


@torch.no_grad()
def counts_of(out: Tensor, levels: int | None, normalize: bool) -> Tensor:
    """The same of a tensor that is there."""
    channels = out.shape[2] if out.dim() > 2 else 1
    if levels is None:
        values = (out != 0).to(torch.int64)
    else:
        values = (out.double() * levels if normalize else out).round().to(torch.int64)
    maps = values.reshape(*out.shape[:2], channels, math.prod(out.shape[3:]))
    return torch.cat([maps.sum((1, 2, 3)), maps.sum((0, 1, 3))])
