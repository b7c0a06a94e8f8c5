"""Networks of SpikingJelly and snnTorch on our kernels, in their environments (`make test-peers`).

One environment has SpikingJelly 2.0 and snnTorch, another one SpikingJelly 0.0.0.0.14 with its
`clock_driven`; what is not installed is skipped by name.
"""

import copy
import importlib
import importlib.util
import itertools
import pickle
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from attsnn import accelerate, interop
from attsnn.interop import comparing, exchange, surrogates
from attsnn.profile import rates

if not any(map(importlib.util.find_spec, ("spikingjelly", "snntorch"))):
    pytest.skip("no SpikingJelly: make test-peers", allow_module_level=True)


def found(name: str):
    """A module of a peer, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


jelly, clock = found("spikingjelly.activation_based.neuron"), found("spikingjelly.clock_driven.neuron")
functional = found("spikingjelly.activation_based.functional")
snntorch = found("snntorch")
TWO = jelly is not None and hasattr(jelly, "ILIFNode")  # SpikingJelly 2.0

needs_jelly = pytest.mark.skipif(jelly is None, reason="no SpikingJelly")
needs_two = pytest.mark.skipif(not TWO, reason="no SpikingJelly 2.0")
needs_clock = pytest.mark.skipif(clock is None, reason="no SpikingJelly with clock_driven")
needs_snntorch = pytest.mark.skipif(snntorch is None, reason="no snnTorch")

RULES = [
    dict(zip(("v_reset", "detach_reset"), values, strict=True))
    for values in itertools.product((0.0, -0.2, None), (False, True))
]


def kinds(module, names):
    """Classes of neurons with their arguments."""
    for name in names:
        for rules in RULES:
            if "LIF" not in name:
                yield name, getattr(module, name), rules
                continue
            for decay in (False, True):
                tau = "init_tau" if "Parametric" in name else "tau"
                yield name, getattr(module, name), {**rules, "decay_input": decay, tau: 2.5}


def both(theirs, x, calls=2, seed=0):
    """(spikes, gradients of x, of parameters, state) of a module over several calls without a reset."""
    results = []
    for module in (copy.deepcopy(theirs), accelerated(copy.deepcopy(theirs), x)):
        inputs = [x.clone().requires_grad_() for _ in range(calls)]
        outs = [module(each) for each in inputs]
        draw = torch.Generator().manual_seed(seed)
        sum((o * torch.randn(o.shape, generator=draw, dtype=o.dtype)).sum() for o in outs).backward()
        grads = [each.grad for each in inputs] + [p.grad for p in module.parameters()]
        results.append((outs, grads, module.v))
    return results


def accelerated(module, x):
    report = accelerate(module, x)
    assert report.covered == 1, report
    return module


def must_equal(results):
    (outs, grads, v), (own_outs, own_grads, own_v) = results
    assert all(map(torch.equal, outs, own_outs)) and sum(float(o.sum()) for o in outs) > 0
    for a, b in zip((*grads, v), (*own_grads, own_v), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def currents(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.3


# ---- the table
# ------------------------------------------------------------------------------------------


def test_the_table_is_what_is_installed():
    """Every name of the table that a package here should have is there, under that very name."""
    seen = 0
    for where, name in (*exchange.KINDS, *exchange.NORMS):
        module = found(where)
        if module is None:
            continue
        own = vars(module).get(name)
        if own is not None and not own.__module__.startswith(f"{where}."):  # as 2.0 hands on its own
            assert (own.__module__, own.__qualname__) == (where, name)
            seen += 1
    assert seen >= (5 if TWO else 11 if clock else 0) + 2 + (snntorch is not None)
    for where in surrogates.SPIKINGJELLY:
        module = found(where)
        for name in surrogates.CLASSES if module is not None else ():
            assert hasattr(module, name) or (name in ("Rect", "SuperSpike") and not TWO), name


@needs_jelly
def test_surrogates():
    """Their slopes are ours, at points off the kinks."""
    module = importlib.import_module("spikingjelly.activation_based.surrogate")
    x = torch.linspace(-3, 3, 601, dtype=torch.float64) + 1e-3
    how = {"PiecewiseLeakyReLU": {"w": 0.7, "c": 0.0}}
    for name in surrogates.CLASSES:
        if not hasattr(module, name):
            continue
        for alpha in (1.0, 2.0, 3.0):
            function = getattr(module, name)(**how.get(name, {"alpha": alpha}))
            z = x.clone().requires_grad_()
            function(z).sum().backward()
            ours = surrogates.surrogate_of(function).slope(x)
            assert torch.allclose(z.grad, ours, rtol=1e-6, atol=1e-9), name


# ---- neurons
# ------------------------------------------------------------------------------------------


@needs_jelly
@pytest.mark.parametrize("mode", ["s", "m"])
def test_neurons_of_spikingjelly(mode):
    """Over two calls with the state between, in every rule; then `reset_net`, and the class back."""
    x = currents(5, 3, 4, 6) if mode == "m" else currents(3, 4, 6)
    for name, make, how in kinds(jelly, ("IFNode", "LIFNode", "ParametricLIFNode")):
        theirs = make(**how).double()
        functional.set_step_mode(theirs, mode)
        must_equal(both(theirs, x))
        report = accelerate(theirs, x)
        assert isinstance(theirs, make) and type(theirs) is not make, name
        first, v = theirs(x), theirs.v
        theirs(x)
        assert not torch.equal(v, theirs.v), how  # the state went on
        functional.reset_net(theirs)
        assert torch.equal(theirs(x), first)
        functional.reset_net(theirs)
        assert report.restore() is theirs and type(theirs) is make and torch.equal(theirs(x), first)


@needs_clock
def test_neurons_of_clock_driven():
    single = ("IFNode", "LIFNode", "ParametricLIFNode")
    for name, make, how in kinds(clock, (*single, *(f"MultiStep{name}" for name in single))):
        x = currents(5, 3, 4, 6) if name.startswith("Multi") else currents(3, 4, 6)
        must_equal(both(make(**how).double(), x))


@needs_snntorch
@pytest.mark.parametrize("mechanism", ["subtract", "zero", "none"])
@pytest.mark.parametrize("delay", [True, False])
def test_leaky(mechanism, delay):
    """Steps of one's own loop, hidden state and given, learned constants, and `utils.reset`."""
    from snntorch import surrogate, utils

    for learns, grad in itertools.product(
        (False, True), (None, surrogate.fast_sigmoid(25), surrogate.sigmoid(10))
    ):
        how = {"reset_mechanism": mechanism, "reset_delay": delay, "spike_grad": grad}
        theirs = snntorch.Leaky(0.9, learn_beta=learns, learn_threshold=learns, **how).double()
        results = []
        for module in (copy.deepcopy(theirs), copy.deepcopy(theirs)):
            if results:
                assert accelerate(module, currents(3, 7)).covered == 1
            x, mem, total = currents(6, 3, 7).requires_grad_(), torch.zeros(3, 7, dtype=torch.float64), 0.0
            for step in x:
                spikes, mem = module(step, mem)
                total = total + (spikes * torch.arange(7.0)).sum() + mem.square().sum()
            total.backward()
            results.append((total.detach(), x.grad, [p.grad for p in module.parameters()]))
        (total, grad_x, own), (total2, grad_x2, own2) = results
        assert torch.equal(total, total2) and torch.allclose(grad_x, grad_x2, rtol=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(own, own2, strict=True))

    net = nn.Sequential(nn.Linear(7, 5), snntorch.Leaky(0.8, init_hidden=True, **how)).double()
    report, x = accelerate(net, currents(3, 7)), currents(3, 7)
    first = [net(x) for _ in range(4)]
    utils.reset(net)
    assert all(map(torch.equal, first, [net(x) for _ in range(4)])) and "Leaky" in str(report)


@needs_snntorch
@pytest.mark.parametrize("mechanism", ["subtract", "zero"])
def test_leaky_in_bfloat16(mechanism):
    """The reset is float32 in theirs, which makes the membrane so: the same spikes over many steps."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(9, 40), snntorch.Leaky(0.9, init_hidden=True, reset_mechanism=mechanism))
    theirs, steps = theirs.bfloat16(), (4 * torch.rand(30, 8, 9)).bfloat16()
    ours = copy.deepcopy(theirs)
    assert accelerate(ours, steps[0]).covered == 1
    spikes, same = (torch.stack([net(x) for x in steps]) for net in (theirs, ours))
    assert 0.01 < spikes.mean() < 0.9 and torch.equal(spikes, same)
    assert theirs[1].mem.dtype == ours[1].mem.dtype and torch.equal(theirs[1].mem, ours[1].mem)


@needs_jelly
def test_copies_and_pickles():
    net = nn.Sequential(nn.Linear(6, 5), jelly.LIFNode(tau=1.7), nn.Linear(5, 4), jelly.ParametricLIFNode())
    functional.set_step_mode(net, "m")
    x = currents(4, 3, 6).float()
    keys, hooked = list(net.state_dict()), []
    net[1].register_forward_hook(lambda module, args, out: hooked.append(out.shape))
    accelerate(net, x)
    assert list(net.state_dict()) == keys and not hooked  # they do not run on the copies that verify
    want = net(x)
    assert hooked == [(4, 3, 5)]
    net[1]._forward_hooks.clear()
    functional.reset_net(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):  # noqa: S301
        assert torch.equal(twin(x), want) and type(twin[1]) is type(net[1]) and twin[1] is not net[1]
        assert isinstance(twin[3], jelly.ParametricLIFNode)
    assert [line.why for line in accelerate(net, x).lines] == ["it has been exchanged before"] * 2


# ---- what is kept
# ------------------------------------------------------------------------------------------


@needs_jelly
def test_what_is_kept_says_why():
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")

    class Own(jelly.LIFNode):
        def neuronal_charge(self, x):
            self.v = x

    net = nn.ModuleDict(
        {
            "good": jelly.IFNode(),
            "own": Own(),
            "stores": jelly.LIFNode(store_v_seq=True),
            "soft": jelly.LIFNode(surrogate_function=surrogate.Sigmoid(spiking=False)),
            "odd": jelly.LIFNode(surrogate_function=surrogate.S2NN()),
            "leaks": jelly.LIFNode(surrogate_function=surrogate.PiecewiseLeakyReLU()),
            "other": jelly.IzhikevichNode(),
            "mine": jelly.IFNode(),
            "read-out": jelly.LIFNode(v_threshold=float("inf")),
            "slow": jelly.LIFNode(),
            "learned": jelly.LIFNode(),
            "by channel": jelly.ParametricLIFNode(),
        }
    )
    net["slow"].tau = 1.0
    net["learned"].v_threshold = nn.Parameter(torch.tensor([0.5, 1.0]))
    net["by channel"].w = nn.Parameter(torch.zeros(3))
    net["mine"].forward = lambda x: x
    report = accelerate(net, dry_run=True)
    why = {line.name: line.why for line in report.lines}
    assert report.covered == 1 and [line.name for line in report.lines if line.now] == ["good"]
    assert "a subclass of spikingjelly's LIFNode" in why["own"] and "store_v_seq" in why["stores"]
    assert "soft (spiking=False)" in why["soft"] and "S2NN is not one that attsnn has" in why["odd"]
    assert "leaks (c=0.01)" in why["leaks"] and "no neuron of ours" in why["other"]
    assert "a forward of its own" in why["mine"]
    assert why["read-out"] == "its v_threshold is inf" and "tau must be greater than 1" in why["slow"]
    assert why["learned"] == "its v_threshold is a Parameter, not a number"
    assert why["by channel"] == "its w has 3 values, not one"
    assert "1 of 12 neuron layers would be exchanged" in str(report)
    assert type(net["good"]) is jelly.IFNode  # a dry run changes nothing
    with pytest.raises(ValueError, match="give an example"):
        accelerate(net)
    assert "No neuron of SpikingJelly's" in str(accelerate(nn.Linear(2, 2), torch.rand(1, 2)))


@pytest.mark.skipif(found("norse") is None, reason="no Norse")
def test_norse_is_named():
    """Not served, and the report says so."""
    from norse import torch as norse

    report = accelerate(nn.Sequential(nn.Linear(2, 2), norse.LIFBoxCell()), dry_run=True)
    assert [(line.name, line.now, line.why) for line in report.lines] == [("1", None, "norse is not served")]
    assert "0 of 1 neuron layers would be exchanged" in str(report)


@needs_jelly
def test_what_changes_afterwards():
    """A rule that we do not have, asked for later, is computed by theirs; another constant by ours."""
    node = jelly.LIFNode(step_mode="m")
    x = currents(5, 3, 4).float() + 1
    accelerate(node, x)
    node.v_threshold = 0.3
    other = jelly.LIFNode(step_mode="m", v_threshold=0.3)
    assert torch.equal(node(x), other(x))
    functional.reset_net(node), functional.reset_net(other)
    if not TWO:  # whose kernel takes numbers alone
        for each in (node, other):
            each.v_threshold = torch.tensor([0.1, 0.2, 0.3, 0.4])
            functional.reset_net(each)
        assert torch.equal(node(x), other(x))
    whole = torch.randint(0, 3, (5, 3, 4))  # of integers, too
    for each in (node, other):
        each.v_threshold = 0.5
        functional.reset_net(each)
    assert torch.equal(node(whole), other(whole)) and node(whole).any()
    functional.reset_net(node), functional.reset_net(other)
    node.store_v_seq = other.store_v_seq = True
    assert torch.equal(node(x), other(x)) and torch.allclose(node.v_seq, other.v_seq)


@needs_clock
def test_the_sequence_of_states_of_clock_driven():
    """The original stores it at each call; ours says that it does not, where it is read."""
    node, other = clock.MultiStepLIFNode(), clock.MultiStepLIFNode()
    x = currents(5, 3, 4).float() + 1
    node(x), node.reset()
    report = accelerate(node, x)
    assert torch.equal(node(x), other(x))
    with pytest.raises(RuntimeError, match="does not store the membrane of every step"):
        _ = node.v_seq
    node.reset(), other.reset()
    for each in (node, other):  # whose default surrogate is one for all
        each.surrogate_function = copy.deepcopy(each.surrogate_function)
        each.surrogate_function.spiking = False  # theirs computes
    assert torch.equal(node(x), other(x)) and torch.equal(node.v_seq, other.v_seq)
    report.restore()
    assert node.v_seq is not None


# ---- the verification
# ------------------------------------------------------------------------------------------


@needs_jelly
def test_a_mismatch_is_found_and_nothing_changes(monkeypatch):
    net = nn.Sequential(nn.Linear(6, 5), jelly.IFNode(), nn.Linear(5, 4), jelly.LIFNode())
    functional.set_step_mode(net, "m")
    x = currents(4, 3, 6).float()
    wrong = {**exchange.leaky(net[3]), "leak": 0.4}
    where = type(net[3]).__module__, "LIFNode"
    kind = exchange.KINDS[where]._replace(constants=lambda m: wrong)
    monkeypatch.setitem(exchange.KINDS, where, kind)
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    with pytest.raises(interop.MismatchError, match=r"^3: "):
        accelerate(net, x)
    assert type(net[1]) is jelly.IFNode and type(net[3]) is jelly.LIFNode
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())


@needs_jelly
def test_everything_else_is_as_before():
    """Parameters, gradients, buffers, the state with its graph, modes, types and random numbers."""
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), jelly.LIFNode(v_threshold=0.3))
    net.train()  # its surrogate, too, which is one object for all of SpikingJelly's neurons
    x = currents(3, 6).float()
    net(x).sum().backward()
    kept = net[3].v
    before = copy.deepcopy([*net.parameters(), *net.buffers()]), [p.grad.clone() for p in net.parameters()]
    rng = torch.get_rng_state()
    report = accelerate(net, x)
    assert net[3].v is kept and all(m.training for m in net.modules())
    assert all(map(torch.equal, before[0], [*net.parameters(), *net.buffers()]))
    assert all(map(torch.equal, before[1], [p.grad for p in net.parameters()]))
    assert torch.equal(rng, torch.get_rng_state()) and net[0].weight.dtype == torch.float32
    assert "outputs and gradients are equal to 1e-9" in str(report) and "In float32 0 of" in str(report)


class Wired(nn.Module):
    """A linear layer and a neuron, and what a function makes of them."""

    def __init__(self, wire):
        super().__init__()
        self.fc, self.lif = nn.Linear(6, 5), jelly.LIFNode(v_threshold=0.3, step_mode="m")
        self.near, self.wire, self.kept = jelly.IFNode(step_mode="m"), wire, []

    def forward(self, x):
        return self.wire(self, x)


@needs_jelly
@pytest.mark.parametrize("wrong", ["another output", "beside a threshold", "without gradients"])
def test_wrong_networks_are_found(wrong, monkeypatch):
    """In what a network returns beside its first output; also where other neurons are on their threshold."""

    def wire(self, x):
        exchanged = isinstance(self.lif, exchange.Exchanged)
        out = self.lif(self.fc(x)) + (0.0 if wrong == "another output" else self.near((x > 0).to(x))[..., :5])
        return x, out + (0.5 * exchanged if wrong != "without gradients" or self.training else 0)

    net = Wired(wire)
    if wrong == "without gradients":
        net.requires_grad_(False)
    with pytest.raises(interop.MismatchError, match=r"^Output 1 of the network is not the original's"):
        accelerate(net, currents(4, 3, 6).float())
    assert type(net.lif) is jelly.LIFNode


@needs_jelly
def test_values_on_the_threshold_are_counted():
    """Rounding decides there: SpikingJelly charges in another order. The whole network then goes on with the
    original's spikes, so that it is compared all the same.
    """
    how = {"tau": 5 / 3, "v_threshold": 0.3, "decay_input": False, "step_mode": "m"}
    net = nn.Sequential(jelly.LIFNode(**how), nn.Linear(25, 4), jelly.LIFNode(step_mode="m")).double()
    x = torch.randint(-8, 9, (16, 40, 25), generator=torch.Generator().manual_seed(0)).double() / 8
    first = net[0](x)
    report = accelerate(net, x)
    assert "values on the threshold, where rounding decides" in str(report)
    functional.reset_net(net)
    differ = int((net[0](x) != first).any(0).sum())
    assert differ or not TWO
    if differ:
        assert f"outputs are equal to 1e-9, given the original's spikes of {differ} neuron" in str(report)
        assert "gradients were not compared" in str(report)
    assert comparing.BOUNDS[torch.float64].near == 1e-9


@needs_jelly
def test_whatever_a_network_does():
    """Casts, draws of Python's and NumPy's, odd outputs, lists with a graph, keywords, inference mode."""
    x = currents(4, 3, 6).float()

    def draws(self, x):
        return self.lif(self.fc(x)) * random.random() + np.random.rand()

    def lists(self, x):
        self.kept.append(self.fc(x).mean())
        return self.lif(self.fc(x))

    for wire in (
        lambda self, x: self.lif(self.fc((100 * x).to(torch.int16).float() / 100)),
        lambda self, x: self.lif(self.fc(x) @ torch.eye(5)),
        draws,
        lists,
        lambda self, x: self.lif(x_seq=self.fc(x)) if TWO else self.lif(self.fc(x)),
        lambda self, x: self.lif(self.fc(x)) > 0,
        lambda self, x: self.lif(self.fc(x)).mean(0).log(),
    ):
        net = Wired(wire)
        net(x), functional.reset_net(net)
        states = random.getstate(), np.random.get_state()[1].copy()
        assert accelerate(net, x).covered == 2
        assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
    with torch.inference_mode():
        assert accelerate(Wired(lambda self, x: self.lif(self.fc(x))), x.clone(), fuse=True).covered == 2


@needs_jelly
def test_what_cannot_be_verified_says_so():
    x = currents(4, 3, 6).float()
    with pytest.raises(ValueError, match=r"the network does not run on the example \(RuntimeError: .*shapes"):
        accelerate(Wired(lambda self, x: self.lif(self.fc(x[..., :4]))), x)

    def narrow(self, x):
        return self.lif(torch.from_numpy(self.fc(x).detach().numpy().astype("f4")) @ self.fc.weight)

    with pytest.raises(ValueError, match="does not run in float64, in which it is verified"):
        accelerate(Wired(narrow), x)
    net = Wired(lambda self, x: self.lif(self.fc(x)))
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"verified on copies, and cannot be copied \(cannot pickle"):
        accelerate(net, x)


@needs_jelly
def test_the_first_calls_of_many():
    """Which are compared, and which not, is said."""
    net = nn.Sequential(nn.Linear(6, 5), jelly.LIFNode())

    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return torch.stack([self.net(step) for step in x])

    report = str(accelerate(Steps(), currents(70, 2, 6).float()))
    assert "1 neuron layer in 64 calls" in report and "these are the first 64" in report


@needs_jelly
def test_no_other_generator_is_seeded(monkeypatch):
    """A GPU that the network is not on keeps its random numbers."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs are seeded"))
    accelerate(nn.Sequential(nn.Linear(6, 5), jelly.LIFNode()), currents(3, 6).float())


@needs_jelly
def test_evaluation_of_a_network_that_learns_after_its_neurons():
    """In 0.0.0.0.14, neurons have no gradient in evaluation, which is said; ours have one."""
    net = nn.Sequential(
        nn.Linear(6, 5), jelly.LIFNode(step_mode="m", v_threshold=0.2), nn.Linear(5, 4)
    ).eval()
    report = str(accelerate(net, 2 * currents(4, 3, 6).float()))
    assert (
        "outputs and gradients are equal" in report if TWO else "gradients were not compared: the" in report
    )


@needs_jelly
def test_a_compiled_network():
    """The wrapper of torch.compile stays; what it wraps is exchanged."""
    net = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), jelly.LIFNode()).double()
    compiled, x = torch.compile(net, backend="eager"), currents(3, 6)
    report = accelerate(compiled, x, fuse=True)
    assert report.covered == 1 and report.network is net and isinstance(net[2], exchange.Exchanged)
    torch._dynamo.reset()


# ---- whole networks
# ------------------------------------------------------------------------------------------


def zoo():
    model = "spikingjelly.activation_based.model"
    surrogate = importlib.import_module("spikingjelly.activation_based.surrogate")
    how = {"spiking_neuron": jelly.LIFNode, "surrogate_function": surrogate.ATan(), "detach_reset": True}
    if_node = {**how, "spiking_neuron": jelly.IFNode}

    def of(file, name, **more):
        return getattr(importlib.import_module(f"{model}.{file}"), name)(**more)

    images, events = (2, 2, 3, 32, 32), (2, 2, 2, 128, 128)
    small = {"T": 2, "num_classes": 10}
    plif = {**how, "spiking_neuron": jelly.ParametricLIFNode}
    return {
        "SEW-ResNet18": (lambda: of("sew_resnet", "sew_resnet18", cnf="ADD", num_classes=10, **if_node),
                         images),
        "MS-ResNet18": (lambda: of("ms_resnet", "ms_resnet18", **small, **how), images),
        "MaxResNet18": (lambda: of("ms_resnet", "max_resnet18", **small, **how), images),
        "MA-SNN": (lambda: of("masnn", "MASNN", T=2, channels=(8, 8, 8), fc_hidden=16, reduction_t=1, **how),
                   (2, 2, 2, 32, 32)),
        "Att-MS-ResNet18": (lambda: of("masnn", "att_ms_resnet18", **small), images),
        "Spikformer": (lambda: of("spikformer", "spikformer_cifar10", **small, **how), images),
        "QKFormer": (lambda: of("qkformer", "QKFormer", **small, embed_dims=96, num_heads=(1, 2, 2),
                                depths=(1, 1, 1), **how), (2, 1, 3, 64, 64)),
        "SDT": (lambda: of("spike_driven_transformer", "SpikeDrivenTransformer", **small, embed_dims=64,
                           num_heads=2, depths=1, **how), (2, 1, 3, 64, 64)),
        "DVSGestureNet": (lambda: of("parametric_lif_net", "DVSGestureNet", channels=8, **plif), events),
        "VGG11": (lambda: of("spiking_vgg", "spiking_vgg11_bn", num_classes=10, **if_node), images),
    }  # fmt: skip


ZOO = {  # how many of its neuron layers are one op with a norm
    "SEW-ResNet18": 20, "MS-ResNet18": 8, "MaxResNet18": 6, "MA-SNN": 0, "Att-MS-ResNet18": 8,
    "Spikformer": 19, "QKFormer": 18, "SDT": 7, "DVSGestureNet": 5, "VGG11": 8,
}  # fmt: skip


@needs_two
@pytest.mark.parametrize("name", ZOO)
def test_networks_of_spikingjelly(name):
    """Every neuron layer of the zoo's, verified, in training, with the norms that only a neuron reads."""
    make, shape = zoo()[name]
    net, x = make(), torch.rand(shape)
    functional.set_step_mode(net, "m")
    report = accelerate(net, x, fuse=True)
    with torch.no_grad(), rates(net) as fired:
        net(x)
    assert list(fired) and set(fired) == {line.name for line in report.lines}
    neurons = sum(isinstance(m, jelly.BaseNode) for m in net.modules())
    assert report.covered == len(report.lines) == neurons > 3, report
    assert len(report.chains) == ZOO[name] and "In float32 0 of" in str(report)


@needs_two
@needs_snntorch
def test_the_bench(capsys):
    """Every network, without the compiler."""
    from bench import accelerate as bench

    columns = [bench.AS_IT_IS, bench.LAST, bench.BARE]
    bench.main(["--smoke", "--threads", "1", "--case", "SEW", "snnTorch", "--columns", *columns])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "bare: GapError: its neurons return their membranes" in line]
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) == 6
    for row in rows:
        bare = "snnTorch" not in row  # whose neurons return their membranes, too
        if "peak" in row:
            assert row.count(" MiB") == 2 + bare
        else:
            assert row.count(" ms") == 2 + bare and row.count("x |") == 1 + bare


@needs_two
def test_the_bench_of_shipped_networks(capsys):
    """Ours and theirs have as many parameters, and are timed beside each other."""
    from bench import cases, model, shipped

    model.main(["--smoke", "--case", "S1 MA", "--threads", "1"])
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| step "))
    assert row.count("x (") == 2 and "the surrogate changes nothing without a GPU" in out
    for case in cases.SHIPPED["cpu"]:
        nets = [column.make(case) for column in shipped.SHIPPED_COLUMNS.values()]
        assert len({sum(p.numel() for p in net.parameters()) for net in nets}) == 1


@needs_clock
def test_a_block_of_a_transformer_of_clock_driven():
    """As Spikformer's users write it for 0.0.0.0.12: T and N folded by hand, multi-step neurons."""

    class Block(nn.Module):
        def __init__(self, dim=8, heads=2):
            super().__init__()
            self.heads = heads
            for name in "qkv":
                setattr(self, f"{name}_linear", nn.Linear(dim, dim))
                setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
                setattr(self, f"{name}_lif", clock.MultiStepLIFNode(tau=2.0, detach_reset=True))
            self.attn_lif = clock.MultiStepLIFNode(tau=2.0, v_threshold=0.5, detach_reset=True)

        def one(self, name, x):
            t, b, n, c = x.shape
            y = getattr(self, f"{name}_linear")(x.flatten(0, 1))
            y = getattr(self, f"{name}_bn")(y.transpose(-1, -2)).transpose(-1, -2).reshape(t, b, n, c)
            y = getattr(self, f"{name}_lif")(y)
            return y.reshape(t, b, n, self.heads, c // self.heads).permute(0, 1, 3, 2, 4)

        def forward(self, x):
            q, k, v = (self.one(name, x) for name in "qkv")
            y = (q @ k.transpose(-2, -1)) @ v * 0.25
            return self.attn_lif(y.transpose(2, 3).reshape(x.shape))

    net, x = Block(), torch.rand(4, 3, 5, 8) * 3
    report = accelerate(net, x)
    assert report.covered == 4 and "In float32 0 of" in str(report)
    exchange_was = net(x)
    clock_functional = importlib.import_module("spikingjelly.clock_driven.functional")
    clock_functional.reset_net(net), report.restore()
    assert torch.equal(net(x), exchange_was)


@needs_snntorch
def test_the_convolutional_network_of_a_tutorial():
    """snnTorch's: two convolutions, a linear layer, each with Leaky, stepped by the network itself."""
    from bench.accelerate import Tutorial

    torch.manual_seed(0)
    net, x = Tutorial(steps=5), 3 * torch.rand(4, 1, 28, 28)
    for weight in net.parameters():
        weight.data *= 3  # so that the last layer fires
    want = net(x)
    report = accelerate(net, x)
    assert report.covered == 3 and "15 calls" in str(report) and "In float32 0 of" in str(report)
    assert torch.equal(net(x), want) and want.any()
    compiled = torch.compile(net, backend="eager", fullgraph=True)  # as the original
    assert torch.equal(compiled(x), want)
    torch._dynamo.reset()
