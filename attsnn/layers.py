"""Layers over [T, N, ...]: time folded into the batch, norm over time, pooling, read-out."""

import copy
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval


class OverTime(nn.Sequential):
    """Layers that know no time, applied to [T, N, ...] with T folded into the batch.

    A batch norm inside therefore takes its statistics over T, N (and H, W).
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def conv_norm(in_channels: int, out_channels: int, *, pool: int = 1) -> OverTime:
    """3x3 convolution with bias, batch norm over (T, N, H, W), average pool: MA-SNN's current into a
    neuron.
    """
    layers = {
        "conv": nn.Conv2d(in_channels, out_channels, 3, padding=1),
        "norm": nn.BatchNorm2d(out_channels),
        **({"pool": nn.AvgPool2d(pool)} if pool > 1 else {}),
    }
    return _named(layers)


def linear_norm(in_features: int, out_features: int) -> OverTime:
    """Linear layer, batch norm over (T, N)."""
    return _named({"linear": nn.Linear(in_features, out_features), "norm": nn.BatchNorm1d(out_features)})


def _named(layers: dict[str, nn.Module]) -> OverTime:
    folded = OverTime()
    for name, layer in layers.items():
        folded.add_module(name, layer)
    return folded


class Rate(nn.Module):
    """Read-out: the mean over T, [T, N, K] -> [N, K]; of spikes, the firing rate."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(0)


def fold(model: nn.Module) -> nn.Module:
    """A copy of the model for inference, each batch norm put into the convolution or linear layer before it.

    The copy is in evaluation mode and computes the same numbers but for rounding; an `nn.Identity` stands
    where a norm stood. Norms are found behind their layer in any `nn.Sequential`.

    Raises ValueError for a norm that has no running statistics.
    """
    folded = copy.deepcopy(model).eval()
    for sequence in [module for module in folded.modules() if isinstance(module, nn.Sequential)]:
        for (name, layer), (norm_name, norm) in pairwise(list(sequence.named_children())):
            if not isinstance(norm, _BatchNorm) or not isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d):
                continue
            if norm.running_mean is None:
                raise ValueError(f"{norm_name} has no running statistics (track_running_stats=False) to fold")
            fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
            setattr(sequence, name, fuse(layer, norm))
            setattr(sequence, norm_name, nn.Identity())
    return folded
