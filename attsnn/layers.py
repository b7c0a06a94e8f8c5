"""Layers over [T, N, ...]: what lies between two convolutions as one op, read-out, folding for inference."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from attsnn import ops
from attsnn.attention import Attention
from attsnn.neurons import LIF


def over_time(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer that knows no time, applied to x [T, N, ...] with T folded into the batch."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class SpikingLayer(nn.Module):
    """A convolution or linear layer and what lies between it and the next one, which is one op (`ops.seam`).

    Args:
        current: `nn.Conv2d` or `nn.Linear`, applied to every step; None: the layer starts with the norm.
        neuron: what emits the spikes; its `backend` is that of the whole op.
        norm: `nn.BatchNorm2d`, `nn.BatchNorm1d` or `nn.SyncBatchNorm`, or None. Statistics are taken over
            (T, N, H, W), and over all processes where it is synchronised
            (`nn.SyncBatchNorm.convert_sync_batchnorm` makes it so).
        pool: side and stride of an average pool.
        attention: from `attsnn.attention.attention`, or None.
        membrane: whether `forward` returns (emitted, membrane), the sum that the neuron reads, which a
            residual network hands on.
    """

    def __init__(
        self,
        current: nn.Module | None,
        neuron: LIF,
        *,
        norm: _BatchNorm | None = None,
        pool: int = 1,
        attention: Attention | nn.Identity | None = None,
        membrane: bool = False,
    ):
        super().__init__()
        if not isinstance(attention, Attention | nn.Identity | None):
            kind = type(attention).__name__
            raise TypeError(f"attention must come from attsnn.attention.attention, or be None, got {kind}")
        self.current, self.norm = current, norm
        self.attention = attention if isinstance(attention, Attention) else None
        self.neuron, self.pool, self.membrane = neuron, pool, membrane

    def run(self, x: Tensor, shortcut: Tensor | None = None) -> ops.SeamOutput:
        """x [T, N, C, H, W] or [T, N, F], a shortcut of the pooled maps' shape; all that the op returns, the
        gates' scores among it.
        """
        z = x if self.current is None else over_time(self.current, x)
        result = ops.seam(
            z,
            norm=None if self.norm is None else _norm_of(self.norm),
            pool=self.pool,
            gates=None if self.attention is None else self.attention.gates(z),
            shortcut=shortcut,
            membrane=self.membrane,
            **self.neuron.arguments(),
        )
        if result.batch_mean is not None:
            _update(self.norm, result.batch_mean, result.batch_var)
        return result

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """What the neuron emits; with `membrane`, (emitted, membrane)."""
        result = self.run(x, shortcut)
        return (result.out, result.membrane) if self.membrane else result.out

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={getattr(self, k)}" for k in ("pool", "membrane"))


def _norm_of(norm: _BatchNorm) -> ops.Norm:
    given = not norm.training and norm.running_mean is not None
    mean, var = (norm.running_mean, norm.running_var) if given else (None, None)
    group = None
    if isinstance(norm, nn.SyncBatchNorm) and not given and dist.is_available() and dist.is_initialized():
        group = norm.process_group or dist.group.WORLD
        group = group if dist.get_world_size(group) > 1 else None
    return ops.Norm(norm.weight, norm.bias, mean, var, norm.eps, group)


def _update(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    """The running statistics, as PyTorch's batch norm keeps them."""
    if not norm.training or norm.running_mean is None:
        return
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        for running, now in ((norm.running_mean, mean), (norm.running_var, var)):
            rate = norm.momentum
            if rate is None:  # their plain mean
                rate = (1 / norm.num_batches_tracked.double()).to(running.dtype)
            running.lerp_(now.to(running.dtype), rate)


class Rate(nn.Module):
    """Read-out: the mean over T, [T, N, K] -> [N, K]; of spikes, the firing rate."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


def fold(model: nn.Module) -> nn.Module:
    """A copy of the model for inference, each batch norm put into the convolution or linear layer before it.

    The copy is in evaluation mode and computes the same numbers but for rounding. Norms are found in every
    `SpikingLayer`, and behind their layer in any `nn.Sequential`, where an `nn.Identity` takes their place.

    Raises ValueError for a norm that has no running statistics.
    """
    folded = copy.deepcopy(model).eval()
    for module in list(folded.modules()):
        if isinstance(module, SpikingLayer) and None not in (module.current, module.norm):
            module.current, module.norm = _folded(module.current, module.norm, "norm"), None
        if not isinstance(module, nn.Sequential):
            continue
        for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(norm, _BatchNorm) and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                setattr(module, name, _folded(layer, norm, norm_name))
                setattr(module, norm_name, nn.Identity())
    return folded


def _folded(layer: nn.Module, norm: _BatchNorm, name: str) -> nn.Module:
    if norm.running_mean is None:
        raise ValueError(f"{name} has no running statistics (track_running_stats=False) to fold")
    fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
    return fuse(layer, norm)


@contextmanager
def watch(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects what each `SpikingLayer`, and each LIF outside of one, emits, [T, N, ...], detached, by its
    name, in the order in which they run.

    `with watch(model) as seen: model(x)`; the firing rate of a layer is `(seen[name] > 0).float().mean()`.
    """
    seen: dict[str, Tensor] = {}

    def remember(name: str):
        def hook(module, args, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    inside = {m.neuron for m in model.modules() if isinstance(m, SpikingLayer)}
    emitting = {
        name: m for name, m in model.named_modules() if isinstance(m, LIF | SpikingLayer) and m not in inside
    }
    handles = [m.register_forward_hook(remember(name)) for name, m in emitting.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
