"""Norms and neurons of SpikingJelly's networks as one op (`accelerate(fuse=True)`), and such networks under
PyTorch's tools. In the peers' environments (`make test-peers`).
"""

import copy
import importlib
import importlib.util
import pickle

import pytest
import torch
from torch import nn

from attsnn import accelerate, interop
from attsnn.interop import fusing

if importlib.util.find_spec("spikingjelly") is None:
    pytest.skip("no SpikingJelly: make test-peers", allow_module_level=True)

from spikingjelly.activation_based import functional, layer, neuron, surrogate

try:
    from spikingjelly.clock_driven import layer as clock_layer
    from spikingjelly.clock_driven import neuron as clock
except ImportError:
    clock = None

T, N = 3, 4


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def lif(**how):
    return neuron.LIFNode(tau=1.6, v_threshold=0.5, step_mode="m", detach_reset=True, **how)


class Tokens(nn.Module):
    """As a transformer's blocks are written: [T, N, L, C], the norm on [T N, C, L]."""

    def __init__(self, node):
        super().__init__()
        self.linear, self.bn, self.lif = nn.Linear(5, 6), nn.BatchNorm1d(6), node
        self.rank = 0

    def forward(self, x):
        steps, n, length, _ = x.shape
        y = self.linear(x.flatten(0, 1)).transpose(-1, -2)
        y = self.bn(y).transpose(-1, -2).reshape(steps, n, length, 6).contiguous()
        return self.lif(y)


class Folded(nn.Module):
    """As for 0.0.0.0.12: time folded by hand; the features of a second layer."""

    def __init__(self, node, second):
        super().__init__()
        self.conv, self.bn, self.lif = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), node
        self.fc, self.fc_bn, self.fc_lif = nn.Linear(4 * 9, 7), nn.BatchNorm1d(7), second

    def forward(self, x):
        steps, n = x.shape[:2]
        y = self.bn(self.conv(x.flatten(0, 1)))
        y = self.lif(y.view(steps, n, *y.shape[1:])).flatten(2)
        y = self.fc_bn(self.fc(y.flatten(0, 1)))
        return self.fc_lif(y.unflatten(0, (steps, n)))


def by_step(*parts):
    net = nn.Sequential(*parts)
    functional.set_step_mode(net, "m")
    return net


NETWORKS = {
    "layers of SpikingJelly": lambda: (
        by_step(layer.Conv2d(2, 4, 3), layer.BatchNorm2d(4), lif(),
                layer.Conv2d(4, 5, 1), layer.BatchNorm2d(5, affine=False), neuron.IFNode(v_reset=None)),
        (T, N, 2, 5, 5), 2),
    "of one dimension": lambda: (
        by_step(layer.Conv1d(3, 6, 1), layer.BatchNorm1d(6, momentum=None), lif(v_reset=-0.1)),
        (T, N, 3, 7), 1),
    "a container": lambda: (
        nn.Sequential(layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
                      neuron.ParametricLIFNode(step_mode="m", v_threshold=0.4)),
        (T, N, 2, 5, 5), 1),
    "tokens": lambda: (Tokens(lif()), (T, N, 3, 5), 1),
    "time folded": lambda: (Folded(lif(), lif(v_reset=None)), (T, N, 2, 3, 3), 2),
}  # fmt: skip
if clock is not None:
    NETWORKS["clock_driven"] = lambda: (
        Folded(clock.MultiStepLIFNode(tau=1.6, v_threshold=0.5), clock.MultiStepIFNode(v_threshold=0.5)),
        (T, N, 2, 3, 3),
        2,
    )
    NETWORKS["a container of clock_driven"] = lambda: (
        nn.Sequential(
            clock_layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
            clock.MultiStepParametricLIFNode(v_threshold=0.4),
        ),
        (T, N, 2, 5, 5),
        1,
    )


def results(net, x, calls=2):
    """(spikes, gradients and buffers) of calls without a reset between."""
    net.zero_grad(set_to_none=True)
    inputs = [(k + 1) * x.clone().requires_grad_() for k in range(calls)]
    for each in inputs:
        each.retain_grad()
    outs = [net(each) for each in inputs]
    weights = torch.Generator().manual_seed(2)
    total = sum((o * torch.randn(o.shape, generator=weights, dtype=o.dtype)).sum() for o in outs)
    if total.requires_grad:  # 0.0.0.0.14 has no gradients in evaluation mode
        total.backward()
    values = [each.grad for each in inputs] + [p.grad for p in net.parameters()]
    values += [b.clone().double() for b in net.buffers()]
    return [o.detach() for o in outs], values


def must_equal(theirs, ours):
    assert all(map(torch.equal, theirs[0], ours[0])) and any(o.any() for o in theirs[0])
    for a, b in zip(theirs[1], ours[1], strict=True):
        assert a is None or torch.allclose(a, b, rtol=1e-9, atol=1e-11)


# ---- the spellings
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_chains(name, training):
    """Every spelling, over stateful calls: spikes, gradients, statistics; then with the classes back."""
    torch.manual_seed(0)
    net, shape, chains = NETWORKS[name]()
    net, x = net.double(), draw(*shape)
    for buffer in (b for name, b in net.named_buffers() if name.endswith("running_mean")):
        buffer.copy_(draw(*buffer.shape) - 0.5)  # statistics that are not those of a new norm
    net.train(training)
    twin, keys = copy.deepcopy(net), [*net.state_dict()]
    report = accelerate(net, x, fuse=True)
    assert len(report.chains) == chains and f"{chains} are one op" in str(report), report
    assert all(len(chain) == 3 for chain in report.chains) and [*net.state_dict()] == keys
    must_equal(results(twin, x), results(net, x))
    for other in (twin, net):
        functional.reset_net(other)
    assert report.restore() is net and not any(
        isinstance(m, interop.exchange.Exchanged) for m in net.modules()
    )
    must_equal(results(twin, x), results(net, x))


def test_one_op_runs(monkeypatch):
    """The norm hands on, and the seam has it."""
    seen, real = [], fusing.ops.seam

    def seam(z, **how):
        seen.append((tuple(z.shape), how["norm"].mean is None))
        return real(z, **how)

    net, shape, _ = NETWORKS["tokens"]()
    accelerate(net, draw(*shape, dtype=torch.float32), fuse=True)
    monkeypatch.setattr(fusing.ops, "seam", seam)
    handed = net.bn(x := torch.rand(2, 6, 3))
    assert handed is x
    net.bn._chain.handed = False
    net(draw(*shape, dtype=torch.float32)), net.eval()(draw(*shape, dtype=torch.float32))
    assert seen == [((T, N, 6, 3), True), ((T, N, 6, 3), False)]


# ---- what is not fused
# ------------------------------------------------------------------------------------------


class Own(nn.Module):
    """Convolution, norm and neuron, wired by a function."""

    def __init__(self, wire, norm=None, node=None):
        super().__init__()
        self.conv, self.bn = (
            layer.Conv2d(2, 4, 3, padding=1, step_mode="m"),
            norm or layer.BatchNorm2d(4, step_mode="m"),
        )
        self.lif, self.other, self.wire, self.kept = node or lif(), lif(), wire, []

    def forward(self, x):
        return self.wire(self, x)


def plain(self, x):
    return self.lif(self.bn(self.conv(x)))


def returned(self, x):
    y = self.bn(self.conv(x))
    return self.lif(y), y


def keeping(self, x):
    y = self.bn(self.conv(x))
    self.kept[:] = [y]
    return self.lif(y)


def shortcut(self, x):
    y = self.bn(self.conv(x))
    return self.lif(y) + y.relu()


def shared(self, x):
    y = self.bn(self.conv(x))
    return self.lif(y) + self.other(y)


def changed(self, x):
    return self.lif(self.bn(self.conv(x)) * 2)


def swapped(self, x):
    return self.lif(self.bn(self.conv(x)).transpose(2, 3))


def overwriting(self, x):
    z = self.conv(x)
    y = self.bn(z)
    z.view(-1).mul_(2)
    return self.lif(y)


def overwriting_by(what):
    def wire(self, x):
        z = self.conv(x)
        y = self.bn(z)
        nn.functional.relu(z, inplace=True) if what == "relu" else torch.mul(z, 2, out=z)
        return self.lif(y)

    return wire


def in_evaluation(self, x):
    y = self.bn(self.conv(x))
    return self.lif(y) if self.training else (self.lif(y), y)


def with_gradients(self, x):
    """A loss that is kept in training alone."""
    y = self.bn(self.conv(x))
    if torch.is_grad_enabled():
        self.loss = y.abs().mean()
    return self.lif(y)


@torch.jit.script
def penalty(y: torch.Tensor):
    return y.square().mean()


def scripted(self, x):
    y = self.bn(self.conv(x))
    self.loss = penalty(y)
    return self.lif(y)


def under_vmap(self, x):
    y = self.bn(self.conv(x))
    self.loss = torch.func.vmap(lambda step: step.sum())(y)
    return self.lif(y)


def twice(self, x):
    return self.lif(self.bn(self.conv(self.lif(self.bn(self.conv(x)))[:, :, :2])))


def by_hand(self, x):
    return torch.stack([self.lif(self.bn(self.conv(step))) for step in x])


@pytest.mark.parametrize(
    "wire, why",
    [
        (returned, "the network returns what bn does"),
        (keeping, "something keeps what bn returns"),
        (shortcut, "lif and relu read what bn returns or relu reads what bn returns"),
        (shared, "lif and other read what bn returns"),
        (changed, "mul reads what bn returns"),
        (overwriting, "something overwrites what bn reads"),
        (overwriting_by("relu"), "something overwrites what bn reads"),
        (overwriting_by("out"), "something overwrites what bn reads"),
        (in_evaluation, "in evaluation, the network returns what bn does"),
        (with_gradients, "abs reads what bn returns"),
        (scripted, "not fused: aten."),
        (under_vmap, "not fused: aten."),
        (swapped, "in an order of its own"),
        (twice, "lif runs 2 times"),
        (by_hand, "lif runs 3 times"),
    ],
)
def test_what_reads_a_norm_beside(wire, why):
    net, x = Own(wire).double(), draw(T, N, 2, 6, 6)
    functional.set_step_mode(net, "s" if wire is by_hand else "m")
    net.requires_grad_("overwrites" not in why)  # for gradients nobody may
    twin = copy.deepcopy(net)
    report = accelerate(net, x, fuse=True)
    line = next(line for line in report.lines if line.name == "lif")
    assert not line.chain and any(part in line.why for part in why.split(" or ")), line.why
    outs = [each(x) for each in (twin, net)]
    assert all(map(torch.equal, *(o if isinstance(o, tuple) else (o,) for o in outs)))


def test_what_members_have():
    """Hooks, forwards of one's own, parametrisations, classes that are in no table."""

    def scaled(module):
        nn.utils.parametrize.register_parametrization(module, "weight", nn.Softplus())
        return module

    class Mine(nn.BatchNorm2d):
        pass

    def why(net):
        report = accelerate(net, draw(T, N, 2, 6, 6, dtype=torch.float32), fuse=True)
        assert not report.chains
        return next(line.why for line in report.lines if line.name == "lif")

    net = Own(plain)
    net.bn.register_forward_hook(lambda *_: None)
    assert "bn has hooks" in why(net)
    net = Own(plain)
    net.lif.register_forward_pre_hook(lambda *_: None)
    assert "it has hooks" in why(net)
    net = Own(plain)
    net.bn.forward = lambda x: x + 1
    assert "bn has hooks or a forward of its own" in why(net)
    assert "no batch norm's output" in why(Own(plain, scaled(layer.BatchNorm2d(4, step_mode="m"))))
    folded = lambda self, x: self.lif(self.bn(self.conv(x).flatten(0, 1)).unflatten(0, (T, N)))  # noqa: E731
    assert "no batch norm's output" in why(Own(folded, Mine(4)))
    assert len(accelerate(Own(folded, nn.BatchNorm2d(4)), torch.rand(T, N, 2, 6, 6), fuse=True).chains) == 1


def test_what_stands_between():
    """What only training does is seen in evaluation, too; hooks of containers part norm and neuron."""
    x = draw(T, N, 2, 6, 6, dtype=torch.float32)
    dropping = lambda self, x: self.lif(self.other(self.bn(self.conv(x))))  # noqa: E731
    net = Own(dropping)
    net.other = layer.Dropout(0.5, step_mode="m")
    report = accelerate(net.eval(), x, fuse=True)
    assert not report.chains and "not fused: in training, " in report.lines[0].why
    net = nn.Sequential(layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), nn.Sequential(lif()))
    twin, seen = copy.deepcopy(net), []
    for each in net:
        hook = each.register_forward_hook(lambda m, args, out: 0.5 * out)
        line = accelerate(copy.deepcopy(net), x, fuse=True).lines[0]
        hook.remove()
        if each is net[0]:
            assert line.why == "not fused: 0, between 0.1 and it, has hooks or a forward of its own"
    hook = net[1].register_forward_pre_hook(lambda m, args: None)
    assert "1, between 0.1 and it, has hooks" in accelerate(net, x, fuse=True, dry_run=True).lines[0].why
    hook.remove()
    assert len(accelerate(net, x, fuse=True).chains) == 1
    for each in (twin, net):
        each[0].register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    must_equal(results(twin.double(), x.double(), 1), results(net.double(), x.double(), 1))
    assert torch.equal(*seen)  # both normalised


def test_layouts():
    """What the original returns is contiguous, or not: users take views of it. Channels-last maps stay so."""

    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.bn, self.lif = nn.Linear(5, 6), nn.BatchNorm1d(6), lif()

        def forward(self, x):
            t, n, length, _ = x.shape
            y = self.bn(self.linear(x.flatten(0, 1)).transpose(1, 2)).view(t, n, 6, length)
            return self.lif(y).view(t, n, 6 * length)

    torch.manual_seed(0)
    net, x = Viewing().double(), draw(T, N, 3, 5)
    twin = copy.deepcopy(net)
    assert accelerate(net, x, fuse=True).covered == 1
    must_equal(results(twin, x), results(net, x))

    class Between(Viewing):
        def forward(self, x):
            t, n, length, _ = x.shape
            y = self.bn(self.linear(x.flatten(0, 1)).transpose(1, 2))
            return self.lif(y.view(t, n, 6 * length).view(t, n, 6, length))

    with pytest.raises(interop.MismatchError, match="does not run on the example .*use reshape for view"):
        accelerate(Between().double(), x, fuse=True)
    node, y = lif(), draw(T, N, 4, 5, 6)
    accelerate(node, y)
    assert node(y.transpose(3, 4)).is_contiguous()
    functional.reset_net(node)
    last = y.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (T, N))
    assert node(last).stride() == last.stride()


def test_without_an_example():
    net = Own(plain)
    report = accelerate(net, fuse=True, dry_run=True)
    assert "What is fused is seen on an example" in str(report) and not report.chains
    report = accelerate(net, torch.rand(T, N, 2, 6, 6), fuse=True, dry_run=True)
    assert report.chains == [("conv", "bn", "lif")] and "1 would be one op" in str(report)
    assert type(net.bn) is layer.BatchNorm2d and type(net.lif) is neuron.LIFNode


# ---- what happens afterwards
# ------------------------------------------------------------------------------------------


def fused(wire=plain, **how):
    """(the original, itself fused, an input), in float64."""
    torch.manual_seed(0)
    net, x = Own(wire, **how).double(), draw(T, N, 2, 6, 6)
    twin = copy.deepcopy(net)
    assert accelerate(net, x, fuse=True).chains
    return twin, net, x


def test_changes_part_the_two():
    """What one op could not honour is computed by both, from then on or for as long as it lasts."""
    twin, net, x = fused()

    def compare():
        for each in (twin, net):
            functional.reset_net(each)
        must_equal(results(twin, x, 1), results(net, x, 1))

    seen = []
    for module in (net.bn, net.lif):
        handle = module.register_forward_hook(lambda m, args, out: seen.append(args[0].clone()))
        compare()
        handle.remove()
    with torch.no_grad():
        want = net.bn.eval()(net.conv(x))
    net.bn.train(), net.bn._chain.take(net.lif)
    assert len(seen) == 2 and seen[1].shape == want.shape and abs(seen[1].mean().item()) < 0.1  # normalised
    for each in (twin, net):
        each.lif.v_threshold = 0.2
        each.lif.store_v_seq = True
    compare()
    assert torch.allclose(net.lif.v_seq, twin.lif.v_seq)
    for each in (twin, net):
        each.lif.store_v_seq = False
    compare()
    for mode in (False, True):
        for each in (twin, net):
            each.train(mode)
        compare()
    for each in (twin, net):
        functional.set_step_mode(each, "s")
    functional.reset_net(twin), functional.reset_net(net)
    for step in x:
        assert torch.equal(twin(step), net(step))
    assert torch.allclose(twin.bn.running_var, net.bn.running_var, rtol=1e-12)


def test_copies_of_a_chain():
    twin, net, x = fused()
    want = results(twin, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301
        assert type(other.bn) is type(net.bn) and other.bn._chain is other.lif._chain
    other = copy.deepcopy(net)
    assert other.bn._chain.norm is other.bn and other.bn._chain.neuron is other.lif
    must_equal(want, results(other, x))
    pair = pickle.loads(pickle.dumps(nn.ModuleList([net.conv, net.bn, net.lif])))  # noqa: S301
    alone = copy.deepcopy(net.lif)  # without its norm
    functional.reset_net(alone)
    y = draw(T, N, 4, 6, 6)
    functional.reset_net(twin)
    assert torch.equal(alone(y), twin.lif(y))
    z = draw(T, N, 4, 6, 6)
    norm = copy.deepcopy(net.bn)  # without its neuron
    assert torch.equal(norm(z), copy.deepcopy(twin.bn)(z))
    functional.reset_net(pair), functional.reset_net(net)
    net.eval(), pair.eval()
    assert torch.equal(pair[2](pair[1](pair[0](x))), net(x))


def test_a_neuron_that_is_gone_is_missed():
    """The next call says so."""
    _, net, x = fused()
    net.lif = nn.ReLU()
    net(x)
    with pytest.raises(RuntimeError, match=r"lif has not read what bn handed on .* restore"):
        net(x)
    twin, net, x = fused()
    if hasattr(neuron.LIFNode, "functional_forward"):
        from spikingjelly.activation_based import base

        net = nn.Sequential(net.conv, net.bn, net.lif)
        with pytest.raises(RuntimeError, match="functional_forward cannot read what bn hands on"):
            base.to_functional_forward(net)((x,), (0.0,))
    twin, net, x = fused()
    net.bn = twin.bn  # another norm in its place, as convert_sync_batchnorm puts one: it computes by itself
    with torch.no_grad():
        assert torch.equal(net.eval()(x), twin.eval()(x))


def test_states_detach():
    """Truncated backpropagation through time, with channels last and first."""
    for name in ("tokens", "time folded"):
        net, shape, _ = NETWORKS[name]()
        twin, x = copy.deepcopy(net).double(), draw(*shape)
        accelerate(net.double(), x, fuse=True)
        for _ in range(2):
            outs = [each(x) for each in (twin, net)]
            for each in (twin, net):
                functional.detach_net(each)
            assert torch.equal(*outs)
        assert not net.lif.v.requires_grad and torch.allclose(net.lif.v, twin.lif.v)


def test_norms_in_odd_states():
    """Statistics that are no longer tracked, and no samples at all."""
    twin, net, x = fused()
    for each in (twin, net):
        each.bn.track_running_stats = False
    must_equal(results(twin, x, 1), results(net, x, 1))
    assert net.bn.num_batches_tracked == twin.bn.num_batches_tracked == 0
    for each in (twin, net):
        each.bn.track_running_stats = True
        functional.reset_net(each)
    assert net(x[:, :0]).shape == twin(x[:, :0]).shape


def test_restored_under_a_parametrisation():
    class Doubled(nn.Module):
        def forward(self, w):
            return 2 * w

        def right_inverse(self, w):
            return w / 2

    net, x = Own(plain).double(), draw(T, N, 2, 6, 6)
    twin, report = copy.deepcopy(net), accelerate(net, x, fuse=True)
    for each in (twin, net):
        nn.utils.parametrize.register_parametrization(each.bn, "weight", Doubled())
    must_equal(results(twin, x, 1), results(net, x, 1))
    report.restore(), functional.reset_net(net), functional.reset_net(twin)
    must_equal(results(twin, x, 1), results(net, x, 1))
    nn.utils.parametrize.remove_parametrizations(net.bn, "weight")
    assert type(net.bn) is layer.BatchNorm2d


def test_a_wrong_chain_is_found(monkeypatch):
    real = fusing.norm_of
    monkeypatch.setattr(fusing, "norm_of", lambda norm: real(norm)._replace(eps=0.1))
    net, x = Own(plain), torch.rand(T, N, 2, 6, 6)
    with pytest.raises(interop.MismatchError, match="^lif: "):
        accelerate(net, x, fuse=True)
    assert type(net.bn) is layer.BatchNorm2d and type(net.lif) is neuron.LIFNode
    monkeypatch.setattr(fusing, "norm_of", real)
    monkeypatch.setattr(fusing, "update", lambda *_: None)
    with pytest.raises(interop.MismatchError, match="bn: a running statistic"):
        accelerate(net, x, fuse=True)


# ---- under PyTorch's tools
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, fuse, backend",
    [
        ("layers of SpikingJelly", False, "aot_eager"),
        ("layers of SpikingJelly", True, "aot_eager"),
        ("tokens", True, "inductor"),
    ],
)
def test_compiled(name, fuse, backend):
    """Equal to the network that is not compiled, over stateful calls, in training and not."""
    torch.manual_seed(0)
    net, shape, _ = NETWORKS[name]()
    net, x = net.double(), draw(*shape)
    accelerate(net, x, fuse=fuse)
    twin = copy.deepcopy(net)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    must_equal(results(twin, x), results(compiled, x))
    for each in (twin, net):
        each.eval(), functional.reset_net(each)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(twin(x), compiled(x))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "again, reentrant",
    [
        ("convolution, norm", False),
        *((part, True) for part in ("convolution, norm", "norm, neuron", "neuron")),
    ],
)
def test_checkpointed(again, reentrant):
    """What is called once more in the backward pass gives the original's gradients, step by step; a norm that
    is called there without its neuron does not count the batch twice, as the original does. (Checkpoints that
    are not reentrant refuse a neuron with a state, for it starts from another one when it is called again.)
    """

    def wire(self, x):
        def part(*modules):
            def run(y):
                for module in modules:
                    y = module(y)
                return y

            names = {self.conv: "convolution", self.bn: "norm", self.lif: "neuron"}
            if ", ".join(names[module] for module in modules) == again:
                return lambda y: torch.utils.checkpoint.checkpoint(run, y, use_reentrant=reentrant)
            return run

        if again == "convolution, norm":
            return part(self.lif)(part(self.conv, self.bn)(x))
        if again == "norm, neuron":
            return part(self.bn, self.lif)(part(self.conv)(x))
        return part(self.lif)(self.bn(self.conv(x)))

    twin, net, x = fused()
    twin.wire = net.wire = wire
    for count in range(1, 4):
        theirs, ours = results(twin, x, 1), results(net, x, 1)
        if again == "convolution, norm":
            assert net.bn.num_batches_tracked == count and twin.bn.num_batches_tracked == 2 * count
            theirs, ours = ((outs, values[: -len([*net.buffers()])]) for outs, values in (theirs, ours))
        must_equal(theirs, ours)
        functional.reset_net(twin), functional.reset_net(net)


@pytest.mark.parametrize("fuse", [False, True])
def test_autocast(fuse):
    """bfloat16 goes in and comes out; the membrane is float32, so that it is the rounding of the input that
    differs from the network that is given what autocast makes of it in float32.
    """
    torch.manual_seed(0)
    net, x = Own(plain), draw(T, N, 2, 12, 12, dtype=torch.float32)
    twin = copy.deepcopy(net)
    accelerate(net, x, fuse=fuse)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x)
        z = twin.conv(x)
    assert out.dtype == z.dtype == torch.bfloat16
    want = twin.lif(twin.bn(z.float()))  # theirs in float32, of the same convolution
    if fuse:
        assert torch.equal(out.float(), want)
    else:
        assert float((out.float() == want).float().mean()) > 0.98  # the norm's output is rounded
    out.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


def _in_a_process(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    torch.manual_seed(0)
    net, shape, _ = NETWORKS["layers of SpikingJelly"]()
    net, x = net.double(), draw(2, *shape)[rank]
    twin = copy.deepcopy(net)
    accelerate(net, x, fuse=True)
    both = [nn.parallel.DistributedDataParallel(each) for each in (twin, net)]
    must_equal(results(both[0], x), results(both[1], x))
    gathered = [torch.empty_like(net[0].weight.grad) for _ in range(2)]
    torch.distributed.all_gather(gathered, net[0].weight.grad)
    assert torch.equal(*gathered) and gathered[0].any()
    torch.distributed.destroy_process_group()


def test_in_two_processes(tmp_path):
    """Under DistributedDataParallel, of each process its half of the batch."""
    torch.multiprocessing.spawn(_in_a_process, (str(tmp_path),), nprocs=2)


def test_profiled():
    """The counts of a fused network are those of its spikes."""
    from attsnn.profile import rates

    _, net, x = fused()
    with torch.no_grad(), rates(net) as fired:
        out = net(x)
    assert set(fired) == {"lif"} and float(fired["lif"]) == pytest.approx(float(out.mean()))


def test_surrogates_of_a_chain():
    """The kind of the neuron is the seam's."""
    for function in (surrogate.ATan(), surrogate.Sigmoid(), surrogate.PiecewiseQuadratic()):
        twin, net, x = fused(node=lif(surrogate_function=function))
        must_equal(results(twin, x), results(net, x))


# ---- state dicts
# ------------------------------------------------------------------------------------------


@pytest.mark.skipif(clock is None, reason="no SpikingJelly with clock_driven")
def test_a_state_dict_of_clock_driven():
    """A network of containers, whose tensors give the same spikes in attsnn's layers."""
    from attsnn import neurons
    from attsnn.layers import SpikingLayer
    from attsnn.models.convert import from_spikingjelly

    torch.manual_seed(0)
    theirs = nn.Sequential(
        clock_layer.SeqToANNContainer(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)),
        clock.MultiStepParametricLIFNode(init_tau=1.5, v_threshold=0.3),
        nn.Flatten(2),
        clock_layer.SeqToANNContainer(nn.Linear(36, 5)),
        clock.MultiStepLIFNode(tau=2.0, v_threshold=0.1),
    )
    ours = nn.Sequential(
        SpikingLayer(nn.Conv2d(2, 4, 3, bias=False), neurons.PLIF(threshold=0.3), norm=nn.BatchNorm2d(4)),
        nn.Flatten(2),
        SpikingLayer(nn.Linear(36, 5), neurons.leaky(2.0, 0.1)),
    )
    ours.load_state_dict(from_spikingjelly(theirs.state_dict(), ours))
    x = draw(T, N, 2, 5, 5)
    want, got = theirs.double()(x), ours.double()(x)
    assert torch.equal(want, got) and want.any()
