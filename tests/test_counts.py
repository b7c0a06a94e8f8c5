"""Counts of what neurons emit, from the kernels, against the tensors themselves."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from attsnn import attention, layers, models, neurons, ops

KINDS = {
    "spikes": neurons.leaky(backend="fused"),
    "bits": neurons.ms_resnet(backend="fused"),
    "by channel": neurons.LIF(threshold=torch.tensor([0.2, 0.5, 0.1, 0.9, 0.3]), backend="fused"),
    "membrane": neurons.ma_snn(emit="relu_membrane", backend="fused"),
    "soft reset": neurons.LIF(v_reset=None, subtract=0.3, backend="fused"),
    "integers": neurons.ilif(threshold=0.3, backend="fused"),
    "shares": neurons.ilif(threshold=0.3, normalize=True, backend="fused"),
}


def wanted(out, neuron=None):
    """(by step, by channel) of a tensor that is there."""
    levels = getattr(neuron, "levels", None)
    values = (out != 0).long() if levels is None else out.double()
    if levels is not None:
        values = (values * (levels if neuron.normalize else 1)).round().long()
    channels = out.shape[2] if out.dim() > 2 else 1
    values = values.reshape(*out.shape[:2], channels, math.prod(out.shape[3:]))
    return values.sum((1, 2, 3)), values.sum((0, 1, 3))


def must_count(found, out, neuron=None):
    assert found.shape == tuple(out.shape) and found.by_step.dtype == found.by_channel.dtype == torch.int64
    for ours, theirs in zip((found.by_step, found.by_channel), wanted(out, neuron), strict=True):
        assert ours.tolist() == theirs.tolist()


def numbers(*shape, last=False, dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(1.5).to(dtype)
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if last else x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_neurons(fused, kind, dtype):
    """In every layout, of short and of long walks, with gradients and without."""
    neuron = KINDS[kind]
    for steps, last, plane in itertools.product((1, 6, 70), (False, True), ((1, 1), (3, 7), (20, 30))):
        x = numbers(steps, 2, 5, *plane, last=last, dtype=dtype)
        for wants in (False, True):
            with ops.counting() as found:
                out = neuron(x.clone().requires_grad_() if wants else x)
            (counts,) = found
            must_count(counts, out.detach(), neuron)
            assert counts.by_step.sum() > 0


@pytest.mark.parametrize(
    "shape", [(4, 3), (4, 1), (3, 0, 2), (5, 2, 9), (5, 2, 5, 7), (3, 2, 1030), (2, 2, 5, 40, 40)]
)
def test_shapes(backend, shape):
    neuron = neurons.leaky(backend=backend)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(3)
    with ops.counting() as found:
        out = neuron(x)
        static = neuron(x[:1], steps=6)
    must_count(found[0], out)
    must_count(found[1], static)


@pytest.mark.parametrize("gates", [None, "TCSA"])
@pytest.mark.parametrize("last", [False, True])
def test_seams(backend, gates, last):
    torch.manual_seed(0)
    for neuron, pool, dtype in (
        (neurons.ma_snn(threshold=0.1, backend=backend), 2, torch.float32),
        (neurons.ms_resnet(threshold=0.1, backend=backend), 1, torch.bfloat16),
        (neurons.ilif(threshold=0.1, backend=backend), 1, torch.float64),
    ):
        scores = attention.attention(gates, channels=6, steps=4, channel_ratio=2, temporal_ratio=2)
        layer = layers.SpikingLayer(None, neuron, norm=nn.BatchNorm2d(6), pool=pool, attention=scores)
        z = numbers(4, 3, 6, 6, 8, last=last, dtype=dtype)
        r = torch.randn_like(layer(z.clone()).detach())
        for shortcut, wants in itertools.product((None, r), (False, True)):
            with ops.counting() as found:
                out = layer(z.clone().requires_grad_(wants), shortcut)
            must_count(found[0], out.detach(), neuron)
            assert found[0].by_step.all() and len(found) == 1


def test_gradients_and_results_are_the_same(fused):
    """Bits of everything else, counted or not."""
    torch.manual_seed(0)
    layer = layers.SpikingLayer(nn.Conv2d(2, 4, 3), neurons.leaky(backend="fused"), norm=nn.BatchNorm2d(4))
    x, seen = numbers(5, 2, 2, 8, 8), []
    for ask in (False, True):
        layer.zero_grad()
        if ask:
            with ops.counting():
                out = neurons.leaky(backend="fused")(layer(x))
        else:
            out = neurons.leaky(backend="fused")(layer(x))
        out.square().mean().backward()
        seen.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
    assert all(map(torch.equal, *seen))


def test_sequences_and_tokens(fused):
    layer = layers.SpikingLayer(nn.Linear(7, 6), neurons.leaky(backend="fused"))
    with ops.counting() as found:
        out = layer(3 * numbers(4, 3, 5, 7))
    (counts,) = found
    assert counts.by_step.tolist() == (out != 0).sum((1, 2, 3)).tolist()
    assert counts.by_channel.tolist() == (out != 0).sum((0, 1, 2)).tolist()  # the last dimension


def test_who_collects(fused):
    """The innermost and all around it; nobody behind the end; and nothing is left behind."""
    neuron, x = neurons.leaky(backend="fused"), 3 * numbers(2, 2, 3)
    with ops.counting() as outer:
        neuron(x)
        with ops.counting() as inner:
            neuron(x)
    neuron(x)
    assert len(outer) == 2 and len(inner) == 1
    with pytest.raises(RuntimeError), ops.counting() as broken:
        raise RuntimeError
    neuron(x)
    assert not broken


def test_compiled_programs_do_not_count(fused):
    compiled, x = torch.compile(neurons.leaky(backend="fused"), fullgraph=True), 3 * numbers(2, 2, 3)
    with ops.counting() as found:
        compiled(x)
    assert not found


def test_whole_networks(backend):
    """As many as there are neuron layers, each with its own total."""
    net = models.create("ma_snn_dvs_gesture", attention=None, width=0.125, size=16, backend=backend)
    x = 3 * torch.rand(5, 2, 2, 16, 16)
    with layers.watch(net) as seen, ops.counting() as found:
        net(x)
    assert [int(c.by_step.sum()) for c in found] == [int((s != 0).sum()) for s in seen.values()]


def test_a_norm_alone_is_no_neuron(backend):
    """Stem and shortcuts of a residual network are seams, too, and emit nothing that counts."""
    net = models.create("ms_resnet18", width=0.125, steps=3, backend=backend)
    x = 3 * torch.rand(2, 3, 32, 32)
    with layers.watch(net) as seen, ops.counting() as found:
        net(x)
    assert [int(c.by_step.sum()) for c in found] == [int((s != 0).sum()) for s in seen.values()]
    assert len(found) == 17


def test_the_same_for_any_number_of_threads(fused):
    code = (
        "import torch; from attsnn import neurons, ops; torch.set_num_threads({}); torch.manual_seed(0); "
        "x = torch.randn(6, 4, 8, 40, 40); c = ops.counting(); f = c.__enter__(); neurons.leaky()(x); "
        "print(f[0].by_step.tolist(), f[0].by_channel.tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code.format(n)], capture_output=True, text=True, check=True
        ).stdout
        for n in (1, 3)
    }
    assert len(seen) == 1
