"""`settle`: running statistics that are exactly those of a number of batches."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.nn.modules.batchnorm import _BatchNorm

from .normed import group_of, settling
from .watching import refuse_compiled


class AsItWas:
    """Remembers the modes of a model's modules and the buffers of its norms, to restore them."""

    def __init__(self, model: nn.Module):
        self.modes = {module: module.training for module in model.modules()}
        norms = (module for module in self.modes if isinstance(module, _BatchNorm))
        self.buffers = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]

    @torch.no_grad()
    def restore(self) -> None:
        for module, mode in self.modes.items():
            module.training = mode
        for buffer, before in self.buffers:
            buffer.copy_(before)


class _Pooled:
    """Count, mean and centred sum of squares of all values of a channel so far, in float64 [2 C + 1]."""

    def __init__(self, norm: _BatchNorm):
        assert norm.running_mean is not None
        self.norm = norm
        self.parts = torch.zeros(
            2 * norm.num_features + 1, dtype=torch.float64, device=norm.running_mean.device
        )

    def add(self, mean: Tensor, spread: Tensor, count: int) -> None:
        own = torch.cat([mean.new_tensor([count], dtype=torch.float64), mean.double(), spread.double()])
        self.parts = _merged(self.parts, own)

    def take(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Adds what a seam found.

        The variance is unbiased. A synchronised norm's statistics are those of all processes.
        """
        group = group_of(self.norm)
        count *= 1 if group is None else dist.get_world_size(group)
        if count:
            self.add(mean, variance.double() * (count - 1) if count > 1 else torch.zeros_like(mean), count)

    def see(self, x: Tensor) -> None:
        """Adds the input [N, C, ...] of a norm that is called."""
        values = x.detach().double().transpose(0, 1).flatten(1)
        if values.shape[1]:
            mean = values.mean(1)
            self.add(mean, (values - mean[:, None]).square().sum(1), values.shape[1])

    def write(self) -> None:
        """Writes the running statistics of all processes. Without two values they stay as they are."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            shares = [torch.zeros_like(self.parts) for _ in range(dist.get_world_size())]
            dist.all_gather(shares, self.parts)
            self.parts = shares[0]
            for share in shares[1:]:
                self.parts = _merged(self.parts, share)
        count, (mean, spread) = float(self.parts[0]), self.parts[1:].chunk(2)
        if count > 1:
            assert self.norm.running_mean is not None and self.norm.running_var is not None
            self.norm.running_mean.copy_(mean)
            self.norm.running_var.copy_(spread / (count - 1))


def _merged(one: Tensor, other: Tensor) -> Tensor:
    """Both together (Chan, Golub and LeVeque, 1979)."""
    (a, b), whole = (one[0], other[0]), one[0] + other[0]
    (mean, spread), (its_mean, its_spread) = one[1:].chunk(2), other[1:].chunk(2)
    apart, share = its_mean - mean, b / whole.clamp(min=1)
    return torch.cat([whole[None], mean + apart * share, spread + its_spread + apart.square() * (a * share)])


@torch.no_grad()
def settle(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any] | None = None,
) -> nn.Module:
    """Sets the running statistics of all batch norms to those of the given batches.

    Mean and variance are taken over all values of all batches, so a sample in a small batch weighs as much
    as any other. Elsewhere this is called precise batch norm; it is not the mean of the batches' variances.
    It helps after a few training steps: the running statistics are not accurate yet, and a spiking network
    that reads them may fall silent.

    Meanwhile the norms take each batch's own statistics, as in training. Everything else runs as in
    evaluation. Afterwards every module is in its former mode. With torch.distributed all processes must call
    it, and the statistics are those of all their batches.

    Args:
        model: the network, which is changed in place.
        batches: what the model takes, or tuples (inputs, ...) whose first entry it takes.
        forward: is called as forward(model, batch); None: the model is called.

    Returns:
        The model.

    Raises:
        ValueError: for a compiled model, or if there is no batch.
    """
    refuse_compiled(model, "settle")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    pooled, seen = {norm: _Pooled(norm) for norm in norms}, 0
    with ExitStack() as stack:
        stack.callback(AsItWas(model).restore)
        handle = every_module.register_module_forward_pre_hook(
            lambda module, args: pooled[module].see(args[0]) if module in pooled else None
        )
        stack.callback(handle.remove)
        settling.update({norm: found.take for norm, found in pooled.items()})
        stack.callback(lambda: [settling.pop(norm) for norm in norms])
        model.eval()
        for norm in norms:
            norm.train()
        for batch in batches:
            if forward is not None:
                forward(model, batch)
            else:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
            seen += 1
    if seen == 0:
        raise ValueError("settle: no batch was given to take statistics from")
    for found in pooled.values():
        found.write()
    return model
