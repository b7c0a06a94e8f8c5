"""NIR: what a file says gives our spikes, by a stepper of a few lines that reads the file alone; and what
others read from it, and write. In the peers' environment (`make test-peers`).
"""

import importlib.util
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from attsnn import attention, layers, models, neurons
from attsnn.interop.nir import read, write
from attsnn.layers import Rate, SpikingLayer
from attsnn.models.parts import EachStep

pytest.importorskip("nir", reason="extra nir: nir is not installed")
import nir

needs_jelly = pytest.mark.skipif(
    importlib.util.find_spec("spikingjelly") is None, reason="no SpikingJelly: make test-peers"
)
needs_snntorch = pytest.mark.skipif(
    importlib.util.find_spec("snntorch") is None, reason="no snnTorch: make test-peers"
)
T, N = 6, 3


# ---- the stepper
# ------------------------------------------------------------------------------------------


def stepped(path, x):
    """x [T, N, ...] through a file by forward Euler in NumPy: (what the output reads, membranes by name)."""
    graph = nir.read(path)
    dt, state, outs = float(graph.metadata["dt"]), {}, []
    for step in x:
        values, waiting = {}, dict(graph.nodes)
        while waiting:
            name = next(n for n in waiting if all(a in values for a, b in graph.edges if b == n))
            node, given = waiting.pop(name), [values[a] for a, b in graph.edges if b == name]
            values[name] = one(name, node, sum(given) if given else step, state, dt)
        outs.append(values["output"])
    return np.stack(outs), state


def one(name, node, x, state, dt):
    kind = type(node).__name__
    if kind in ("IF", "LIF"):
        v = state.get(name, np.zeros_like(x))
        leak = (node.v_leak - v + node.r * x) / node.tau if kind == "LIF" else node.r * x
        v = v + dt * leak
        spikes = v > node.v_threshold
        state[name] = np.where(spikes, node.v_reset, v)
        return spikes.astype(x.dtype)
    if kind in ("Conv2d", "Conv1d"):
        conv = nn.functional.conv2d if kind == "Conv2d" else nn.functional.conv1d
        how = (node.stride, node.padding, node.dilation)
        how = [v if isinstance(v, str) else tuple(map(int, np.atleast_1d(v))) for v in how]
        weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
        return conv(torch.from_numpy(x), weight, bias, *how, int(node.groups)).numpy()
    if kind == "Affine":
        return x @ node.weight.T + node.bias
    if kind in ("SumPool2d", "AvgPool2d"):
        size = [tuple(map(int, v)) for v in (node.kernel_size, node.stride, node.padding)]
        divisor = 1 if kind == "SumPool2d" else None
        return nn.functional.avg_pool2d(torch.from_numpy(x), *size, divisor_override=divisor).numpy()
    if kind == "Flatten":
        assert (node.start_dim, node.end_dim) == (0, -1)
        return x.reshape(len(x), -1)
    return {"Input": x, "Output": x}[kind] if kind != "Scale" else x * node.scale


# ---- networks
# ------------------------------------------------------------------------------------------


sequential, each = nn.Sequential, EachStep


def convolutional(neuron, **how):
    """A convolution with a norm and a pool, a grouped one, and a linear layer."""
    return sequential(
        SpikingLayer(nn.Conv2d(2, 4, 3, padding=1), neuron(), norm=nn.BatchNorm2d(4), pool=2, **how),
        SpikingLayer(nn.Conv2d(4, 6, 2, stride=2, groups=2, bias=False), neuron(), norm=nn.BatchNorm2d(6)),
        nn.Flatten(2),
        SpikingLayer(nn.Linear(24, 5), neuron(), norm=nn.BatchNorm1d(5)),
    )


PER_CHANNEL = partial(
    neurons.LIF,
    leak=torch.tensor([0.3, 0.5, 0.9, 0.0]),
    gain=torch.tensor([1.0, 0.5, 2.0, 1.5]),
    threshold=torch.tensor([0.4, 0.5, 0.6, 0.7]),
    v_reset=torch.tensor([0.0, 0.1, -0.2, 0.0]),
)
BIASED = partial(neurons.LIF, leak=0.5, bias=0.1, threshold=0.4, start="reset")
MAPS, IMAGE = (T, N, 2, 8, 8), (N, 3, 32, 32)
NETWORKS = {
    "leaky": (lambda: convolutional(lambda: neurons.leaky(1.7, 0.4)), MAPS),
    "integrate and fire": (lambda: convolutional(lambda: neurons.integrate_and_fire(0.5)), MAPS),
    "parametric": (lambda: convolutional(lambda: neurons.PLIF(2.3, threshold=0.3)), MAPS),
    "strict": (lambda: convolutional(lambda: neurons.ms_resnet(threshold=0.4)), MAPS),
    "reset to the threshold": (lambda: convolutional(lambda: neurons.ma_snn()), MAPS),
    "a bias": (lambda: convolutional(BIASED), MAPS),
    "by channel": (
        lambda: sequential(each(nn.Conv2d(2, 4, 3)), PER_CHANNEL(), each(nn.AvgPool2d(2)),
                           each(nn.Conv2d(4, 2, 2)), neurons.leaky(1.2, 0.05),
                           each(nn.AvgPool2d(2, stride=1, padding=1)), neurons.leaky(1.2, 0.2)),
        MAPS),
    "one dimension": (
        lambda: sequential(SpikingLayer(nn.Conv1d(3, 4, 3, padding="same"), PER_CHANNEL(),
                                        norm=nn.BatchNorm1d(4)),
                           nn.Flatten(2), nn.Linear(28, 4), neurons.leaky(1.3, 0.2), Rate()),
        (T, N, 3, 7)),
    "MA-SNN": (
        lambda: models.create("ma_snn_dvs_gesture", attention=None, steps=T, width=0.125, size=16),
        (T, N, 2, 16, 16)),
    "MS-ResNet": (
        lambda: models.create("ms_resnet18", steps=T, width=0.125, num_classes=4), IMAGE),
    "MS-ResNet with pooled shortcuts": (
        lambda: models.create("att_ms_resnet18", attention=None, steps=T, width=0.125, num_classes=4), IMAGE),
}  # fmt: skip


def random(net):
    """Weights, norms and statistics that are not those of a new network, in float64; it must fire."""
    draw = torch.Generator().manual_seed(0)
    for module in net.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.2, generator=draw)
            module.running_var.uniform_(0.05, 0.3, generator=draw)
            module.weight.data.uniform_(0.5, 1.5, generator=draw)
            module.bias.data.normal_(0.2, 0.2, generator=draw)
    return net.eval()


def applied(net, x):
    """(output of each step, of an image at T steps; the image at each step)."""
    if x.dim() == 4 and hasattr(net, "stages"):
        return net(x, every_step=True), x.expand(T, *x.shape)
    rate = isinstance(net, models.ma_snn.MASNN)
    return net._by_step(layers.plainly, x) if rate else net(x), x


@pytest.mark.parametrize("pool", ["sum", "avg"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_says_it(name, pool, tmp_path):
    """Spikes of the file alone are ours, in float64 for random weights, and those of what is read from it;
    membranes to 1e-12.
    """
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    net = random(make())
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    write(net, tmp_path / "net.nir", pool, example=x)
    with torch.no_grad():
        want, steps = applied(net, x)
        found, state = stepped(tmp_path / "net.nir", steps.numpy())
        mean = isinstance(net[-1], Rate) if isinstance(net, nn.Sequential) else False
        assert np.abs(want.numpy() - (found.mean(0) if mean else found)).max() < 1e-9 and want.any()
        back = read(tmp_path / "net.nir")
        got, states = back.run(steps)
    assert torch.equal(got, back(steps)) and np.abs(got.numpy() - found).max() < 1e-9
    assert next(back.parameters()).dtype == torch.float64 and len(states) == len(state)
    for ours in states:
        assert any(v.shape == ours.shape and np.abs(ours.numpy() - v).max() < 1e-12 for v in state.values())


def test_membranes_are_ours(tmp_path):
    """Those of the network that was written, to 1e-12, and of the file read in float32 the spikes."""
    torch.manual_seed(0)
    net, x = random(NETWORKS["leaky"][0]()), torch.rand(MAPS, dtype=torch.float64)
    write(net, tmp_path / "net.nir", example=x)
    v = x
    with torch.no_grad():
        state = []
        for part in net:
            if isinstance(part, SpikingLayer):
                found = part.run(v)
                v = found.out
                state.append(found.v)
            else:
                v = part(v)
        _, others = stepped(tmp_path / "net.nir", x.numpy())
        assert all(np.abs(a.numpy() - b).max() < 1e-12 for a, b in zip(state, others.values(), strict=True))
        write(net.float(), tmp_path / "net.nir", example=x)
        back = read(tmp_path / "net.nir")
        assert next(back.parameters()).dtype == torch.float32
        assert float((back(x.float()) == net(x.float())).double().mean()) > 0.99


def test_sums(tmp_path):
    """A value added to itself, and to one of another scale."""
    torch.manual_seed(0)
    for function in (lambda pool, x: x + x, lambda pool, x: pool(x) + pool(x)):
        middle = Doubled(function)
        net = nn.Sequential(each(nn.Conv2d(2, 3, 3)), middle, neurons.leaky(1.5, 0.2)).double()
        x = torch.rand(MAPS, dtype=torch.float64)
        write(net, tmp_path / "net.nir", example=x)
        with torch.no_grad():
            found, _ = stepped(tmp_path / "net.nir", x.numpy())
            assert np.array_equal(found, net(x)) and torch.equal(read(tmp_path / "net.nir")(x), net(x))


def test_values_at_the_threshold(tmp_path):
    """>= is > above the number before the threshold, in the network's type."""
    for dtype in (torch.float32, torch.float64):
        for strict in (False, True):
            neuron = neurons.LIF(threshold=0.3, strict=strict)
            net = nn.Sequential(nn.Linear(1, 1, bias=False), neuron).to(dtype)
            nn.init.ones_(net[0].weight)
            x = torch.tensor(0.3, dtype=dtype)
            x = torch.stack([x, torch.nextafter(x, x - 1), torch.nextafter(x, x + 1)]).view(1, 3, 1)
            write(net, tmp_path / "net.nir")
            want = [not strict, False, True]
            assert net(x).flatten().bool().tolist() == want
            assert read(tmp_path / "net.nir")(x).flatten().bool().tolist() == want


# ---- what is refused
# ------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.pool, self.function = each(nn.AvgPool2d(2)), function

    def forward(self, x):
        return self.function(self.pool, x)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.lif = nn.Conv2d(2, 4, 3), neurons.leaky()

    def forward(self, x):
        z = self.conv(x.flatten(0, 1))
        return self.lif(nn.functional.max_pool2d(z, 2).unflatten(0, x.shape[:2]))


class Alone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.lif = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), neurons.leaky()

    def forward(self, x):
        return self.lif(self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2]))


class Does(nn.Module):
    """A linear layer, and what a function makes of it."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(3, 4), function

    def forward(self, x):
        return self.function(self.linear(x))


def hooked():
    net = convolutional(neurons.leaky)
    net[3].current.register_forward_hook(lambda *_: None)
    return net


def linear(neuron):
    return nn.Sequential(nn.Linear(3, 4), neuron)


REFUSED = {
    r"1: its reset is soft": lambda: linear(neurons.leaky(v_reset=None)),
    r"1: it emits membrane": lambda: linear(neurons.leaky(emit="membrane")),
    r"1: its spikes are integers": lambda: linear(neurons.ilif()),
    r"1: its first step is without its bias": lambda: linear(neurons.LIF(leak=0.5, bias=0.1)),
    r"1: it starts at v_reset, and NIR at 0": lambda: linear(neurons.leaky(v_reset=-0.1)),
    r"1: it has a bias, and no leak": lambda: linear(neurons.LIF(bias=0.1, start="reset")),
    r"1: its leak is not between 0 and 1.*1.5": lambda: linear(neurons.LIF(leak=1.5)),
    r"0.attention \(Attention\) weighs its input": lambda: convolutional(
        neurons.leaky, attention=attention.attention("CSA", channels=4, channel_ratio=2)
    ),
    r"0 \(PFA\) weighs its input": lambda: nn.Sequential(
        attention.PFA(steps=T, channels=2, rank=2), nn.Conv2d(2, 2, 1)
    ),
    r"the network: NIR has no node for max_pool2d": Pooled,
    r"bn is a norm that `layers.fold` cannot": Alone,
    r"hooks or a forward of its own": hooked,
    r"0.current: padding_mode='circular'": lambda: nn.Sequential(
        SpikingLayer(nn.Conv2d(2, 2, 3, padding_mode="circular"), neurons.leaky())
    ),
    r"0.current: it reads tokens \(5, 3\)": lambda: nn.Sequential(
        SpikingLayer(nn.Linear(3, 4), neurons.leaky())
    ),
    r"the network: NIR has no node for __getitem__": lambda: Does(lambda x: x[-1]),
    r"NIR has no node for a mean but": lambda: Does(lambda x: x.mean()),
    r"such|NIR has no node for a mean but that": lambda: Does(lambda x: x.mean(2)),
    r"drops values in evaluation": lambda: Does(nn.functional.dropout),
    r"the network: \(4,\) is added to|NIR has no node for mul": lambda: Does(lambda x: x * x),
    r"the network must return one tensor": lambda: Does(lambda x: (x, x)),
    r"no convolution and no linear layer": lambda: nn.Sequential(neurons.leaky()),
    r"1: NIR has no node for tanh|NIR has no node for tanh": lambda: nn.Sequential(
        nn.Linear(3, 4), nn.Tanh()
    ),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence, tmp_path):
    """By the layer's name, and no file is left."""
    net = REFUSED[sentence]()
    example = None
    if any(isinstance(m, nn.Conv2d) for m in net.modules()):
        example = torch.rand(MAPS)
    if "tokens" in sentence:
        example = torch.rand(T, N, 5, 3)
    with pytest.raises(ValueError, match=sentence):
        write(net, tmp_path / "net.nir", example=example)
    assert not [*tmp_path.iterdir()]


def test_the_file_of_a_known_network(tmp_path):
    """Names, types, one value a neuron; the size that MA-SNN knows."""
    write(random(NETWORKS["MA-SNN"][0]()), tmp_path / "net.nir")
    graph = nir.read(tmp_path / "net.nir")
    assert graph.metadata["dt"] == 1e-4
    assert {"SumPool2d", "LIF"} <= {type(n).__name__ for n in graph.nodes.values()}
    assert graph.nodes["features_1_neuron"].tau.shape == (16, 8, 8)


def test_wrong_arguments(tmp_path):
    net = convolutional(neurons.leaky)
    with pytest.raises(ValueError, match="pool must be 'sum' or 'avg', got 'max'"):
        write(net, tmp_path / "a.nir", "max")
    with pytest.raises(ValueError, match="dt must be greater than 0"):
        write(net, tmp_path / "a.nir", dt=0)
    with pytest.raises(ValueError, match="example: give an input of the network"):
        write(net, tmp_path / "a.nir")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.nir")
    (tmp_path / "text.nir").write_text("no")
    with pytest.raises(ValueError, match=r"text.nir is not a NIR file"):
        read(tmp_path / "text.nir")


def written(tmp_path, nodes, edges):
    path = tmp_path / "other.nir"
    ends = {"input": nir.Input({"input": np.array([2])}), "output": nir.Output({"output": np.array([2])})}
    nir.write(str(path), nir.NIRGraph(nodes={**ends, **nodes}, edges=edges, type_check=False))
    return path


def test_what_is_not_read(tmp_path):
    two, chain = np.ones(2), [("input", "a"), ("a", "output")]
    lif = partial(nir.LIF, tau=two, r=two, v_leak=0 * two, v_threshold=two)
    for node, why in (
        (nir.LI(tau=two, r=two, v_leak=two), r"a \(LI\): it has no counterpart"),
        (nir.Delay(delay=two), r"a \(Delay\)"),
        (lif(v_leak=two, v_reset=two), "starts at 0, and has v_leak and v_reset other than 0"),
        (
            nir.LIF(*[np.ones((2, 2))] * 2, np.zeros((2, 2)), np.array([[1.0, 2.0], [1, 1]])),
            "threshold differs within",
        ),
    ):
        with pytest.raises(ValueError, match=why):
            read(written(tmp_path, {"a": node}, chain))
    recurrent = [*chain, ("a", "b"), ("b", "a")]
    with pytest.raises(ValueError, match="is recurrent: "):
        read(written(tmp_path, {"a": lif(), "b": nir.Linear(np.eye(2))}, recurrent))
    with pytest.raises(ValueError, match="b reads nothing"):
        read(written(tmp_path, {"a": lif(), "b": lif()}, [*chain, ("b", "output")]))
    path = written(tmp_path, {"a": lif(r=two * 1e4)}, chain)
    x = torch.rand(4, 1, 2)
    assert torch.equal(read(path)(x), read(path, dt=1e-4)(x)) and not torch.equal(
        read(path)(x), read(path, dt=5e-5)(x)
    )


def test_a_network_that_was_read_trains(tmp_path):
    write(random(NETWORKS["leaky"][0]()), tmp_path / "net.nir", example=torch.rand(MAPS))
    net = read(tmp_path / "net.nir").train()
    net(torch.rand(MAPS, dtype=torch.float64)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


# ---- others
# ------------------------------------------------------------------------------------------


@needs_jelly
def test_spikingjelly_reads_it(tmp_path):
    """Average pools, no groups, one number a layer, r of 1 or tau / dt; started with state None."""
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    torch.manual_seed(0)
    net = random(
        sequential(
            SpikingLayer(
                nn.Conv2d(2, 4, 3, padding=1), neurons.leaky(1.7, 0.4), norm=nn.BatchNorm2d(4), pool=2
            ),
            SpikingLayer(nn.Conv2d(4, 6, 2), neurons.ms_resnet(threshold=0.4), norm=nn.BatchNorm2d(6)),
            nn.Flatten(2),
            SpikingLayer(nn.Linear(54, 5), neurons.integrate_and_fire(0.5)),
        )
    )
    x = torch.rand(MAPS, dtype=torch.float64)
    write(net, tmp_path / "net.nir", "avg", example=x)
    theirs, state, outs = import_from_nir(tmp_path / "net.nir", dtype=torch.float64), None, []
    with torch.no_grad():
        for step in x:
            out, state = theirs(step, state)
            outs.append(out)
        assert torch.equal(torch.stack(outs), net(x)) and net(x).any()


@needs_jelly
def test_what_spikingjelly_writes(tmp_path):
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    torch.manual_seed(0)
    net = nn.Sequential(
        layer.Conv2d(2, 4, 3), neuron.LIFNode(1.8, v_threshold=0.2), layer.AvgPool2d(2), layer.Flatten(),
        layer.Linear(36, 5), neuron.IFNode(v_threshold=0.3), layer.Linear(5, 4),
        neuron.LIFNode(1.5, decay_input=False, v_threshold=0.2),
    ).eval().double()  # fmt: skip
    x = torch.rand(MAPS, dtype=torch.float64)
    graph = export_to_nir(net, x[0])
    nir.write(str(tmp_path / "theirs.nir"), graph)
    ours = read(tmp_path / "theirs.nir")
    functional.set_step_mode(net, "m")
    with torch.no_grad():
        want = net(x)
        # They fire at the threshold, too, and what they write above it: no membrane is that number here.
        assert torch.equal(ours(x), want) and want.any()


@needs_snntorch
def test_snntorch_reads_it(tmp_path):
    """A linear network with a reset to zero; its Flatten would take the samples, its IF leaks."""
    from snntorch.import_nir import import_from_nir

    torch.manual_seed(0)
    make = lambda: neurons.LIF(leak=0.8, gain=1.0, threshold=0.3, strict=True)  # noqa: E731
    net = nn.Sequential(nn.Linear(6, 8), make(), nn.Linear(8, 4), make()).eval()
    write(net, tmp_path / "net.nir")
    theirs = import_from_nir(nir.read(str(tmp_path / "net.nir")))
    x, state, outs = torch.rand(20, N, 6), None, []
    with torch.no_grad():
        for step in x:
            out, state = theirs(step, state)
            outs.append(out[0] if isinstance(out, tuple) else out)
        want = net(x)
    assert float((torch.stack(outs) == want).float().mean()) > 0.99 and want.any()
