"""Layers over [T, N, ...]: time folded into the batch, norm over time, pooling, read-out."""

from torch import Tensor, nn


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
