"""ONNX, by the way of docs/export.md: the reference, its steps unrolled, the batch free; run by onnxruntime.

Needs what `make test-peers` installs.
"""

import pytest
import torch
from torch import nn

from attsnn import attention, layers, neurons
from attsnn.layers import SpikingLayer

pytest.importorskip("onnxscript", reason="no onnxscript: make test-peers")
onnxruntime = pytest.importorskip("onnxruntime", reason="no onnxruntime: make test-peers")
STEPS = 2


def layer(current, norm, gates=None, pool=1):
    nn.init.constant_(norm.bias, 0.3)  # so that it fires
    neuron = neurons.ma_snn(backend="reference")
    return SpikingLayer(current, neuron, norm=norm, attention=gates, pool=pool)


def test_a_network_with_gates(tmp_path):
    torch.manual_seed(0)
    ratios = {"temporal_ratio": 1, "channel_ratio": 2}
    gates = attention.attention("TCSA", steps=STEPS, channels=4, **ratios)
    net = nn.Sequential(
        layer(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), gates, pool=2),
        nn.Flatten(2),
        layer(nn.Linear(64, 10), nn.BatchNorm1d(10)),
        layers.Rate(),
    ).eval()
    frames, path, batch = (
        torch.rand(STEPS, 2, 2, 8, 8),
        tmp_path / "net.onnx",
        torch.export.Dim("batch", min=2),
    )
    torch.onnx.export(net, (frames,), str(path), dynamic_shapes=({1: batch},), dynamo=True)
    session = onnxruntime.InferenceSession(str(path))
    for count in (2, 5):
        x = torch.rand(STEPS, count, 2, 8, 8)
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        with torch.no_grad():
            want = net(x)
        assert found.shape == want.shape and want.any() and not want.all()
        # Rounding may flip a spike at its threshold: of a sample's ten values one, at most.
        assert int(((found - want).abs() > 1e-5).sum()) <= 1
