"""NIR: what a file says gives our spikes, by a stepper of a few lines that reads the file alone; and what
others read from it, and write. In the peers' environment (`make test-peers`).
"""

import importlib.util
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from attsnn import attention, layers, models, neurons
from attsnn.interop.nir import read, write
from attsnn.interop.nir.reading import network_of
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


class Wired(nn.Module):
    """Modules, and what a function makes of them and x."""

    def __init__(self, wire, **modules):
        super().__init__()
        self.wire = wire
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.wire(self, x)


def spiking(threshold=0.3):
    return neurons.leaky(1.7, threshold)


def both(f, g):
    return lambda net, x: f(net, x) + g(net, x)


def named(**modules):
    net = nn.Sequential()
    for name, module in modules.items():
        net.add_module(name.replace("SLASH", "/"), module)
    return net


FEATURES = (T, N, 6)
SHAPES = {  # networks whose wiring or names a file must not mix up, and what they read
    "a shortcut beside a pool": (
        lambda: Wired(
            lambda net, x: net.a(y := net.c(x)) + net.p(y),
            c=each(nn.Conv2d(2, 4, 3, padding=1)),
            a=SpikingLayer(None, spiking(), pool=2),
            p=each(nn.AvgPool2d(2)),
        ),
        MAPS,
    ),
    "a second use, and a name like it": (
        lambda: Wired(
            lambda net, x: net.fc(a := net.lif(net.i(x))) + net.fc_1(a) + net.fc(net.lif(net.j(x))),
            **{name: nn.Linear(6, 6 if name in "ij" else 4) for name in ("i", "j", "fc", "fc_1")},
            lif=neurons.leaky(1.2, 0.1),
        ),
        FEATURES,
    ),
    "names of the ends": (
        lambda: named(input=nn.Linear(6, 8), n=spiking(), output=nn.Linear(8, 4)),
        FEATURES,
    ),
    "names of Python's": (
        lambda: named(
            values=nn.Linear(6, 8), training_=spiking(), aSLASHb=nn.Linear(8, 4), keys=spiking(0.1)
        ),
        FEATURES,
    ),
    "a head that is not used": (
        lambda: Wired(
            lambda net, x: (net.b(x), net.lif(net.a(x)))[1],
            a=nn.Linear(6, 4),
            b=nn.Linear(6, 4),
            lif=spiking(),
        ),
        FEATURES,
    ),
    "a head that is registered first": (
        lambda: Wired(
            lambda net, x: net.head(net.lif(net.c(x.flatten(0, 1)).unflatten(0, x.shape[:2])).mean((3, 4))),
            head=nn.Linear(4, 3),
            c=nn.Conv2d(2, 4, 3),
            lif=spiking(),
        ),
        MAPS,
    ),
    "dropout of maps": (
        lambda: nn.Sequential(each(nn.Conv2d(2, 4, 3)), each(nn.Dropout2d(0.5)), spiking()),
        MAPS,
    ),
    "sums of pixels": (
        lambda: nn.Sequential(
            each(nn.Conv2d(2, 4, 3)), each(nn.AvgPool2d(2, padding=1, divisor_override=3)), spiking()
        ),
        MAPS,
    ),
}


@pytest.mark.parametrize("pool", ["sum", "avg"])
@pytest.mark.parametrize("name", SHAPES)
def test_wirings_and_names(name, pool, tmp_path):
    """Of the file alone, of what is read from it, and of that when it is written again."""
    torch.manual_seed(0)
    make, shape = SHAPES[name]
    net, x = make().double().eval(), 2 * torch.randn(shape, dtype=torch.float64)
    path = tmp_path / "net.nir"
    write(net, path, pool, example=x)
    with torch.no_grad():
        want = net(x)
        assert np.abs(stepped(path, x.numpy())[0] - want.numpy()).max() < 1e-12 and want.any()
        for _ in range(2):
            back = read(path)
            assert (back(x) - want).abs().max() < 1e-12
            write(back, path, pool, example=x)


def test_types_and_steps_of_other_sizes(tmp_path):
    """bfloat16, and a dt by which 1 / dt dt is not 1."""
    net = nn.Sequential(nn.Linear(6, 4), neurons.PLIF(2.0)).bfloat16()
    write(net, tmp_path / "net.nir")
    assert torch.equal(read(tmp_path / "net.nir").nodes["0"].weight, net[0].weight.float())
    net = nn.Sequential(nn.Linear(1, 1, bias=False), neurons.integrate_and_fire()).double()
    nn.init.constant_(net[0].weight, 0.5)
    x = torch.ones(4, 1, 1, dtype=torch.float64)
    for dt in (1e-5, 1e-4, 3e-4, 7.0):
        write(net, tmp_path / "net.nir", dt=dt)
        assert read(tmp_path / "net.nir")(x).flatten().tolist() == [0, 1, 0, 1]


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


@torch.jit.script
def doubled_(x: torch.Tensor) -> None:
    x.mul_(2)


def overwriting(net, x):
    doubled_(y := net.fc(x))
    return net.lif(y)


def wired(f):
    return lambda: Wired(f, fc=nn.Linear(3, 4), lif=spiking(0.1))


def maps(f):
    return lambda: Wired(f, c=nn.Conv2d(2, 4, 3), lif=spiking())


REFUSED = {
    r"lif: it is called with a state, and NIR's neurons start at 0": wired(
        lambda net, x: net.lif(net.fc(x), v0=torch.full((x.shape[1], 4), 0.2))
    ),
    r"lif: it returns its state, too": wired(lambda net, x: net.lif(net.fc(x), final_state=True)[0]),
    r"the network: NIR has no node for __getitem__": wired(
        lambda net, x: net.lif(net.fc(x)[..., [1, 0, 3, 2]])
    ),
    r"the network: NIR has no node for __getitem__|a slice": wired(lambda net, x: net.lif(net.fc(x)[:4])),
    r"add_ overwrites a tensor that has another view": wired(
        lambda net, x: net.lif((y := net.fc(x)).view(y.shape).add_(net.fc(x)))
    ),
    r"the network: NIR has no node for to": wired(
        lambda net, x: net.lif(net.fc(x).to(torch.int32).to(x.dtype))
    ),
    r"lif: it reads 1 dimension before those of a sample": maps(
        lambda net, x: net.lif(net.c(x.flatten(0, 1)))
    ),
    r"becomes \(5, 3, 4, 6, 6\), which flattens neither": maps(
        lambda net, x: net.lif(net.c(x.flatten(0, 1)).unflatten(0, (x.shape[1], x.shape[0])))
    ),
    r"0.layer: its kernel \(3, 1\) is not square": lambda: nn.Sequential(each(nn.Conv2d(2, 4, (3, 1)))),
    r"would not say what the network computes: on random input \d+ of 60 values differ": wired(overwriting),
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
    r"the network: NIR has no node for __getitem__|a step": lambda: Does(lambda x: x[-1]),
    r"NIR has no node for a mean but": lambda: Does(lambda x: x.mean()),
    r"NIR has no node for a mean but|a mean of values": lambda: Does(lambda x: x.mean(2)),
    r"drops values in evaluation": lambda: Does(nn.functional.dropout),
    r"the network: NIR has no node for mul": lambda: Does(lambda x: x * x),
    r"the network must return one tensor": lambda: Does(lambda x: (x, x)),
    r"no convolution and no linear layer": lambda: nn.Sequential(neurons.leaky()),
    r"1: NIR has no node for tanh": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_refusals(sentence, tmp_path):
    """By the layer's name, and no file is left. (What stands behind a | tells one case from another.)"""
    net = REFUSED[sentence]()
    example = None
    if any(isinstance(m, nn.Conv2d) for m in net.modules()):
        example = torch.rand(MAPS)
    if "tokens" in sentence:
        example = torch.rand(T, N, 5, 3)
    with pytest.raises(ValueError, match=sentence.split("|")[0]):
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
    with pytest.raises(ValueError, match="dt must be a number of seconds greater than 0"):
        write(net, tmp_path / "a.nir", dt=0)
    with pytest.raises(ValueError, match="example: give an input of the network"):
        write(net, tmp_path / "a.nir")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.nir")
    (tmp_path / "text.nir").write_text("no")
    with pytest.raises(ValueError, match=r"nir cannot read .*text.nir"):
        read(tmp_path / "text.nir")


def written(tmp_path, nodes, edges):
    path = tmp_path / "other.nir"
    ends = {"input": nir.Input({"input": np.array([2])}), "output": nir.Output({"output": np.array([2])})}
    nir.write(str(path), nir.NIRGraph(nodes={**ends, **nodes}, edges=edges, type_check=False))
    return path


def parts(node):
    ends = {"input": nir.Input({"input": np.array([2])}), "output": nir.Output({"output": np.array([2])})}
    return SimpleNamespace(nodes={**ends, "a": node}, inputs={"input": 0}, outputs={"output": 0})


def test_what_is_not_read(tmp_path):
    two, chain = np.ones(2), [("input", "a"), ("a", "output")]
    lif = partial(nir.LIF, tau=two, r=two, v_leak=0 * two, v_threshold=two)
    for node, why in (
        (nir.LI(tau=two, r=two, v_leak=two), r"a \(LI\): it has no counterpart"),
        (nir.Delay(delay=two), r"a \(Delay\)"),
        (lif(v_leak=two, v_reset=two), "starts at 0, and has v_leak and v_reset other than 0"),
        (nir.LIF(two, two, 0 * two, np.array([np.nan, 1])), r"a \(LIF\): its threshold is not finite"),
        (nir.Affine(np.eye(2), np.ones(3)), r"a \(Affine\): its bias has the shape \[3\], not \[2\]"),
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
    with pytest.raises(ValueError, match="two edges from input to a"):
        network_of("the file", SimpleNamespace(**vars(graph := parts(lif())), edges=[*chain, chain[0]]), 1e-4)
    with pytest.raises(ValueError, match="an edge from a to z, of which one is no node"):
        network_of("the file", SimpleNamespace(**vars(graph), edges=[*chain, ("a", "z")]), 1e-4)
    with pytest.raises(ValueError, match="dt must be a number of seconds greater than 0, got inf"):
        read(path := written(tmp_path, {"a": nir.Scale(np.array([1, 2]))}, chain), dt=float("inf"))
    assert read(path)(torch.ones(1, 1, 2)).tolist() == [[[1, 2]]]  # of integers
    whole = np.array([1, 2])
    path = written(tmp_path, {"a": lif(v_threshold=np.array([1, 1]), r=whole * 10000)}, chain)
    assert read(path)(torch.ones(1, 1, 2)).tolist() == [[[0, 1]]]
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
