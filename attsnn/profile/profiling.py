"""`profile`: listens to a network while it runs, and says what it did."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .collect import Collector
from .energy import Costs
from .result import Profile


@contextmanager
def profile(
    model: nn.Module, *, samples: int | None = None, read: bool = True, **costs: Any
) -> Iterator[Profile]:
    """Counts what `model` does inside of the block, in as many calls as there are; the `Profile` is ready
    behind it.

    Args:
        samples: how many are shown, where the network is not called itself but by a method (`sample`, say);
            else they are counted, by the neurons' second dimension.
        read: whether to read each layer's input, too, for which of its outputs its spikes reach, and whether
            it has spikes at all. Without, counts come from the kernels alone, and `papers` is the only energy
            that is known.
        costs: fields of `Costs`: e_mac, e_ac, e_byte in pJ, per_step and so on.

    Raises ValueError for a compiled model, whose layers nobody sees, and for `nn.DataParallel`.
    """
    prices = Costs(**costs)
    found, collector = Profile(prices, samples, read), Collector(model, read)
    with collector.listening():
        yield found
    parameters = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        found.fill(collector.finish(), collector.samples, parameters, collector.left_out)
