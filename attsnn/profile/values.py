"""What a layer reads: whether its values are spikes, and how many outputs each of them reaches."""

from collections.abc import Callable

import torch
from torch import Tensor

from .records import BINARY, INTEGER, REAL, Synapses

NEAR = 1e-3  # how close a value times `levels` must be to an integer


class Values:
    """The inputs of a layer's calls, summed over steps and samples. Nothing waits for
    the device before `finish`.
    """

    def __init__(self, synapses: Synapses):
        self.synapses = synapses
        self._sums: dict[tuple[int, ...], tuple[Tensor, Callable[[Tensor], Tensor]]] = {}
        self._kinds: Tensor | None = None  # whether all are 0 or 1; whether all are integers
        self._alive: Tensor | int = 0
        self._products: Tensor | int = 0

    @torch.no_grad()
    def add(self, x: Tensor, lead: int, weigh: Callable[[Tensor], Tensor], unit: int) -> None:
        """Adds the input of a call.

        Args:
            x: values [..., C, ...].
            lead: the number of leading dimensions, for steps and samples.
            weigh: maps the sum of the entries to what it counts for.
            unit: the factor that turns the values into integers.
        """
        x = x.detach()
        if unit != 1:
            near = (x.double() * unit).round()
            x = torch.where((near - x.double() * unit).abs() < NEAR, near, x.double())
        self._see(x)
        self._alive = self._alive + x.count_nonzero()
        total = x.abs().to(torch.float64)
        total = total.sum(tuple(range(lead))) if lead else total
        known = self._sums.get(total.shape)
        self._sums[total.shape] = (total if known is None else known[0] + total, weigh)

    @torch.no_grad()
    def add_product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """Adds a product of matrices a [..., n, k] and b [..., k, m].

        If both have spikes, additions take place where both have one; if only one of them has, where it has
        one.
        """
        kinds = [_kinds(part.detach()) for part in (a, b)]
        dense = out.numel() * a.shape[-1]
        # Each entry of a meets equally many of b; entries of a matrix that is broadcast meet more.
        of_a, of_b = (
            part.detach().abs().sum(dtype=torch.float64) * (dense / max(part.numel(), 1)) for part in (a, b)
        )
        both = out.detach().abs().sum(dtype=torch.float64)
        spiking = torch.stack([kind[1] for kind in kinds])
        found = torch.where(spiking.all(), both, torch.where(spiking[0], of_a, of_b))
        self._products = self._products + torch.where(spiking.any(), found, 0.0)
        either = torch.stack(kinds).any(0)
        self._kinds = either if self._kinds is None else self._kinds & either
        self._alive = self._alive + a.count_nonzero() + b.count_nonzero()

    def _see(self, x: Tensor) -> None:
        kinds = _kinds(x)
        self._kinds = kinds if self._kinds is None else self._kinds & kinds

    def finish(self) -> None:
        """Writes the result into the record of the synapses."""
        assert self._kinds is not None  # something was added
        synapses, (binary, integer) = self.synapses, self._kinds.tolist()
        synapses.values = BINARY if binary else INTEGER if integer else REAL
        synapses.alive = int(self._alive)
        if synapses.real:
            return
        if synapses.kind == "matmul":
            synapses.spikes = synapses.fan_out = round(float(self._products))
            return
        synapses.spikes = round(sum(float(total.sum()) for total, _ in self._sums.values()))
        synapses.fan_out = round(sum(float(weigh(total)) for total, weigh in self._sums.values()))


def _kinds(x: Tensor) -> Tensor:
    """[2]: whether all values are 0 or 1, whether all are integers."""
    return torch.stack([((x == 0) | (x == 1)).all(), (x == x.round()).all()])
