"""What lies between two convolutions as one op: fused against the plain composition, values and gradients."""

import itertools
import os
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from close import as_exact_as_eager, close64, same_bits
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from attsnn import attention, layers, models, neurons, ops, reference
from attsnn.ops.neuron import pack
from attsnn.ops.seam_shapes import AFFINE, BY_PLANE, CHANNEL, NORM, SPACE, TIME, gates_in, rules_of

MA_SNN = neurons.ma_snn(threshold=0.05).arguments() | {"soft": False}
MS_RESNET = neurons.ms_resnet().arguments() | {"soft": False}
GATES = (None, "TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA")
NORMS = ("train", "eval", None)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def weights_of(channels, steps, dtype=torch.float64):
    """Random small tensors; the first gamma is 0, the second negative."""
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=g).to(dtype)  # noqa: E731
    gamma = draw(channels)
    gamma[:2] = torch.tensor([0.0, -1.1])[:channels]
    return {
        "gamma": gamma, "beta": 0.3 * draw(channels),
        "t0": draw(3, steps), "t1": draw(steps, 3), "c0": draw(2, channels), "c1": draw(channels, 2),
        "kernel": draw(1, 2, 3, 3),
    }  # fmt: skip


def gates_of(name, w):
    if name is None:
        return None
    return ops.Gates(
        (w["t0"], w["t1"]) if "T" in name else None,
        (w["c0"], w["c1"]) if "C" in name else None,
        w["kernel"] if "S" in name else None,
    )


def norm_of(kind, w):
    if kind is None:
        return None
    given = () if kind == "train" else (0.3 * w["gamma"].detach(), w["beta"].detach().abs() + 0.5)
    return ops.Norm(w["gamma"], w["beta"], *given)


def maps(*shape, channels_last=False, seed=0, dtype=torch.float64):
    z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return z.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if channels_last else z


def run(backend, z, weights, *, norm="train", gates=None, shortcut=None, v0=None, neuron=MA_SNN, **keywords):
    """Every output, and every gradient of a random functional of them, by name. Where v0 is given the state
    after the last step is one of them.
    """
    z = z.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    w = {k: v.detach().clone().requires_grad_() for k, v in weights.items()}
    learned = {
        k: v.detach().clone().requires_grad_() for k, v in neuron.items() if isinstance(v, torch.Tensor)
    }
    shortcut, v0 = (None if t is None else t.detach().clone().requires_grad_() for t in (shortcut, v0))
    given = {"norm": norm_of(norm, w), "gates": gates_of(gates, w), "shortcut": shortcut, "v0": v0}
    how = {**neuron, **learned, "final_state": v0 is not None, **keywords, "backend": backend}
    result = ops.seam(z, **given, **how)
    torch.manual_seed(7)
    draw = lambda x: torch.randn(x.shape, dtype=torch.float64).to(x)  # noqa: E731  (in logical order)
    loss = (result.out * draw(result.out)).sum()
    for other in (result.membrane, result.v):
        if other is not None:
            loss = loss + (other * draw(other)).sum()
    loss.backward()
    seen = {
        "out": result.out,
        "membrane": result.membrane,
        "v": result.v,
        "mean": result.batch_mean,
        "var": result.batch_var,
    }
    seen |= {f"score {k}": v for k, v in result.scores._asdict().items()}
    inputs = {**w, **learned, "z": z, "shortcut": shortcut, "v0": v0}
    seen |= {
        f"grad {k}": torch.zeros_like(v) if v.grad is None else v.grad
        for k, v in inputs.items()
        if v is not None
    }
    return {k: v.detach() for k, v in seen.items() if v is not None}


def agree(z, weights, tolerance=1e-10, **keywords):
    """Fused against the reference."""
    ours, plain = run("fused", z, weights, **keywords), run("reference", z, weights, **keywords)
    assert ours.keys() == plain.keys()
    for name in plain:
        close64(ours[name], plain[name], tolerance, f"{name} of {keywords}")
    return ours


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("emit", ["spike", "relu_membrane"])
def test_ma_snn_seams(fused, gates, emit):
    w = weights_of(8, 6)
    for norm, pool, last in itertools.product(NORMS, (1, 2), (False, True)):
        z = maps(6, 3, 8, 7, 9, channels_last=last)
        seen = agree(z, w, norm=norm, pool=pool, gates=gates, neuron={**MA_SNN, "emit": emit})
        assert seen["out"].any() and seen["grad z"].any()


@pytest.mark.parametrize("gates", [None, "CA", "CSA"])
@pytest.mark.parametrize("steps", [1, 6])
def test_ms_resnet_seams(fused, gates, steps):
    """With a shortcut two bits or the sum are kept: by what is emitted, and where a sample fills no bytes."""
    w = weights_of(5, steps)
    forms = [("spike", 4), ("spike", 5), ("membrane", 4)]
    for norm, membrane, (emit, side) in itertools.product(("train", "eval"), (False, True), forms):
        z = maps(steps, 2, 5, side, side, channels_last=side == 4)
        for shortcut in (None, maps(steps, 2, 5, side, side, seed=3)):
            given = {"norm": norm, "gates": gates, "shortcut": shortcut, "membrane": membrane}
            agree(z, w, **given, neuron={**MS_RESNET, "emit": emit})


@pytest.mark.parametrize("gates", [None, "SA", "CSA"])
@pytest.mark.parametrize("plane", [(530, 2, 2), (130, 4, 4), (40, 8, 8)])
def test_small_planes(fused, gates, plane):
    """A sample's take three tiles, the last one part. In float32, too, where no spike can flip."""
    w, none_fires = weights_of(plane[0], 3), {**MS_RESNET, "threshold": 1e3, "emit": "membrane"}
    z, shortcut = maps(3, 2, *plane), maps(3, 2, *plane, seed=3)
    for norm, added in itertools.product(NORMS, (None, shortcut)):
        given = {"norm": norm, "gates": gates, "membrane": True}
        agree(z, w, **given, shortcut=added, neuron=MS_RESNET)
        exact = run("reference", z.float().double(), w, **given, neuron=none_fires)
        narrow = {name: value.float() for name, value in w.items()}
        ours = run("fused", z.float(), narrow, **given, neuron=none_fires)
        for name, value in exact.items():
            close64(ours[name].double(), value, 1e-4, f"{name} in float32, norm {norm}")


def test_fully_connected(fused):
    for gates, norm, features in itertools.product((None, "TA"), NORMS, (5, 1030)):
        w = weights_of(features, 4)
        z = torch.randn(4, 3, features, dtype=torch.float64)
        agree(z, w, gates=gates, norm=norm)
        agree(z, w, gates=gates, norm=norm, shortcut=torch.randn_like(z), membrane=True)


@pytest.mark.parametrize("preset", neurons.PRESETS)
def test_every_preset_learns(fused, preset):
    """Its own rules, every constant a tensor [C], every emitted value; more steps than are kept at once."""
    arguments = neurons.PRESETS[preset]().arguments() | {"soft": False}
    constants = {k: v for k, v in arguments.items() if k in reference.CONSTANTS and v is not None}
    values = {k: torch.as_tensor(v, dtype=torch.float64).detach() for k, v in constants.items()}
    learned = {k: v.expand(4).clone() for k, v in values.items()}
    for emit, steps in [*((emit, 3) for emit in reference.EMITS), ("spike", 70)]:
        z, w = maps(steps, 2, 4, 3, 5), weights_of(4, steps)
        for shortcut in (None, maps(steps, 2, 4, 3, 5, seed=1)):
            own = {**arguments, **learned, "emit": emit}
            agree(z, w, norm="train", gates="TCSA", shortcut=shortcut, neuron=own, tolerance=1e-9)


@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        ((2, 1, 3, 8, 8), 4),
        ((2, 2, 3, 4, 4), 4),
        ((3, 2, 1, 5, 5), 2),
        ((2, 5, 2, 1, 1), 1),
        ((1, 1, 2, 40, 40), 2),
        ((2, 1, 1030, 2, 2), 2),
        ((3, 17, 2, 6, 6), 1),
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_shapes(fused, shape, pool, channels_last):
    w = weights_of(shape[2], shape[0])
    z = maps(*shape, channels_last=channels_last)
    agree(z, w, gates="TCSA", pool=pool)
    out = ops.seam(z, pool=pool, **{**MA_SNN, "backend": "fused"}).out
    if channels_last:
        assert out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    if shape[3] == shape[4]:
        agree(z.transpose(3, 4), w, gates="CSA", pool=pool)  # neither order: copied
    agree(z[:1].expand(shape), w, gates="CA")  # a static image


def test_no_sample(fused):
    z, w = torch.zeros(2, 0, 3, 4, 4), weights_of(3, 2, torch.float32)
    result = ops.seam(z, norm=norm_of("eval", w), gates=gates_of("TCSA", w), pool=2, backend="fused")
    assert result.out.shape == (2, 0, 3, 2, 2)


# ---- a state that comes and goes
# ------------------------------------------------------------------------------------------


STATES = {  # what of a neuron is kept, and how
    "bits": {"shortcut": True, "neuron": MS_RESNET},
    "its input": {"neuron": MA_SNN},
    "its input as a membrane": {"shortcut": True, "membrane": True, "neuron": MA_SNN},
    "chunks": {"steps": 70, "neuron": MA_SNN},
    "learned": {"neuron": MA_SNN | {"leak": torch.tensor(0.4, dtype=torch.float64)}},
    "soft": {"neuron": MA_SNN | {"soft": True, "v_reset": None, "emit": "membrane"}},
}


@pytest.mark.parametrize("name", STATES)
def test_a_given_state_and_the_last_one(fused, name):
    """Both, with both gradients, in every layout."""
    how = dict(STATES[name])
    steps, added = how.pop("steps", 5), how.pop("shortcut", False)
    w = weights_of(4, steps)
    for gates, pool, last in ((None, 1, False), ("CSA", 1, True), ("TCSA", 2, False)):
        z = maps(steps, 2, 4, 6, 8, channels_last=last)
        p = maps(steps, 2, 4, 6 // pool, 8 // pool, seed=1)
        seen = agree(z, w, gates=gates, pool=pool, shortcut=p if added else None, v0=p[0], **how)
        assert seen["v"].any() and seen["grad v0"].any()
    z = torch.randn(steps, 3, 5, dtype=torch.float64)
    agree(z, weights_of(5, steps), gates="TA", v0=z[0].flip(0), shortcut=z if added else None, **how)


def test_a_state_that_nobody_wants_is_not_written(fused):
    """Neither by a layer nor by a norm alone, which hands its gradient on as it is."""
    rules = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function._schema.name == "attsnn::lif_seam_forward":
                rules.append(rules_of(args[-2]))
            return function(*args, **(kwargs or {}))

    neuron = neurons.ms_resnet(backend="fused")
    layer = layers.SpikingLayer(nn.Conv2d(2, 4, 1), neuron, norm=nn.BatchNorm2d(4), membrane=True)
    normed = layers.NormedLayer(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), backend="fused")
    x = torch.rand(3, 2, 2, 4, 4)
    with Seen():
        layer(x), normed(x), layer.run(x)
    assert [(rule.alone, rule.final_state) for rule in rules] == [(0, 0), (1, 0), (0, 1)]


def test_the_last_state_alone_has_a_gradient(fused):
    for shortcut, neuron in ((None, MA_SNN), (maps(3, 2, 4, 4, 4, seed=1), MS_RESNET)):
        grads = []
        for backend in ("fused", "reference"):
            z, v0 = maps(3, 2, 4, 4, 4).requires_grad_(), maps(2, 4, 4, 4, seed=2).requires_grad_()
            norm = norm_of("train", weights_of(4, 3))
            found = ops.seam(z, norm=norm, shortcut=shortcut, v0=v0, **{**neuron, "backend": backend})
            grads.append(torch.autograd.grad((found.v * v0.detach().cos()).sum(), (z, v0)))
        for ours, plain in zip(*grads, strict=True):
            assert plain.any()
            close64(ours, plain, 1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cut", [1, 5, 33])
def test_chunks_have_the_bits_of_the_whole(backend, dtype, cut):
    """Given the same currents: every output, the state, and the gradients that reach z and v0."""
    w, names = weights_of(4, 70, reference.state_dtype(torch.empty(0, dtype=dtype))), ("z", "r", "v0")
    z, r = maps(70, 2, 4, 3, 5, dtype=dtype), maps(70, 2, 4, 3, 5, dtype=dtype, seed=1)
    v0 = maps(2, 4, 3, 5, seed=2, dtype=reference.state_dtype(z))
    for neuron, added in ((MA_SNN, False), (MS_RESNET, True)):
        how = {**neuron, "norm": norm_of("eval", w), "membrane": added, "backend": backend}

        def inputs(added=added):
            return (
                z.clone().requires_grad_(),
                r.clone().requires_grad_() if added else None,
                v0.clone().requires_grad_(),
            )

        a, b, c = inputs()
        whole = ops.seam(a, shortcut=b, v0=c, **how)
        x, y, v = inputs()
        first = ops.seam(x[:cut], shortcut=None if y is None else y[:cut], v0=v, **how)
        second = ops.seam(x[cut:], shortcut=None if y is None else y[cut:], v0=first.v, **how)
        same_bits(torch.cat([first.out, second.out]), whole.out, "out")
        same_bits(second.v, whole.v, "v")
        if added:
            same_bits(torch.cat([first.membrane, second.membrane]), whole.membrane, "membrane")
        draw = torch.randn_like(whole.out)
        ((whole.out * draw).sum() + whole.v.sum()).backward()
        ((first.out * draw[:cut]).sum() + (second.out * draw[cut:]).sum() + second.v.sum()).backward()
        for name, ours, theirs in zip(names, (x, y, v), (a, b, c), strict=True):
            if ours is not None:
                same_bits(ours.grad, theirs.grad, f"gradient of {name}")


def test_states_that_do_not_fit(backend):
    z = torch.zeros(2, 2, 3, 4, 4)
    for v0, kind, sentence in (
        (torch.zeros(2, 3, 4, 4), ValueError, r"v0 must be .*\(2, 3, 2, 2\).*, got shape \(2, 3, 4, 4\)"),
        (torch.zeros(2, 3, 2, 2).double(), TypeError, "v0 must be a torch.float32 tensor"),
        (1.0, TypeError, "v0 must be .*, got float"),
    ):
        with pytest.raises(kind, match=sentence):
            ops.seam(z, pool=2, v0=v0, backend=backend)
    assert ops.seam(z, final_state=False, backend=backend).v is None
    assert ops.seam(z.bfloat16(), backend=backend).v.dtype == torch.float32


# ---- ties, and the hard cases of a norm
# ------------------------------------------------------------------------------------------


# The smallest planes, short and long ones each have their own loops.
SIDES = [(2, 2), (4, 4), (8, 8), (5, 7), (11, 13)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("gates", ["TA", "CA", "SA", "TCSA"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_ties_go_to_the_first_in_logical_order(fused, gates, channels_last, sides):
    """Small integers tie everywhere; statistics of 0 and 1 keep the ties exact through the norm."""
    z = torch.randint(-1, 2, (4, 3, 6, *sides), generator=torch.Generator().manual_seed(2)).double()
    z[:, 0], z[1, 1] = 1.0, -1.0  # silent planes
    z = z.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if channels_last else z
    w = weights_of(6, 4)
    gamma = torch.tensor([0.0, -1.0, 1.0, 2.0, -0.5, 1.0], dtype=torch.float64)
    none, one = torch.zeros_like(gamma), torch.ones_like(gamma)
    nothing = torch.finfo(torch.float64).tiny  # beside 1; torch 2.10 refuses 0
    results = []
    for backend in ("fused", "reference"):
        x = z.clone(memory_format=torch.preserve_format).requires_grad_()
        neuron = {**MA_SNN, "emit": "membrane", "backend": backend}
        norm = ops.Norm(gamma, none, none, one, eps=nothing)
        out = ops.seam(x, norm=norm, gates=gates_of(gates, w), **neuron).out
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        assert b.any()
        close64(a, b, 1e-12, gates)


@pytest.mark.parametrize("sides", SIDES)
def test_nan_is_the_maximum(fused, sides):
    z, w = maps(3, 2, 4, *sides), weights_of(4, 3)
    z[1, 0, 2, 1, 1] = float("nan")
    ours, plain = (run(b, z, w, gates="TCSA", norm=None) for b in ("fused", "reference"))
    assert plain["score channel"].isnan().any() and not plain["score channel"].isnan().all()
    for name in ("score temporal", "score channel", "score spatial", "out"):
        assert torch.equal(ours[name].isnan(), plain[name].isnan()), name


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_mean_of_a_thousand_deviations(fused, channels_last):
    z = 1000 + maps(4, 3, 5, 9, 9, channels_last=channels_last, dtype=torch.float32)
    w = weights_of(5, 4, torch.float32)
    result = ops.seam(z, norm=norm_of("train", w), backend="fused")
    exact = z.double().permute(2, 0, 1, 3, 4).flatten(1)
    assert torch.allclose(result.batch_var.double(), exact.var(1), rtol=1e-6)
    assert torch.allclose(result.batch_mean.double(), exact.mean(1), rtol=1e-7)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_pytorch(backend, momentum):
    norm = nn.BatchNorm2d(4, momentum=momentum).double()
    layer = layers.SpikingLayer(None, neurons.ma_snn(backend=backend), norm=norm)
    plain = nn.BatchNorm2d(4, momentum=momentum).double()
    for seed in range(4):
        for each in (norm, plain):
            each.track_running_stats = seed < 3  # where they are no longer tracked, they stay
        z = 2 + 3 * maps(3, 2, 4, 5, 5, seed=seed)
        layer(z)
        plain(z.flatten(0, 1))
    for name, value in plain.state_dict().items():
        assert torch.allclose(norm.state_dict()[name], value, rtol=1e-12), name
    layer.eval()
    z = maps(3, 2, 4, 5, 5)
    expected = neurons.ma_snn()(plain.eval()(z.flatten(0, 1)).unflatten(0, (3, 2)))
    close64(layer(z), expected, 0)
    layer(z).sum().backward()  # a frozen norm: running statistics, gamma and beta train
    assert norm.weight.grad.any() and norm.num_batches_tracked == 3


@pytest.mark.parametrize("kind", ["train", "eval"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 3, 4, 5), (1, 2, 3, 4, 5), (2, 1, 3, 2, 2)])
def test_the_reference_s_norm_by_hand(shape, channels_last, kind):
    """PyTorch's own (2.13, CPU) has wrong gradients for channels-last maps of T = N = 1."""
    weights, weight, grads = weights_of(3, 1), maps(*shape, seed=5), []
    for by_hand in (False, True):
        z = maps(*shape, channels_last=channels_last).requires_grad_()
        w = {k: v.clone().requires_grad_() for k, v in weights.items()}
        norm = norm_of(kind, w)
        if by_hand:
            flat = z.movedim(2, 0).flatten(1)
            mean, var = norm[2:4] if kind == "eval" else (flat.mean(1), flat.var(1, correction=0))
            scale = norm.weight / (var + norm.eps).sqrt()
            out = (z - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
        else:
            out = ops.seam(z, norm=norm, emit="membrane", leak=0.0, backend="reference").out
        (out * weight).sum().backward()
        grads.append([out.detach(), z.grad, w["gamma"].grad, w["beta"].grad])
    for ours, exact in zip(*grads, strict=True):
        close64(ours, exact, 1e-12)


# ---- bits
# ------------------------------------------------------------------------------------------


# C, H, W: of planes that vectorise, and of small ones, of which a tile holds many, the last one being part.
PLANES = [(3, 6, 7), (300, 2, 2), (130, 4, 4), (40, 8, 8)]


MASKS = (0, TIME, CHANNEL, SPACE, TIME + CHANNEL + SPACE)


def small_inputs(p, gates):
    """Of a seam over p whose norm has given statistics, as the ops take it: planes; mean and variance, gamma,
    beta; the gates' weights.
    """
    w = weights_of(p.shape[2], p.shape[0], reference.state_dtype(p))
    gamma, beta, *statistics = norm_of("eval", w)[:4]
    by_plane = bool(gates & BY_PLANE)
    _, planes, _ = torch.ops.attsnn.seam_statistics(p, gamma, 1, by_plane, False)
    owners = {"t0": TIME, "t1": TIME, "c0": CHANNEL, "c1": CHANNEL, "kernel": SPACE}
    weights = [w[name] for name, which in owners.items() if gates & which]
    return planes, ([s.double() for s in statistics], gamma, beta), weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_apply_has_the_reference_s_bits(fused, dtype, channels_last, plane):
    """Given the same small tensors; and so has the gradient of what the neuron reads."""
    p, shortcut, grad = (
        maps(5, 2, *plane, channels_last=channels_last, dtype=dtype, seed=s) for s in range(3)
    )
    neuron = {k: v for k, v in MA_SNN.items() if k != "backend"}
    constants = {k: neuron[k] for k in reference.CONSTANTS}
    for emit, gates, added in itertools.product(("spike", "relu_membrane"), MASKS, (False, True)):
        packed = pack(p, constants, neuron["surrogate"], False, False, emit, "zero", False)
        r, rules = shortcut if added else None, (*packed.rules, gates, added, added, 1, 1, 0, 0, 0, 0)
        how = (*packed.numbers, 1e-5), rules, "input"
        planes, norm, weights = small_inputs(p, gates)
        forward = (p, r, None, planes, *norm, weights, None, *how)
        out, membrane, _, small = torch.ops.attsnn.lif_seam_forward(*forward)
        space = [*gates_in(small, gates)[2], None][0]
        own_neuron = {**neuron, "emit": emit}
        expected, x = reference.seam_apply(p, small[AFFINE], space, r, gates > 0, added, **own_neuron)
        same_bits(out, expected, f"out, gates {gates}")
        if added:
            same_bits(membrane[0], x, f"membrane, gates {gates}")
        (up,), *_ = torch.ops.attsnn.lif_seam_backward(
            grad, None, p, membrane[0] if added else None, planes, weights, small, [], None, *how
        )
        if added or dtype == reference.state_dtype(p):  # else x is wider than what ops.lif takes
            x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            ops.lif(x, **own_neuron, backend="fused", final_state=False)[0].backward(grad)
            same_bits(up, x.grad, f"gradient of x, gates {gates}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("plane", PLANES)
def test_the_last_pass_has_the_reference_s_bits(fused, dtype, channels_last, plane):
    count, *sides = plane
    pixels, wide = sides[0] * sides[1], (2 * sides[0] + 1, 2 * sides[1])
    up, p = (maps(5, 2, *plane, channels_last=channels_last, dtype=dtype, seed=s) for s in range(2))
    z = maps(5, 2, count, *wide, channels_last=channels_last, dtype=dtype, seed=2)
    state = reference.state_dtype(p)
    affine = torch.randn(2, 5, 2, count, dtype=state)
    sums, totals, norm = (
        torch.randn(size, dtype=torch.float64) for size in ((2, count), 1 + 2 * count, (4, count))
    )
    totals[0] = 100
    slope, centre = norm[2] * norm[0] / totals[0], norm[1]
    channels = torch.stack([slope * sums[0], norm[0] * (slope * sums[1]), centre]).to(state)
    spatial = [torch.rand(3, 2, pixels, dtype=state), torch.randint(0, 5 * count, (2, pixels)).int()]
    planes = [torch.randn(2, 5, 2, count, dtype=state), torch.randint(0, pixels, (5, 2, count)).int()]
    for s, n, c, relu in itertools.product((False, True), repeat=4):
        lists = planes if n else [], spatial if s else [], [sums, totals, norm] if c else []
        own = *(spatial if s else (None, None)), *(planes if n else (None, None)), channels if c else None
        for source, pooled, pool in ((z, p, 2), (p, None, 1)):
            ours = torch.ops.attsnn.seam_gradient(up, source, pooled, affine, *lists, pool, relu)
            plain = reference.seam_gradient(up, source, pooled, affine, *own, pool, relu)
            same_bits(ours, plain, f"SA {s}, planes {n}, statistics {c}, relu {relu}, pool {pool}")
        place = up.clone(memory_format=torch.preserve_format)
        torch.ops.attsnn.seam_gradient_(place, p, affine, *lists, relu)
        same_bits(place, plain, f"in place, SA {s}, planes {n}, statistics {c}, relu {relu}")


@pytest.mark.parametrize("gates", [None, "TCSA"])
def test_threads_and_repetition_change_no_bit(fused, gates):
    z, w = maps(9, 3, 8, 20, 20, dtype=torch.float32), weights_of(8, 9, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            neuron = {**MS_RESNET, "emit": "membrane"}
            results.append(run("fused", z, w, gates=gates, shortcut=z, neuron=neuron))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            same_bits(other[name], value, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(fused, dtype):
    """Off the threshold by construction: the membrane is emitted, nothing fires."""
    z, w = maps(4, 2, 4, 6, 6, dtype=dtype), weights_of(4, 4, torch.float32)
    neuron = {**MA_SNN, "threshold": 1e4, "v_reset": 0.0, "emit": "membrane"}
    ours, plain = (run(b, z, w, gates="TCSA", pool=2, neuron=neuron) for b in ("fused", "reference"))
    wide = {k: v.double() for k, v in w.items()}
    exact = run("reference", z.double(), wide, gates="TCSA", pool=2, neuron=neuron)
    for name in ("out", "grad z", "grad gamma", "grad beta", "grad t0", "grad c1", "grad kernel"):
        assert exact[name].any()
        as_exact_as_eager(ours[name], plain[name].to(ours[name].dtype), exact[name], name)


# ---- a citizen of PyTorch
# ------------------------------------------------------------------------------------------


def test_gradcheck(fused):
    z, w = maps(3, 2, 3, 4, 5).requires_grad_(), weights_of(3, 3)
    w["gamma"][0] = 0.7  # at 0 every value of the plane ties: a kink
    shortcut = maps(3, 2, 3, 2, 2, seed=5).requires_grad_()
    soft = {**MA_SNN, "soft": True, "surrogate": reference.arctan(2.0), "backend": "fused"}

    def f(z, shortcut, *small):
        w = dict(zip(names, small, strict=True))
        given = {"norm": norm_of("train", w), "gates": gates_of("TCSA", w), "shortcut": shortcut}
        result = ops.seam(z, pool=2, membrane=True, **given, **soft)
        return result.out, result.membrane

    names = ("gamma", "beta", "t0", "t1", "c0", "c1", "kernel")
    small = [w[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(f, (z, shortcut, *small), eps=1e-6, atol=1e-6)


def test_opcheck(fused):
    """Schema and shape rule; the gradient belongs to the function that joins the ops."""
    ours, rules = torch.ops.attsnn, (1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0)
    numbers = [0.3, 1.0, 0.0, 0.3, 0.3, 0.25, 0.0, 1.0, 1e-5]

    def check(op, *arguments):
        torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))
        return op(*arguments)

    for gates, steps in ((0, 3), (TIME, 3), (CHANNEL, 65), (TIME + SPACE, 65), (TIME + CHANNEL + SPACE, 3)):
        last = bool(gates & TIME)
        z, learned = maps(steps, 2, 4, 6, 8, channels_last=last), torch.rand(5, 4, dtype=torch.float64)
        planes, (given, gamma, beta), weights = small_inputs(z, gates)
        pooled, planes, totals = check(ours.seam_statistics, z, gamma, 2, len(planes) > 0, last)
        p, norm = pooled[0], (totals or given, gamma, beta)
        for keep, r, constants in (("nothing", None, None), ("input", p.flip(1), learned), ("bits", p, None)):
            carries = int(keep != "nothing" and steps == 65)
            own = (gates, 1, int(keep == "input"), int(last), 2, 0, carries, carries, int(last))
            how = numbers, (*rules, *own), keep
            v0 = torch.rand_like(p[0]) if carries else None
            forward = (p, r, v0, planes, *norm, weights, constants, *how)
            out, membrane, state, small = check(ours.lif_seam_forward, *forward)
            if keep == "nothing":
                continue
            states = [v0, state[0]] if carries else []
            assert len(state) == carries + last
            kept = membrane[0] if membrane else None, planes, weights, small, states, constants
            (up,), by_norm, _, by_planes, by_pixels, by_state, _ = check(
                ours.lif_seam_backward, out, None, p, *kept, *how
            )
            assert len(by_state) == carries
            batch = [by_norm[0], *totals, small[NORM]] if by_norm else []
            lists = by_planes + planes[2:], by_pixels + gates_in(small, gates)[2][2:], batch
            check(ours.seam_gradient, up, z, p, small[AFFINE], *lists, 2, gates > 0)
            check(ours.seam_gradient_, up, p, small[AFFINE], *lists, gates > 0)
    # A norm alone hands grad_out on as it is.
    z = maps(1, 2, 4, 6, 8)
    planes, norm, _ = small_inputs(z, 0)
    rules = (1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0)
    how = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1e-5], rules, "input"
    out, *_, small = check(ours.lif_seam_forward, z, None, None, planes, *norm, [], None, *how)
    assert check(ours.lif_seam_backward, out, None, z, None, planes, [], small, [], None, *how)[0] == []
    running = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), torch.tensor(0)
    check(ours.update_running, *running, *norm[0], 0.1)


def test_update_running_takes_what_the_kernel_does_not_serve():
    """Statistics of another type than the batch's, and the plain mean of all batches."""
    mean, var = torch.tensor([1.0, 3.0]), torch.tensor([5.0, 7.0])
    for dtype, momentum in ((torch.bfloat16, 0.25), (torch.float32, None)):
        running = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype), torch.tensor(0)
        for _ in range(2):
            ops.update_running(*running, mean, var, momentum)
        seen = 1 if momentum is None else 1 - (1 - momentum) ** 2
        same_bits(running[0], (seen * mean).to(dtype))
        same_bits(running[1], (1 + seen * (var - 1)).to(dtype))
        assert running[2] == 2


@pytest.mark.parametrize("name", [None, "TCSA"])
def test_compile_fullgraph(fused, name):
    gates = attention.attention(name, channels=4, steps=3, channel_ratio=2, temporal_ratio=1)
    conv, neuron = nn.Conv2d(2, 4, 3, padding=1), neurons.ma_snn(backend="fused")
    layer = layers.SpikingLayer(conv, neuron, norm=nn.BatchNorm2d(4), pool=2, attention=gates)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, results = torch.randn(3, 2, 2, 8, 8), []
    for f in (layer, compiled):
        layer.zero_grad()
        out = f(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in layer.parameters())])
    for a, b in zip(*results, strict=True):
        same_bits(a, b)


def test_autocast(fused):
    """bf16 from the convolution, float32 parameters; the result has the input's type."""
    gates = attention.attention("TCSA", channels=4, steps=3, channel_ratio=2, temporal_ratio=1)
    conv, neuron = nn.Conv2d(2, 4, 3, padding=1), neurons.ma_snn(backend="fused")
    layer = layers.SpikingLayer(conv, neuron, norm=nn.BatchNorm2d(4), attention=gates)
    with torch.autocast("cpu", torch.bfloat16):
        result = layer.run(torch.randn(3, 2, 2, 8, 8))
    assert result.out.dtype == torch.bfloat16 and result.scores.channel.dtype == torch.float32
    result.out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())


def test_no_double_backward(fused):
    z, w = maps(2, 2, 3, 4, 4).requires_grad_(), weights_of(3, 2)
    out = ops.seam(z, norm=norm_of("train", w), **{**MA_SNN, "emit": "membrane", "backend": "fused"}).out
    with pytest.raises(NotImplementedError, match="no double backward"):
        torch.autograd.grad(out.square().sum(), z, create_graph=True)


def test_without_gradients(fused):
    z, w = maps(70, 2, 3, 4, 4).requires_grad_(), weights_of(3, 70)
    given = {"norm": norm_of("train", w), "gates": gates_of("TCSA", w)}
    with torch.no_grad():
        result = ops.seam(z, **given, **{**MA_SNN, "backend": "fused"})
    assert result.out.grad_fn is None
    assert not ops.seam(z, **given, backend="fused").scores.spatial.requires_grad


SENTENCES = [
    ({"z": torch.zeros(2, 2)}, r"z must be \[T, N, C, H, W\], \[T, N, C, L\] or \[T, N, F\], got .*\(2, 2\)"),
    ({"pool": 0}, "pool must be a side >= 1"),
    ({"pool": 9}, r"pool must fit the maps of z \(2, 2, 3, 4, 4\), got 9"),
    ({"norm": ops.Norm(torch.ones(4))}, r"norm.weight must be \[C\] = \[3\], got shape \(4,\)"),
    ({"norm": ops.Norm(mean=torch.ones(3))}, "give mean and var both"),
    ({"norm": ops.Norm(repeats=0)}, "norm.repeats must be an integer >= 1, got 0"),
    ({"gates": ops.Gates(channel=(torch.ones(2, 5), torch.ones(5, 2)))}, r"gates.channel must be \[C/r, C\]"),
    (
        {"gates": ops.Gates(spatial=torch.ones(1, 2, 4, 4))},
        r"gates.spatial must be \[1, 2, k, k\] with an odd k",
    ),
    ({"gates": ops.Gates((torch.ones(2, 3), torch.ones(3, 2)))}, r"gates.temporal must be \[T/r, T\].*T = 2"),
    ({"shortcut": torch.zeros(2, 2, 3, 2, 2)}, "shortcut must be torch.float32"),
    ({"z": torch.zeros(2, 2, 3), "gates": ops.Gates(spatial=torch.ones(1, 2, 3, 3))}, "temporal gate only"),
    ({"z": torch.zeros(1, 1, 3), "norm": ops.Norm()}, "more than one value a channel"),
    ({"emit": "spikes"}, "emit must be one of"),
]


@pytest.mark.parametrize(("keywords", "sentence"), SENTENCES)
def test_sentences(keywords, sentence, backend):
    with pytest.raises(ValueError, match=sentence):
        ops.seam(**{"z": torch.zeros(2, 2, 3, 4, 4), **keywords}, backend=backend)


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"norm": nn.BatchNorm2d(3)}, "norm must be Norm or None, got BatchNorm2d"),
        ({"gates": attention.attention("SA", channels=3)}, "gates must be Gates or None, got Attention"),
        ({"shortcut": 1.0}, "shortcut must be Tensor or None, got float"),
    ],
)
def test_arguments_of_another_kind(keywords, sentence, backend):
    with pytest.raises(TypeError, match=sentence):
        ops.seam(torch.zeros(2, 2, 3, 4, 4), **keywords, backend=backend)


META = torch.ones(3, device="meta")


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"norm": ops.Norm(META)}, "norm.weight"),
        ({"norm": ops.Norm(bias=META)}, "norm.bias"),
        ({"norm": ops.Norm(mean=torch.ones(3), var=META)}, "norm.var"),
        ({"gates": ops.Gates(temporal=(torch.ones(1, 2), META.new_ones(2, 1)))}, "gates.temporal"),
        ({"gates": ops.Gates(channel=(META.new_ones(1, 3), torch.ones(3, 1)))}, "gates.channel"),
        ({"gates": ops.Gates(spatial=META.new_ones(1, 2, 3, 3))}, "gates.spatial"),
        ({"shortcut": META.new_ones(2, 2, 3, 4, 4)}, "shortcut"),
    ],
)
def test_arguments_on_another_device(keywords, name, backend):
    with pytest.raises(ValueError, match=f"{name} must be on z's device cpu, got meta"):
        ops.seam(torch.zeros(2, 2, 3, 4, 4), **keywords, backend=backend)


@pytest.mark.parametrize("norm", [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)])
def test_layers_take_batch_norms_only(norm):
    sentence = f"norm must be a batch norm of torch.nn, or None, got {type(norm).__name__}"
    with pytest.raises(TypeError, match=sentence):
        layers.SpikingLayer(nn.Conv2d(2, 4, 3), neurons.leaky(), norm=norm)
    with pytest.raises(TypeError, match=sentence):
        layers.NormedLayer(nn.Conv2d(2, 4, 3), norm)
    with pytest.raises(TypeError, match=r"neuron must be an attsnn\.neurons\.LIF, got ReLU"):
        layers.SpikingLayer(nn.Conv2d(2, 4, 3), nn.ReLU())


# ---- the networks
# ------------------------------------------------------------------------------------------

FORBIDDEN = {  # what the plain composition calls
    *("select", "select_backward", "unbind", "stack", "sigmoid", "relu", "threshold_backward"),
    *("native_batch_norm", "native_batch_norm_backward", "avg_pool2d", "avg_pool2d_backward", "mul", "max"),
}


class OnMaps(TorchDispatchMode):
    """The names of ATen ops that read or write maps, [T, N, C, H, W] or [T N, C, H, W]."""

    def __init__(self, steps, samples):
        super().__init__()
        self.steps, self.samples, self.seen = steps, samples, set()

    def is_map(self, t):
        if not isinstance(t, torch.Tensor) or not t.is_floating_point() or t.dim() not in (4, 5):
            return False
        return t.shape[: t.dim() - 3].numel() == self.steps * self.samples

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        if any(map(self.is_map, torch.utils._pytree.tree_leaves((args, kwargs, out)))):
            self.seen.add(f.overloadpacket.__name__)
        return out


@pytest.mark.parametrize("name", [name for name in models.names() if name.startswith("ma_snn")])
@pytest.mark.parametrize("gates", ["TCSA", None])
def test_no_pass_over_the_maps_but_the_ops(fused, name, gates):
    """The event networks, forward and backward (test_ms_resnet.py has the residual ones): norm, pool,
    gate and the steps through time are in the ops.
    """
    sizes = {"attention": gates, "steps": 5, "size": 64, "width": 0.25, "temporal_ratio": 2}
    seen = {}
    for backend in ("fused", "reference"):
        model = models.create(name, **sizes, backend=backend)
        with OnMaps(5, 3) as mode:
            model(torch.rand(5, 3, 2, 64, 64)).square().sum().backward()
        seen[backend] = mode.seen
    assert {"seam_statistics", "lif_seam_forward", "lif_seam_backward", "seam_gradient"} <= seen["fused"]
    assert not seen["fused"] & FORBIDDEN, seen["fused"] & FORBIDDEN
    assert len(seen["reference"] & FORBIDDEN) >= 5  # the check sees what it forbids


def test_scores_and_watch(fused):
    model = models.create(
        "ma_snn_dvs_gesture", steps=5, width=0.125, size=8, temporal_ratio=1, backend="fused"
    )
    result = model.features[1].run(torch.rand(5, 2, 8, 8, 8))
    shapes = [tuple(score.shape) for score in result.scores]
    assert shapes == [(5, 2), (2, 16), (2, 4, 4)] and all(s.min() > 0 and s.max() < 1 for s in result.scores)
    layer = layers.SpikingLayer(None, neurons.ms_resnet(), membrane=True)
    with layers.watch(layer) as seen:
        spikes, membrane = layer(torch.randn(2, 2, 3, 4, 4), torch.randn(2, 2, 3, 4, 4))
    assert torch.equal(seen[""], spikes) and membrane.unique().numel() > 2
    with pytest.raises(TypeError, match=r"attention must come from attsnn\.attention\.attention"):
        layers.SpikingLayer(None, neurons.ms_resnet(), attention=nn.ReLU())


# ---- many processes
# ------------------------------------------------------------------------------------------

LAYER = """
import torch
from torch import nn
from attsnn import attention, layers, neurons
def make(backend, affine):
    torch.manual_seed(0)
    gates = attention.attention("TCSA", channels=4, steps=3, channel_ratio=2, temporal_ratio=1)
    neuron = neurons.ma_snn(threshold=0.01, emit="relu_membrane", backend=backend)
    how = {"norm": nn.BatchNorm2d(4, affine=affine), "norm_scale": 1.0 if affine else 0.7}
    return layers.SpikingLayer(nn.Conv2d(2, 4, 3), neuron, **how, pool=2, attention=gates)
def step(layer, x, first):
    out = layer(x)
    weight = 1 + torch.arange(first, first + x.shape[1]).view(-1, 1, 1, 1)
    (out * weight).sum().backward()
    return out.detach(), [p.grad for p in layer.parameters()]
"""
PROCESS = """
import os
import sys
import torch.distributed as dist
rank, backend, rendezvous, affine = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4] == "True"
sizes = [int(n) for n in sys.argv[5:]]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
layer = nn.SyncBatchNorm.convert_sync_batchnorm(make(backend, affine)).double()
assert isinstance(layer.norm, nn.SyncBatchNorm)
first = sum(sizes[:rank])
whole = torch.randn(3, sum(sizes), 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
x = whole[:, first : first + sizes[rank]].clone().requires_grad_()
out, grads = step(layer, x, first)
for grad in grads:
    dist.all_reduce(grad)
torch.save([out, x.grad, layer.norm.running_var, grads], f"{rendezvous}.{rank}.pt")
dist.destroy_process_group()
os._exit(0)  # a late thread of gloo aborts an interpreter that is ending (torch 2.13)
"""


@pytest.mark.parametrize(("sizes", "affine"), [((2, 2), True), ((3, 1), True), ((2, 2), False)])
def test_statistics_over_two_processes(backend, tmp_path, sizes, affine):
    """Two processes compute what one does with the whole batch, in equal and unequal shares; a norm that
    learns nothing, too, and its scale.
    """
    command = [sys.executable, "-c", LAYER + PROCESS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    rendezvous = tmp_path / "rendezvous"
    started = [
        subprocess.Popen(
            [*command, str(rank), backend, rendezvous, str(affine), *map(str, sizes)], env=environment
        )
        for rank in (0, 1)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    parts = [torch.load(f"{rendezvous}.{rank}.pt") for rank in (0, 1)]

    scope = {}
    exec(LAYER, scope)  # noqa: S102  (the same lines as in the processes)
    layer = scope["make"](backend, affine).double()
    x = torch.randn(3, sum(sizes), 2, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    out, grads = scope["step"](layer, x, 0)
    assert out.any() and x.grad.any()
    close64(torch.cat([part[0] for part in parts], 1), out, 1e-12, "out")
    close64(torch.cat([part[1] for part in parts], 1), x.grad, 1e-10, "gradient of x")
    for _, _, variance, theirs in parts:
        close64(variance, layer.norm.running_var, 1e-12, "running variance")
        for ours, whole in zip(theirs, grads, strict=True):
            close64(ours, whole, 1e-9, "gradient of a parameter")


def test_auto_says_nothing_where_it_is_fused(fused):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.seam(torch.randn(2, 2, 3, 4, 4), norm=ops.Norm(), pool=2)


def test_the_reference_is_the_plain_composition():
    """Against PyTorch's own layers."""
    z, w = maps(4, 2, 3, 6, 6), weights_of(3, 4)
    norm = nn.BatchNorm2d(3).double()
    norm.weight.data, norm.bias.data = w["gamma"], w["beta"]
    normed = F.avg_pool2d(norm(z.flatten(0, 1)), 2).unflatten(0, (4, 2))
    expected = neurons.ma_snn(threshold=0.05, backend="reference")(normed)
    result = ops.seam(z, norm=norm_of("train", w), pool=2, **{**MA_SNN, "backend": "reference"})
    same_bits(result.out, expected.detach())
