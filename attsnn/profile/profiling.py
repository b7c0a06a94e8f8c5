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
    """Counts what `model` does inside the block, in any number of calls; the `Profile` is
    ready after the block.

    Args:
        model: the network, in training or evaluation mode.
        samples: the number of samples, if the network itself is not called but one of its methods (such as
            `sample`). By default they are counted, by the neurons' second dimension.
        read: whether to read each layer's input as well, which shows whether it has spikes, and which outputs
            its spikes reach. Without it, counts come from the kernels alone, and "papers" is the only energy
            that is known.
        costs: fields of `Costs`: e_mac, e_ac, e_byte in pJ, per_step and so on.

    Raises:
        ValueError: the model is compiled, which hides its layers, or an `nn.DataParallel`; or a cost does not
            fit.
    """
    prices = Costs(**costs)
    found, collector = Profile(prices, samples, read), Collector(model, read)
    with collector.listening():
        yield found
    parameters = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        found.fill(collector.finish(), collector.samples, parameters, collector.left_out)
