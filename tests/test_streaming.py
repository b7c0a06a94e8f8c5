"""Networks that go on where they stopped: chunks against the whole."""

import copy
import warnings

import pytest
import torch
from close import close64, same_bits
from torch import nn
from torch.utils import _pytree

from attsnn import layers, models, neurons, ops

SMALL = {"attention": None, "width": 0.125}
SEQUENCES = {  # a network, and the frames of one step
    "ma_snn_dvs_gesture": ({**SMALL, "size": 16, "steps": 7}, (2, 16, 16)),
    "ma_snn_dvs_gesture, membranes": ({**SMALL, "size": 16, "steps": 7, "emit": "membrane"}, (2, 16, 16)),
    "ma_snn_cifar10_dvs": ({**SMALL, "size": 64, "steps": 7}, (2, 64, 64)),
    "pfa_vgg_cifar10_dvs": ({**SMALL, "steps": 7}, (2, 50, 40)),
    "pfa_vgg_dvs_gesture": ({**SMALL, "steps": 7, "size": 32}, (2, 32, 32)),
    "pfa_vgg_dvs_gesture, parity": ({**SMALL, "steps": 7, "size": 32, "parity": True}, (2, 32, 32)),
}
IMAGES = {
    "ms_resnet18": ({"width": 0.125, "steps": 7}, (3, 32, 32)),
    "att_ms_resnet18": ({**SMALL, "steps": 7}, (3, 32, 32)),
    "pfa_ms_resnet18": ({**SMALL, "steps": 7}, (3, 16, 16)),
    "pfa_ms_resnet18, max": ({**SMALL, "steps": 7, "downsample": "max"}, (3, 16, 16)),
    "att_vgg11": ({**SMALL, "steps": 7}, (3, 32, 32)),
    "pfa_fmnist": ({**SMALL, "steps": 7}, (1, 28, 28)),
    "fmnist_baseline": ({"width": 0.125, "steps": 7}, (1, 28, 28)),
}
CUTS = [(7,), (1,) * 7, (3, 4), (1, 6)]


def network(name: str, backend: str = "fused", **changes) -> nn.Module:
    """In float64, its statistics and weights such that neurons fire in every layer."""
    torch.manual_seed(0)
    keywords = (SEQUENCES | IMAGES)[name][0]
    net = models.create(name.split(",")[0], **{**keywords, **changes}, backend=backend).double()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight, 3.0, 0.3)
            nn.init.normal_(module.bias, 0.7, 0.1)
            module.running_var.fill_(0.2)
        elif isinstance(module, nn.Linear):
            module.weight.data *= 8
    return net.eval()


def frames(name: str, steps: int = 7) -> torch.Tensor:
    shape = (SEQUENCES | IMAGES)[name][1]
    generator = torch.Generator().manual_seed(1)
    batch = (2, *shape) if name in IMAGES else (steps, 2, *shape)
    return 2 * torch.randn(batch, generator=generator, dtype=torch.float64)


def in_chunks(net, name: str, cuts, x):
    """(out of all steps, the last state)."""
    outs, state, at = [], None, 0
    for steps in cuts:
        how = {"steps": steps} if name in IMAGES else {}
        out, state = net.run(x if how else x[at : at + steps], state, **how)
        outs.append(out)
        at += steps
    return torch.cat(outs), state


@pytest.mark.parametrize("name", [*SEQUENCES, *IMAGES])
def test_chunks_are_the_whole(backend, name):
    """Spikes equal, outputs to rounding, their mean over all chunks is what forward returns."""
    net, x = network(name, backend), frames(name)
    with layers.watch(net) as seen:
        forward = net(x)
    whole, last = in_chunks(net, name, CUTS[0], x)
    close64(whole.mean(0), forward, 1e-12, "the mean over all steps")
    fires = [bool(spikes.any()) for spikes in seen.values()]
    assert sum(fires) >= len(fires) - 1  # else nothing would be carried
    for cuts in CUTS[1:]:
        with layers.watch(net) as by_chunk:
            out, state = in_chunks(net, name, cuts, x)
        close64(out, whole, 1e-12, f"{cuts}")
        for spikes, chunks in zip(seen.values(), by_chunk.values(), strict=True):
            close64(torch.cat(chunks), spikes, 1e-12, "what a layer emits")
        for ours, theirs in zip(state, last, strict=True):
            close64(ours, theirs, 1e-12, "state")
    assert _pytree.tree_leaves(state) == list(state)
    again, _ = in_chunks(net, name, (1,), x)  # nothing of it stays in the network
    close64(again, whole[:1], 1e-12)


def test_a_network_that_forgets_is_another(backend):
    """The state matters here: without it the steps are others."""
    net, x = network("ma_snn_dvs_gesture, membranes", backend), frames("ma_snn_dvs_gesture, membranes")
    whole, _ = net.run(x)
    forgetful = torch.cat([net.run(step[None])[0] for step in x])
    assert not torch.allclose(forgetful[1:], whole[1:])


@pytest.mark.parametrize("name", ["ma_snn_dvs_gesture", "ms_resnet18"])
def test_a_state_is_a_value(name):
    """It can be kept, moved and given again."""
    net, x = network(name), frames(name)
    how = {"steps": 3} if name in IMAGES else {}
    given = x if how else x[:3]
    _, state = net.run(given, **how)
    kept = copy.deepcopy([v.detach() for v in state])
    first, _ = net.run(given, state, **how)
    second, _ = net.run(given, kept, **how)
    same_bits(first, second)
    assert all(a.equal(b) for a, b in zip(state, kept, strict=True))  # nothing is written into it


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("ma_snn_dvs_gesture", {"attention": "TCSA"}, r"features\.0\.attention \(Attention\)"),
        ("ma_snn_dvs_gesture", {"attention": "CA", "channel_ratio": 2}, r"features.0.attention .Attention."),
        ("pfa_vgg_cifar10_dvs", {"attention": "PFA", "rank": 2}, r"attention \(PFA\)"),
        ("ms_resnet18", {"attention": "TCA", "keep_channels": 0.5, "temporal_ratio": 2, "channel_ratio": 2},
         r"stages\.0\.0\.second\.attention \(PrunedAttention\)"),
        ("att_vgg11", {"attention": "CSA"}, r"stem\.current\.attention \(Attention\)"),
        ("pfa_fmnist", {"attention": "PFA"}, r"features\.attention \(PFA\)"),
    ],
)  # fmt: skip
def test_gates_want_whole_windows(name, changes, named):
    net = network(name, **changes)
    with pytest.raises(ValueError, match=rf"run\(\): {named} weighs .*attention=None, or whole windows"):
        net.run(frames(name))


def test_what_does_not_stream():
    name = "ma_snn_dvs_gesture"
    net, x = network(name), frames(name)
    _, state = net.run(x[:2])
    with pytest.raises(ValueError, match=r"run\(\) wants evaluation mode \(the network is in training\)"):
        net.train().run(x)
    net.eval().features[1].norm.train()
    with pytest.raises(ValueError, match=r"evaluation mode \(features.1.norm is in training\)"):
        net.run(x)
    net.eval()
    for wrong, kind, sentence in (
        (state[:-1], ValueError, "state: has 4 tensors, this network has more"),
        ((*state, state[0]), ValueError, "state: has 6 tensors, this network has 5"),
        ("state", TypeError, "state must be what run.. returned, a tuple of tensors, got str"),
        (tuple(v[:1] for v in state), ValueError, "v0 must be .*got shape"),
        (tuple(v.float() for v in state), TypeError, "v0 must be a torch.float64"),
    ):
        with pytest.raises(kind, match=sentence):
            net.run(x, wrong)
    with pytest.raises(ValueError, match="x must be frames"):
        net.run(x[0])
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps must be an integer of at least 1"):
            network("ms_resnet18").run(frames("ms_resnet18"), steps=steps)
    net.features[0].norm = nn.BatchNorm2d(8, track_running_stats=False).double().eval()
    with pytest.raises(ValueError, match=r"features\.0\.norm has no running statistics"):
        net.run(x)


class Residual(nn.Module):
    """A stranger's, whose neuron keeps a state that nobody hands on."""

    def __init__(self):
        super().__init__()
        self.neuron = neurons.leaky()

    def forward(self, x):
        return x + self.neuron(x)


def test_modules_of_others_are_computed_or_refused():
    name = "ma_snn_dvs_gesture"
    net, x = network(name), frames(name)
    whole, _ = net.run(x)
    net.features.append(nn.Tanh().eval())  # knows no time
    close64(in_chunks(net, name, (3, 4), x)[0], net.run(x)[0], 1e-12)
    net.features[-1] = Residual().eval()
    with pytest.raises(ValueError, match=r"Residual has neurons whose state .*walk\(call, x\)"):
        net.run(x)
    Residual.walk = lambda self, call, x: x + call(self.neuron, x)
    try:
        close64(in_chunks(net, name, (3, 4), x)[0], net.run(x)[0], 1e-12)
    finally:
        del Residual.walk
    del net.features[-1]
    net.features[1].forward = lambda x: x  # of one's own, which takes no state
    with pytest.raises(ValueError, match="SpikingLayer has neurons whose state it does not hand on"):
        net.run(x)
    del net.features[1].forward
    calls = []
    handle = net.features.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match="hooks of Sequential would not run"):
        net.run(x)
    handle.remove()
    net.features[1].register_forward_hook(lambda *_: calls.append(1))
    close64(net.run(x)[0], whole, 1e-12)
    assert len(calls) == 1
    net.features[1].neuron.register_forward_hook(lambda *_: calls.append(2))
    with pytest.raises(ValueError, match="final_state: the neuron has hooks"):
        net.run(x)


def test_a_layer_hands_its_state_on(backend):
    """`run`, `forward` and `step`; with a shortcut, and of a static input."""
    torch.manual_seed(0)
    neuron = neurons.ms_resnet(backend=backend)
    layer = layers.SpikingLayer(nn.Conv2d(2, 4, 3, padding=1), neuron, norm=nn.BatchNorm2d(4), membrane=True)
    layer, x = layer.double().eval(), 2 * torch.randn(5, 2, 2, 6, 6, dtype=torch.float64)
    r = torch.randn(5, 2, 4, 6, 6, dtype=torch.float64)
    whole = layer.run(x, r)
    assert isinstance(whole, ops.SeamOutput) and whole._fields[-1] == "v"
    first = layer.run(x[:2], r[:2])
    second = layer.run(x[2:], r[2:], v0=first.v)
    close64(torch.cat([first.out, second.out]), whole.out, 1e-12)
    close64(second.v, whole.v, 1e-12)
    out, membrane, v = layer(x[2:], r[2:], v0=first.v, final_state=True)
    same_bits(out, second.out), same_bits(membrane, second.membrane), same_bits(v, second.v)
    plain = layers.SpikingLayer(layer.current, neuron, norm=layer.norm)
    emitted, state = [], None
    for step in x:
        one, state = plain.step(step, state)
        emitted.append(one)
    close64(torch.stack(emitted), plain(x), 1e-12)
    static, v = plain(x[:1], steps=3, final_state=True)
    more = plain(x[:1], steps=2, v0=v)
    close64(torch.cat([static, more]), plain(x[:1], steps=5), 1e-12)
    close64(static, plain(x[:1].expand(3, -1, -1, -1, -1)), 1e-12)


def test_a_state_has_a_gradient_in_training(backend):
    """Truncated backpropagation through time: chunks with their states joined are the whole."""
    torch.manual_seed(0)
    layer = layers.SpikingLayer(nn.Linear(6, 5), neurons.leaky(backend=backend)).double()
    x = 3 * torch.randn(6, 4, 6, dtype=torch.float64)
    whole = torch.autograd.grad(layer(x).square().mean(), layer.current.weight)[0]
    first = layer.run(x[:2])
    second = layer.run(x[2:], v0=first.v)
    joined = torch.cat([first.out, second.out]).square().mean()
    close64(torch.autograd.grad(joined, layer.current.weight)[0], whole, 1e-12)
    cut = layer.run(x[2:], v0=first.v.detach()).out.square().mean()
    assert torch.autograd.grad(cut, layer.current.weight)[0].any()


def test_compiled_and_exported_streams(fused):
    """A step of a network with its state as an argument, as one program."""
    name = "ma_snn_dvs_gesture"
    net, x = network(name), frames(name)

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, state):
            return self.net.run(x, state)

    with torch.no_grad():
        whole, _ = net.run(x)
        _, state = net.run(x[:1])
        step = Step().eval()
        compiled = torch.compile(step, fullgraph=True)
        exported = torch.export.export(step, (x[1:2], state)).module()
        for run in (compiled, exported):
            outs, now = [whole[:1]], state
            for t in range(1, 4):
                out, now = run(x[t : t + 1], now)
                outs.append(out)
            close64(torch.cat(outs), whole[:4], 1e-12)


def test_no_warning(fused):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network("ms_resnet18").run(frames("ms_resnet18"), steps=2)
