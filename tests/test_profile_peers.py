"""Profiles beside SpikingJelly's `op_counter`, which `make test-peers` installs."""

import math
from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly", reason="no SpikingJelly: make test-peers")

from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based import layer as theirs
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
from spikingjelly.activation_based.op_counter import (
    ACCounter,
    DispatchCounterMode,
    LemaireEnergyConfig,
    MACCounter,
    SynOpCounter,
    estimate_lemaire_energy,
    estimate_simple_energy,
)

from attsnn import neurons
from attsnn.profile import profile

HOW = {
    "pretrained": False,
    "spiking_neuron": neuron.IFNode,
    "surrogate_function": surrogate.ATan(),
    "detach_reset": True,
    "num_classes": 10,
}
NETWORKS = {
    "SEW-ResNet18": lambda: sew_resnet.sew_resnet18(cnf="ADD", **HOW),
    "VGG11": lambda: spiking_vgg.spiking_vgg11_bn(**HOW),
}


def with_our_neurons(net: nn.Module, x: torch.Tensor) -> nn.Module:
    """Multi-step, in evaluation mode; the norms' running statistics are those of x, so that it fires."""
    functional.set_step_mode(net, "m")
    for module in [*net.modules()]:
        for name, child in [*module.named_children()]:
            if isinstance(child, neuron.IFNode):
                setattr(module, name, neurons.integrate_and_fire(detach_reset=True))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    with torch.no_grad():
        net.train()(x)
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_operations(name):
    """MACs, accumulates and synaptic operations of convolutions and linear layers are theirs.

    But of a sum of spikes (0, 1, 2, ...), which they take for real values: n is n spikes for us. Their norms'
    operations are none of ours, for norms fold into weights.
    """
    x = torch.randn(2, 2, 3, 64, 64)
    net = with_our_neurons(NETWORKS[name](), x)
    macs, additions, synaptic = MACCounter(), ACCounter(), SynOpCounter()
    with torch.no_grad():
        with DispatchCounterMode([macs, additions, synaptic], strict=False):
            net(x)
        with profile(net) as p:
            net(x)
    aten = torch.ops.aten
    of_synapses = (aten.convolution.default, aten.addmm.default, aten.mm.default)
    want = [
        sum(counter.get_counts()["Global"].get(op, 0) for op in of_synapses)
        for counter in (macs, additions, synaptic)
    ]
    every = [s for layer in p.layers.values() for s in layer.synapses.values()]
    real = sum(s.dense for s in every if s.real)
    summed = [s for s in every if s.values == "integer"]
    binary = sum(s.fan_out for s in every if s.values == "binary")
    assert real + sum(s.dense for s in summed) == want[0]
    assert binary == want[1] == want[2] == synaptic.get_total()
    assert bool(summed) == (name == "SEW-ResNet18") and binary > 1e6
    assert p.total.synaptic * 2 == binary + sum(s.fan_out for s in summed)


def test_memory():
    """Their simple model reads the same bytes of weights, and as many states as its neurons have."""
    x = torch.randn(2, 1, 3, 64, 64)
    net = with_our_neurons(NETWORKS["VGG11"](), x)
    with torch.no_grad(), profile(net) as p:
        net(x)
    report = estimate_simple_energy(net, x)
    every = [s for layer in p.layers.values() for s in layer.synapses.values()]
    assert report.counts["weight_read_bytes"] == sum(4 * (s.dense if s.real else s.fan_out) for s in every)
    assert report.counts["bias_read_bytes"] == sum(4 * s.outputs for s in every if s.bias)


@pytest.mark.parametrize("leaks", [False, True])
def test_lemaire(leaks):
    """Without norms, which theirs refuses, one sample: the same picojoules."""

    def net(kind):
        make = {
            "ours": neurons.leaky if leaks else neurons.integrate_and_fire,
            "theirs": partial(neuron.LIFNode if leaks else neuron.IFNode, step_mode="m"),
        }[kind]()
        return nn.Sequential(
            theirs.Conv2d(2, 6, 3, stride=2, padding=1, step_mode="m"),
            make,
            theirs.Flatten(step_mode="m"),
            theirs.Linear(6 * 16, 5, step_mode="m"),
        )

    ours, other = net("ours"), net("theirs")
    with torch.no_grad():
        ours[0].weight.abs_(), ours[0].bias.fill_(0.3)
    other.load_state_dict(ours.state_dict())
    x = (torch.rand(4, 1, 2, 8, 8) < 0.4).float()
    with torch.no_grad(), profile(ours, samples=1) as p:
        ours(x)
    with pytest.warns(RuntimeWarning, match="Flatten"):  # is no layer of the paper's
        report = estimate_lemaire_energy(other, x, config=LemaireEnergyConfig(strict=False))
    assert p.layers["1"].neurons.spikes > 20
    assert math.isclose(1e3 * p.energy("lemaire"), report.total_pj, rel_tol=1e-9)
