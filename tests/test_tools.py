"""What users do to the parts of a layer, and PyTorch's tools on layers and networks: they work, or say so."""

import copy
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from close import close64, same_bits
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from attsnn import layers, models, neurons, ops
from attsnn.attention import PFA, attention

ROOT = Path(__file__).resolve().parent.parent
STEPS, CHANNELS = 4, 8


def layer(name: str | None = "TCSA", **how) -> layers.SpikingLayer:
    """With norm, pool and gates, in float64."""
    torch.manual_seed(0)
    gates = name and attention(name, channels=CHANNELS, steps=STEPS, channel_ratio=2, temporal_ratio=2)
    conv, norm = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
    made = layers.SpikingLayer(conv, neurons.leaky(**how), norm=norm, pool=2, attention=gates).double()
    nn.init.uniform_(made.norm.weight, 6.0, 12.0)  # so that it fires behind the gates
    nn.init.uniform_(made.norm.bias, 0.0, 0.5)
    return made


def frames() -> torch.Tensor:
    return torch.randn(STEPS, 2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def composed(net: layers.SpikingLayer, x: torch.Tensor) -> torch.Tensor:
    """What the layer says that it is, child by child."""
    z = layers.over_time(net.norm, layers.over_time(net.current, x))
    z = ops.average_pool(z, net.pool, backend="reference")
    return net.neuron(z if net.attention is None else net.attention(z))


def step(net: nn.Module, x: torch.Tensor, run=None) -> dict[str, torch.Tensor]:
    out = net(x) if run is None else run(net, x)
    out.square().sum().backward()
    grads = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    return {"out": out.detach(), **grads, **{k: b.clone() for k, b in net.named_buffers()}}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key, value in b.items():
        if value.is_floating_point():
            close64(a[key], value, 1e-10, key)
        else:
            same_bits(a[key], value, key)


# ---- children are called or refused
# ------------------------------------------------------------------------------------------


class Shifted(nn.BatchNorm2d):
    """A norm with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(super().forward(x)) + 0.2


class PerStep(nn.BatchNorm2d):
    """TEBN: a learned factor a step."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.factor = nn.Parameter(torch.linspace(0.5, 2, STEPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = super().forward(x).unflatten(0, (STEPS, -1))
        return (normed * self.factor.view(-1, 1, 1, 1, 1)).flatten(0, 1)


class Doubled(neurons.LIF):
    """A neuron with a forward of its own."""

    def forward(self, x: torch.Tensor, *rest, **how) -> torch.Tensor:
        return 2 * super().forward(x, *rest, **how)


@pytest.mark.parametrize("name", [None, "CA", "TCSA"])
@pytest.mark.parametrize("kind", [Shifted, PerStep])
def test_a_norm_with_a_forward_of_its_own(kind, name):
    net, x = layer(name), frames()
    net.norm = kind(CHANNELS).double()
    nn.init.constant_(net.norm.weight, 8.0)
    other = copy.deepcopy(net)
    equal(step(net, x), step(other, x, composed))
    assert kind is Shifted or net.norm.factor.grad.abs().min() > 0
    net.eval(), other.eval()
    close64(net(x), composed(other, x), 1e-10)


def test_a_forward_that_an_object_was_given():
    net, x = layer(), frames()
    before = net(x)
    net.norm.forward = lambda z: torch.zeros_like(z) + 5
    assert not torch.equal(net(x), before)


@pytest.mark.parametrize("name", [None, "TCSA"])
def test_a_neuron_with_a_forward_of_its_own(name):
    net, x = layer(name), frames()
    net.neuron = Doubled(threshold=0.5)
    other = copy.deepcopy(net)
    found = step(net, x)
    equal(found, step(other, x, composed))
    assert found["out"].max() == 2
    with pytest.raises(ValueError, match=r"^step\(\)|step\(\) is for"):
        net.eval().step(x[0])


PARTS = ["norm", "neuron", "attention", "attention.temporal", "attention.channel", "attention.spatial"]
PARTS += [f"attention.{gate}.{part}" for gate in ("temporal", "channel") for part in ("reduce", "expand")]
PARTS += ["attention.spatial.conv", "current"]


@pytest.mark.parametrize("where", PARTS)
def test_hooks_run(where):
    """Also where they are hung on a layer that has run before, and no more when they are taken away."""
    net, x, seen = layer(), frames(), []
    before = step(net, x)
    net.zero_grad()
    part = net.get_submodule(where)
    handles = [
        part.register_forward_pre_hook(lambda *_: seen.append("before")),
        part.register_forward_hook(lambda *_: seen.append("behind")),
        part.register_full_backward_hook(lambda *_: seen.append("back")),
    ]
    net.load_state_dict(layer().state_dict())
    equal(step(net, x), before)
    assert {"before", "behind", "back"} == set(seen)
    seen.clear()
    for handle in handles:
        handle.remove()
    net(x)
    assert seen == []


@pytest.mark.parametrize("where", ["norm", "attention.channel.reduce", "attention.spatial.conv"])
def test_a_hook_changes_what_it_returns(where):
    net, x = layer(), frames()
    before = net(x)
    net.get_submodule(where).register_forward_hook(lambda module, args, out: out * 3)
    assert not torch.equal(net(x), before)


PRUNED = ["norm", "current"]
PRUNED += [f"attention.{part}" for part in ("temporal.reduce", "channel.expand", "spatial.conv")]


@pytest.mark.parametrize("where", PRUNED)
def test_pruning(where):
    """Three steps, as masked by hand; then made permanent."""
    net, x = layer(), frames()
    part = net.get_submodule(where)
    prune.l1_unstructured(part, "weight", amount=0.5)
    for _ in range(3):
        grads = step(net, x)
    assert (part.weight_orig.grad == 0).sum() >= part.weight.numel() // 2
    assert grads["out"].any()
    pruned = net.eval()(x).detach()
    prune.remove(part, "weight")
    close64(net(x), pruned, 1e-12)
    other = layer()
    other.load_state_dict(net.state_dict())
    close64(other.eval()(x), pruned, 1e-12)


@pytest.mark.parametrize("where", ["current", "attention.channel.reduce", "attention.spatial.conv"])
@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "parametrised weight_norm"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_weight_and_spectral_norm(where, how):
    net, x = layer(), frames()
    part = net.get_submodule(where)
    wrap = {"weight_norm": nn.utils.weight_norm, "spectral_norm": nn.utils.spectral_norm}
    wrap.get(how, parametrizations.weight_norm)(part)
    other = copy.deepcopy(net) if how.startswith("param") else None
    for _ in range(2):
        found = step(net, x)
    names = {"weight_norm": "weight_g", "spectral_norm": "weight_orig"}
    name = names.get(how, "parametrizations.weight.original0")
    assert found[f"{where}.{name}"].abs().sum() > 0
    if other is not None:
        close64(net(x), composed(other, x), 1e-10)


def test_norm_scale_of_a_norm_that_is_called():
    net = layers.SpikingLayer(None, neurons.leaky(), norm=nn.BatchNorm2d(CHANNELS), norm_scale=0.4).double()
    nn.init.uniform_(net.norm.bias, 0.0, 0.5)
    x = torch.randn(STEPS, 2, CHANNELS, 4, 4, dtype=torch.float64)
    other = copy.deepcopy(net)
    other.norm.register_forward_hook(lambda *_: None)
    equal(step(other, x), step(net, x))
    other.norm = Shifted(CHANNELS).double()
    with pytest.raises(ValueError, match="norm_scale has no weight to multiply"):
        other(x)


def test_norm_scale_of_a_norm_that_has_nothing():
    bare = nn.BatchNorm2d(CHANNELS, affine=False, track_running_stats=False)
    net = layers.SpikingLayer(None, neurons.leaky(), norm=bare, norm_scale=0.4)
    with pytest.raises(ValueError, match="norm_scale has no weight to multiply: give the norm weights"):
        net(torch.randn(STEPS, 2, CHANNELS, 4, 4))


def test_scores_that_are_read_refuse_hooks():
    gates = attention("CA", channels=CHANNELS, channel_ratio=2, keep_channels=0.5)
    x = torch.randn(STEPS, 2, CHANNELS, 4, 4)
    gates.channel.reduce.register_forward_hook(lambda module, args, out: 3 * out)
    assert gates(x).shape == x.shape
    gates.channel.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="channel has hooks or a forward of its own"):
        gates(x)


def test_the_last_convolution_of_the_vae_is_called():
    net = models.create("fsvae", steps=3, size=16, widths=(4, 6), hidden=(8, 8), latent=4, k=3).double()
    z = (torch.rand(3, 2, 4) < 0.5).double()
    before = net.eval().decode(z)
    seen = []
    net.final.register_forward_hook(lambda *_: seen.append(1))
    close64(net.decode(z), before, 1e-12)
    assert seen == [1]


def test_looking_at_the_children_costs_little():
    """Of a layer that runs in tens of microseconds; counted in calls of Python, not by the clock."""
    net = layer()
    net(frames())
    seen = net.__dict__["_seen"]
    net(frames())
    assert net.__dict__["_seen"] is seen  # nothing was looked at anew
    assert "_seen" not in copy.deepcopy(net).__dict__ and "_seen" not in net.__getstate__()


# ---- forward mode, torch.func
# ------------------------------------------------------------------------------------------


def pfa(backend: str) -> PFA:
    torch.manual_seed(0)
    return PFA(STEPS, 3, 2, backend=backend).double()


WAYS = {
    "neuron": (lambda backend: neurons.leaky(backend=backend), (STEPS, 2, 3)),
    "soft reset, detached": (
        lambda backend: neurons.LIF(leak=0.5, v_reset=None, detach_reset=True, backend=backend),
        (STEPS, 2, 3),
    ),
    "layer": (lambda backend: layer(backend=backend).eval(), (STEPS, 2, 3, 6, 6)),
    "pfa": (lambda backend: pfa(backend), (STEPS, 2, 3, 6, 6)),
    "pool": (lambda backend: partial(ops.average_pool, pool=2, backend=backend), (STEPS, 2, 3, 6, 6)),
}


@pytest.mark.parametrize("way", WAYS)
def test_forward_mode(way, fused):
    """The reference's derivative is that of its backward pass; a fused op says where one is."""
    make, shape = WAYS[way]
    x, tangent = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    leaf = x.clone().requires_grad_()
    out = make("reference")(leaf)
    up = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, leaf, up)
    for backend in ("reference", "fused") if way == "pool" else ("reference",):
        found, derivative = torch.func.jvp(make(backend), (x,), (tangent,))
        close64(found, out.detach(), 1e-12)
        close64((derivative * up).sum(), (grad * tangent).sum(), 1e-10)
        assert derivative.any()
    if way == "pool":  # it has no constant to choose a backend by
        return
    with pytest.raises(NotImplementedError, match="no forward-mode derivative; backend='reference' has one"):
        torch.func.jvp(make("fused"), (x,), (tangent,))
    with forward_ad.dual_level():
        make("fused")(x)  # nothing has a tangent
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            make("fused")(forward_ad.make_dual(x, tangent))


def test_tangents_of_what_an_op_is_given(fused):
    """Of a constant, and of weights of norm and gates."""
    x, net = torch.randn(STEPS, 2, 3, dtype=torch.float64), layer(backend="fused").eval()
    refused = pytest.raises(NotImplementedError, match="no forward-mode derivative")
    with forward_ad.dual_level():
        one = forward_ad.make_dual(torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
        with refused:
            ops.lif(x, threshold=one, backend="fused")
        for name in ("norm.weight", "attention.channel.reduce.weight", "attention.spatial.conv.weight"):
            weight = net.get_parameter(name).detach()
            with refused:
                dual = {name: forward_ad.make_dual(weight, torch.ones_like(weight))}
                torch.func.functional_call(net, dual, (frames(),))


@pytest.mark.parametrize("way", WAYS)
def test_gradients_of_torch_func(way, fused):
    make, shape = WAYS[way]
    x = torch.randn(shape, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(make("reference")(leaf).square().sum(), leaf)
    for backend in ("reference", "fused") if way == "pool" else ("reference",):
        run = make(backend)
        close64(torch.func.grad(lambda x, run=run: run(x).square().sum())(x), wanted, 1e-10)
    if way != "pool":
        run = make("fused")
        with pytest.raises(NotImplementedError, match=r"no part in torch\.func; backend='reference' does"):
            torch.func.grad(lambda x: run(x).sum())(x)


def test_gradients_by_sample():
    net, x = layer(backend="reference").eval(), frames()
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def loss(weights: dict, sample: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, weights, (sample[:, None],)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(weights, x)
    for i in range(x.shape[1]):
        net.zero_grad()
        net(x[:, i : i + 1]).square().sum().backward()
        for name, p in net.named_parameters():
            close64(found[name][i], p.grad, 1e-10, name)
    fused = layer(backend="fused").eval()
    with pytest.raises(NotImplementedError, match=r"no part in torch\.func"):
        torch.func.grad(lambda w: torch.func.functional_call(fused, w, (x,)).sum())(weights)


def test_no_vmap_of_a_layer(fused):
    """Neither with gradients nor without them."""
    net, x = layer(backend="fused").eval(), frames()
    for mode in (torch.enable_grad, torch.no_grad):
        with mode(), pytest.raises(NotImplementedError, match="seam: no vmap; N is the batch dimension"):
            torch.func.vmap(lambda sample: net(sample[:, None]), in_dims=1)(x)


def test_no_double_backward(fused):
    for backend in ("reference", "fused"):
        net, x = layer(emit="membrane", backend=backend), frames().requires_grad_()
        if backend == "reference":
            (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
            grad.square().sum().backward()
            assert x.grad.isfinite().all()
        else:
            with pytest.raises(NotImplementedError, match="no double backward"):
                torch.autograd.grad(net(x).square().sum(), x, create_graph=True)


# ---- folding, watching, the meta device
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_a_parametrised_layer_is_folded(how):
    net, x = layer(), frames()
    how(net.current)
    net(x)
    folded = layers.fold(net)
    close64(folded(x), net.eval()(x), 1e-10)
    assert type(folded.current) is nn.Conv2d and folded.norm is None


class Tripled(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(x)


UNFOLDED = {
    "a hook of the convolution": (lambda net: net.current.register_forward_hook(lambda *_: None), "Conv2d"),
    "a hook of the norm": (lambda net: net.norm.register_forward_hook(lambda *_: None), "BatchNorm2d"),
    "a norm of one's own": (lambda net: setattr(net, "norm", Shifted(CHANNELS).double()), "Shifted"),
    "a layer of one's own": (
        lambda net: setattr(net, "current", Tripled(3, CHANNELS, 3, padding=1).double()),
        "Tripled",
    ),
    "pruning": (
        lambda net: prune.l1_unstructured(net.current, "weight", 0.5),
        r"current\.weight is computed",
    ),
    "pruned norm": (lambda net: prune.l1_unstructured(net.norm, "weight", 0.5), r"norm\.weight is computed"),
}


@pytest.mark.parametrize("what", UNFOLDED)
def test_what_folding_would_lose(what):
    change, sentence = UNFOLDED[what]
    net = layer()
    change(net)
    net(frames())
    with pytest.raises(ValueError, match=sentence):
        layers.fold(net)


def test_what_is_pruned_for_good_is_folded():
    net, x = layer(), frames()
    for part in (net.current, net.norm):
        prune.l1_unstructured(part, "weight", 0.5)
        net(x)
        prune.remove(part, "weight")
    close64(layers.fold(net)(x), net.eval()(x), 1e-10)


def test_watching_what_runs_twice():
    neuron = neurons.leaky(backend="reference")
    net = nn.Sequential(neuron, nn.Identity(), neuron, neurons.leaky(backend="reference"))
    x = 3 * torch.rand(STEPS, 2, 3)
    with layers.watch(net) as seen:
        out = net(x)
    assert list(seen) == ["0", "3"]
    same_bits(seen["0"][0], neuron(x))
    same_bits(seen["0"][1], neuron(neuron(x)))
    same_bits(seen["3"], out)


def test_watching_a_compiled_model():
    net, x = nn.Sequential(neurons.leaky(backend="reference")), torch.rand(STEPS, 2, 3)
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(ValueError, match="sees nothing of what torch.compile runs"), layers.watch(compiled):
        pass
    compiled(x)
    with pytest.warns(RuntimeWarning, match="saw no layer run"), layers.watch(net):
        compiled(x)
    with layers.watch(compiled._orig_mod) as seen:
        net(x)
    assert list(seen) == ["0"]
    net.compile(backend="eager")
    with pytest.raises(ValueError, match="the model is compiled"), layers.watch(net):
        pass


@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_the_meta_device(backend, fused):
    """Shapes without numbers, in training and with gradients."""
    net = layer(backend=backend).to("meta")
    out = net(frames().to("meta"))
    assert out.shape == (STEPS, 2, CHANNELS, 3, 3) and out.device.type == "meta"
    out.sum().backward()
    assert net.current.weight.grad.shape == net.current.weight.shape
    with torch.device("meta"):
        model = models.create("att_ms_resnet18", steps=2, width=0.125, backend=backend)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 1000)


# ---- torch.export, torch.compile, and what records otherwise
# ------------------------------------------------------------------------------------------


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seeded(name: str, **keywords) -> nn.Module:
    torch.manual_seed(0)
    return models.create(name, **keywords).double()


_SMALL = {"steps": 2, "width": 0.125, "dropout": 0.0}
EXPORTED = {  # a module by backend, its input, and the dimension of that which is the batch's
    "neuron": (lambda backend: neurons.leaky(backend=backend), lambda: frames(), 1),
    "learned": (
        lambda backend: neurons.PLIF(backend=backend, learn=("threshold",)).double(),
        lambda: frames(),
        1,
    ),
    "layer": (lambda backend: layer(backend=backend), lambda: frames(), 1),
    "ungated layer": (lambda backend: layer(None, backend=backend), lambda: frames(), 1),
    "pfa": (lambda backend: pfa(backend), lambda: frames(), 1),
    "residual": (lambda backend: seeded("att_ms_resnet18", backend=backend, **_SMALL), images, 0),
}


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", EXPORTED)
def test_an_exported_program_trains(what, training, backend, fused):
    make, given, _ = EXPORTED[what]
    net, x = make(backend).train(training), given()
    program = torch.export.export(copy.deepcopy(net), (x,)).module()
    found = []
    for run in (program, net):
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        found.append({"x": leaf.grad} | {k: p.grad for k, p in run.named_parameters()})
    assert found[0].keys() == found[1].keys()
    for key, wanted in found[1].items():
        close64(found[0][key], wanted, 1e-9, key)
    assert found[1]["x"].any()


@pytest.mark.parametrize("what", ["neuron", "layer", "pfa"])
def test_what_was_exported_without_gradients_has_none(what, fused):
    make, given, _ = EXPORTED[what]
    net, x = make("fused").eval(), given()
    with torch.no_grad():
        program = torch.export.export(net, (x,)).module()
    close64(program(x).detach(), net(x).detach(), 1e-12)
    with pytest.raises(RuntimeError, match=r"exported under torch.no_grad\(\) and has no gradient"):
        program(x.requires_grad_()).sum().backward()


@pytest.mark.parametrize("what", ["neuron", "layer", "residual"])
@pytest.mark.parametrize("strict", [True, False])
def test_exported_for_any_batch(what, strict, fused):
    make, given, dim = EXPORTED[what]
    net, x = make("fused").eval(), given()
    sizes = ({dim: torch.export.Dim("n", min=2)},)
    program = torch.export.export(net, (x,), dynamic_shapes=sizes, strict=strict).module()
    for some in (x, torch.cat([x, x.flip(dim), x], dim)):
        close64(program(some), net(some), 1e-10)


@pytest.mark.parametrize("what", ["neuron", "layer", "ungated layer"])
def test_compiled_three_times_for_any_batch(what, fused):
    """The first size, any size, and 1. Behind the convolution, whose rule in PyTorch asks for N T < 16."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    net = EXPORTED[what][0]("fused").float()
    net.current = None
    compiled = torch.compile(net, backend=counter)
    for n in (3, 1, 2, 5, 4, 7, 1, 6):
        x = torch.randn(STEPS, n, CHANNELS, 6, 6, requires_grad=True)
        found = compiled(x)
        found.sum().backward()
        same_bits(found, copy.deepcopy(net)(x))
    assert counter.frame_count <= 3
    torch._dynamo.reset()


def test_tracing_and_scripting_are_refused():
    for net in (
        neurons.leaky(),
        layer(),
        attention("CA", channels=CHANNELS, channel_ratio=2),
        layers.AveragePool(2),
    ):
        with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace and script .* are not served"):
            torch.jit.script(net)
    for net in (neurons.leaky(), layer().eval(), seeded("att_ms_resnet18", **_SMALL)):
        x = images() if hasattr(net, "plan") else frames()
        with pytest.raises(NotImplementedError, match=r"use torch\.export or compile"):
            torch.jit.trace(net, x)
    with pytest.raises(TypeError, match="with attsnn's layers as leaves"):
        torch.fx.symbolic_trace(layer())


def test_layers_as_leaves_of_fx():
    class Leaves(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, layers.SpikingLayer) or super().is_leaf_module(m, name)

    net, x = nn.Sequential(layer(), layers.Rate()).eval(), frames()
    traced = torch.fx.GraphModule(net, Leaves().trace(net))
    same_bits(traced(x), net(x))


def test_quantised_gates():
    """Called where their weights cannot be read: as the same gates outside of a layer."""
    net, x = layer().float().eval(), frames().float()
    quantised = torch.ao.quantization.quantize_dynamic(net, {nn.Linear})
    assert type(quantised.attention.channel.reduce).__module__.endswith("quantized.dynamic.modules.linear")
    same_bits(quantised(x), composed(quantised, x))
    torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, inplace=True)  # one that has run
    same_bits(net(x), quantised(x))


def test_lazy_modules():
    torch.manual_seed(0)
    lazy = layers.SpikingLayer(nn.LazyConv2d(CHANNELS, 3), neurons.leaky(), norm=nn.LazyBatchNorm2d())
    lazy, x = lazy.double(), frames()
    lazy(x)
    assert type(lazy.norm) is nn.BatchNorm2d and lazy.norm.num_features == CHANNELS
    other = layers.SpikingLayer(nn.Conv2d(3, CHANNELS, 3), neurons.leaky(), norm=nn.BatchNorm2d(CHANNELS))
    other.double().load_state_dict(lazy.state_dict())
    same_bits(lazy.eval()(x), other.eval()(x))


def test_counted_operations(fused):
    """Of the fused op none are counted: what the reference has more are the gates'."""
    counted = {}
    for backend in ("fused", "reference"):
        with FlopCounterMode(display=False) as counter:
            layer(backend=backend)(frames())
        counted[backend] = counter.get_flop_counts()["Global"]
    convolution = {str(op): count for op, count in counted["fused"].items()}
    assert convolution == {"aten.convolution": 2 * STEPS * 2 * CHANNELS * 6 * 6 * 3 * 9}
    assert sum(counted["reference"].values()) > sum(convolution.values())


def test_hooks_of_all_modules_see_what_is_called():
    seen: list[str] = []
    net = layer()
    names = {module: name for name, module in net.named_modules()}
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(names[m]))
    try:
        net(frames())
    finally:
        handle.remove()
    assert seen == ["current", ""]


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    net, x = layer(), frames()
    other = copy.deepcopy(net)

    def run(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(net, x.clone().requires_grad_(), use_reentrant=reentrant)

    found, wanted = step(net, x, run), step(other, x)
    for name in (name for name in wanted if "running" not in name and "num" not in name):
        same_bits(found[name], wanted[name], name)


def test_sharded_parts(tmp_path):
    """FSDP2 around a layer, or its norm and gates alone: the gradients of the whole."""
    program = f"""
import copy, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from test_tools import frames, layer

dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for parts in (["norm"], ["attention"], ["attention.channel.reduce"], ["norm", "attention", ""], [""]):
    net, x = layer(), frames()
    other = copy.deepcopy(net)
    for part in parts:
        fully_shard(net.get_submodule(part), mesh=mesh)
    for run in (net, other):
        run(x).square().sum().backward()
    for (name, a), (_, b) in zip(net.named_parameters(), other.named_parameters(), strict=True):
        grad = a.grad.full_tensor() if hasattr(a.grad, "full_tensor") else a.grad
        assert torch.allclose(grad, b.grad, rtol=1e-9, atol=1e-9), (parts, name)
print("equal")
dist.destroy_process_group()
"""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ["PYTHONPATH"]]),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.stdout.split()[-1:] == ["equal"], done.stderr  # older versions of Gloo greet first


# ---- what newcomers try
# ------------------------------------------------------------------------------------------


def plain_linear() -> layers.SpikingLayer:
    return layers.SpikingLayer(nn.Linear(6, 4), neurons.leaky(), norm=nn.BatchNorm1d(4))


MISTAKES = {
    "no samples": (
        lambda: layer(None).float()(torch.zeros(STEPS, 3, 6, 6)),
        ValueError,
        "steps before samples",
    ),
    "no steps": (
        lambda: layer(None).float()(torch.zeros(2, 3, 6, 6)),
        ValueError,
        r"x must be \[T, N, C, H, W\]",
    ),
    "an image": (lambda: layer(None).float()(torch.zeros(3, 6, 6)), ValueError, r"got shape \(3, 6, 6\)"),
    "one sample of features": (
        lambda: plain_linear()(torch.zeros(STEPS, 6)),
        ValueError,
        r"must be \[T, N, F\]",
    ),
    "bytes": (
        lambda: layer(None).float()(torch.zeros(STEPS, 2, 3, 6, 6, dtype=torch.uint8)),
        TypeError,
        r"must be torch.float32, .* got torch.uint8: x.float\(\)",
    ),
    "doubles": (
        lambda: layer(None).float()(torch.zeros(STEPS, 2, 3, 6, 6).double()),
        TypeError,
        "got torch.float64: convert either",
    ),
    "an array": (
        lambda: layer(None)(np.zeros((STEPS, 2, 3, 6, 6))),
        TypeError,
        "x must be a tensor with time first",
    ),
    "bytes for a network": (
        lambda: seeded("ma_snn_dvs_gesture", steps=6, width=0.25).float()(
            torch.zeros(6, 1, 2, 32, 32, dtype=torch.uint8)
        ),
        TypeError,
        r"got torch.uint8: x.float\(\)",
    ),
    "images of bytes": (
        lambda: seeded("att_ms_resnet18", **_SMALL).float()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)),
        TypeError,
        r"got torch.uint8: x.float\(\)",
    ),
    "gates without channels": (
        lambda: attention("TCSA", steps=16),
        ValueError,
        "give channels, .* or maps=False",
    ),
    "channels without maps": (
        lambda: attention("TCA", steps=4, channels=8, maps=False),
        ValueError,
        "maps=False is for",
    ),
    "a learned tau": (
        lambda: neurons.leaky(tau=nn.Parameter(torch.tensor(2.0))),
        TypeError,
        r"tau must be a number: .* PLIF\(tau\)",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_have_sentences(what):
    make, kind, sentence = MISTAKES[what]
    with pytest.raises(kind, match=sentence):
        make()


def test_autocast_takes_what_it_converts():
    with torch.autocast("cpu", torch.bfloat16):
        assert layer().float()(frames().float()).dtype == torch.bfloat16


def test_one_name_to_learn():
    for neuron in (
        neurons.LIF(learn="threshold"),
        neurons.PLIF(learn="threshold"),
        neurons.ma_snn(learn="threshold"),
    ):
        assert isinstance(neuron.threshold, nn.Parameter)


def test_the_reference_compiles_whole_with_its_gradient():
    """torch.compile takes no autograd function that has a forward-mode rule."""
    torch.manual_seed(0)
    layer = layers.SpikingLayer(nn.Linear(4, 3), neurons.leaky(backend="reference")).double()
    x = 3 * torch.randn(3, 2, 4, dtype=torch.float64)
    wanted = torch.autograd.grad(layer(x).sum(), layer.current.weight)[0]
    found = torch.autograd.grad(torch.compile(layer, fullgraph=True)(x).sum(), layer.current.weight)[0]
    assert wanted.any()
    close64(found, wanted, 1e-12)


def test_several_gradients_at_once(backend):
    """`is_grads_batched`: of a layer, of a PFA and of a neuron alone."""
    torch.manual_seed(0)
    x = (2 * torch.rand(3, 2, 2, 4, 4, dtype=torch.float64)).requires_grad_()
    parts = {"norm": nn.BatchNorm2d(3)}
    layer = layers.SpikingLayer(nn.Conv2d(2, 3, 1), neurons.leaky(backend=backend), **parts).double()
    weigh = PFA(3, 2, 2, backend=backend).double()
    for module, name in ((neurons.leaky(backend=backend), None), (layer, "seam"), (weigh, "pfa")):
        y = module(x)
        draws = torch.rand(2, *y.shape, dtype=torch.float64)
        if backend == "fused" and name:
            with pytest.raises(
                NotImplementedError, match=f"{name}: no is_grads_batched; .*backend='reference'"
            ):
                torch.autograd.grad(y, x, draws, is_grads_batched=True)
            continue
        both = torch.autograd.grad(y, x, draws, is_grads_batched=True, retain_graph=True)[0]
        each = [torch.autograd.grad(y, x, draw, retain_graph=True)[0] for draw in draws]
        close64(both, torch.stack(each), 1e-12)
