"""What a neuron takes off, the height and shape of its surrogate, and integer spikes: against plain loops."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from close import as_exact_as_eager, close64, same_bits
from test_neuron import NUMBERS, compare, make, run
from torch import nn

from attsnn import _extension, layers, neurons, ops, reference
from attsnn.reference import SURROGATES

# ---- the amount that a soft reset takes off
# ------------------------------------------------------------------------------------------


AMOUNTS = {
    "a number": 0.55,
    "learned": torch.tensor(0.55, dtype=torch.float64),
    "by channel": torch.tensor([0.3, 0.5, -0.2, 0.9], dtype=torch.float64),
}
SOFT = {**NUMBERS, "v_reset": None, "bias": 0.0}


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("detached", [False, True])
def test_an_amount_of_its_own(fused, amount, detached):
    """Values and gradients, from the two bits and from the input, of short and of long walks."""
    own = {"subtract": AMOUNTS[amount], "detach_reset": detached}
    for steps in (6, 70):
        x = make((steps, 3, 4, 5), None)
        for more in ({}, {"surrogate": reference.arctan()}, {"emit": "membrane"}, {"start": "reset"}):
            compare(x, **SOFT, **own, **more)
            compare(x, make((3, 4, 5), None), **SOFT, **own, **more)


def test_its_gradient_is_minus_the_spikes_times_that_of_the_state(backend):
    """By hand, with one step: v = h - s a."""
    x = torch.tensor([[0.3, 0.9, 1.4]], dtype=torch.float64)
    for detached in (False, True):
        a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        how = {"threshold": 0.5, "v_reset": None, "subtract": a, "detach_reset": detached, "backend": backend}
        out, v = ops.lif(x, **how)
        same_bits(out, torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64))
        close64(v, torch.tensor([0.3, 0.2, 0.7], dtype=torch.float64), 1e-15)
        (v * torch.tensor([5.0, 2.0, 3.0])).sum().backward()
        assert a.grad.item() == -5.0


def test_without_one_it_is_the_threshold(backend):
    """The same bits, and the same gradient of the threshold."""
    x = make((6, 3, 4), None)
    theta = torch.tensor(0.4, dtype=torch.float64)
    plain = run(backend, x, **{**SOFT, "threshold": theta})
    same = run(backend, x, **{**SOFT, "threshold": theta, "subtract": theta.clone()})
    same_bits(plain[0], same[0])
    close64(plain[2]["threshold"], same[2]["threshold"] + same[2]["subtract"], 1e-12)


@pytest.mark.parametrize("beta", [0.9, 0.5])
def test_snntorch_s_default_neuron(backend, beta):
    """Leaky, reset_mechanism "subtract" with reset_delay: mem = beta mem + x - spike of the step before."""
    x, mem, spike, emitted = make((25, 400), None), 0.0, 0.0, []
    for now in x.unbind(0):
        mem = beta * mem + now - spike * 1.0
        spike = (mem > 1.0).double()
        emitted.append(spike)
    neuron = neurons.LIF(leak=beta, v_reset=None, subtract=1 / beta, strict=True, backend=backend)
    same_bits(neuron(x), torch.stack(emitted))


def test_the_amount_of_a_module():
    neuron = neurons.LIF(v_reset=None, subtract=0.4, learn="subtract", channels=3)
    assert neuron.subtract.shape == (3,) and [n for n, _ in neuron.named_parameters()] == ["subtract"]
    neuron.run(torch.rand(5, 2, 3, 4) * 3)[1].sum().backward()
    assert neuron.subtract.grad.all()
    assert "subtract=0.4" in repr(neurons.LIF(v_reset=None, subtract=0.4))
    assert "subtract" not in repr(neurons.leaky())
    for make_it in (
        lambda: neurons.LIF(subtract=0.5),
        lambda: neurons.leaky(subtract=0.5),
        lambda: neurons.LIF(v_reset="threshold", subtract=0.5),
        lambda: ops.lif(torch.rand(3, 2), subtract=0.5),
        lambda: ops.seam(torch.rand(3, 2, 4), subtract=0.5, v_reset=1.0),
        lambda: reference.lif(torch.rand(3, 2), subtract=0.5),
    ):
        with pytest.raises(ValueError, match=r"subtract is what a soft reset takes off; .*v_reset=None"):
            make_it()
    with pytest.raises(ValueError, match="subtract must be a number, a tensor or None, got 'thr"):
        neurons.LIF(v_reset=None, subtract="threshold")
    with pytest.raises(ValueError, match="'subtract' is not a constant with a value"):
        neurons.LIF(v_reset=None, learn="subtract")
    with pytest.raises(ValueError, match=r"subtract must be one value or \[C\] = \[4\]"):
        ops.lif(torch.rand(3, 2, 4), v_reset=None, subtract=torch.rand(3))


def test_a_seam_takes_an_amount(fused):
    z = make((4, 2, 3, 6, 8), (0, 1, 3, 4, 2))
    found = []
    for backend in ("fused", "reference"):
        x, a = (
            z.clone().requires_grad_(),
            torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64, requires_grad=True),
        )
        out = ops.seam(
            x, norm=ops.Norm(), shortcut=z, threshold=0.3, v_reset=None, subtract=a, backend=backend
        )
        (out.out.sum() + out.v.sin().sum()).backward()
        found.append((out.out, out.v, x.grad, a.grad))
    for ours, theirs in zip(*found, strict=True):
        close64(ours, theirs, 1e-10)


# ---- the height of a surrogate, and slopes of one's own
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SURROGATES)
def test_the_height_multiplies_the_slope(fused, kind):
    """And the soft spike; at a height of 1 all is as without."""
    x = make((9, 2, 33), None)
    for height in (2.5, 0.3):
        surrogate = reference.Surrogate(kind, 0.8, None, height)
        compare(x, **NUMBERS, surrogate=surrogate)
        compare(x, **NUMBERS, surrogate=surrogate, detach_reset=True)
        soft = [
            ops.lif(x, **NUMBERS, surrogate=surrogate, soft=True, backend=b)[0]
            for b in ("fused", "reference")
        ]
        close64(*soft, 1e-12)
    narrow = make((9, 2, 33), None, torch.float32)
    compare(narrow, **NUMBERS, surrogate=reference.Surrogate(kind, 0.8, None, 2.5))


@pytest.mark.parametrize("kind", SURROGATES)
def test_slopes_of_raised_soft_spikes_pass_gradcheck(fused, kind):
    surrogate = reference.Surrogate(kind, 0.7, 0.1, 1.7)
    x = (
        torch.tensor([0.31, 0.92, -0.4, 0.05], dtype=torch.float64)[:, None]
        .expand(4, 2)
        .clone()
        .requires_grad_()
    )
    how = {"surrogate": surrogate, "soft": True, "backend": "fused", "threshold": 0.4}
    assert torch.autograd.gradcheck(lambda x: ops.lif(x, **how), (x,))


def test_surrogates_of_the_peers():
    """SpikingJelly's SoftSign, SuperSpike and PiecewiseExp, by their formulas."""
    z = torch.linspace(-3, 3, 301, dtype=torch.float64)
    for alpha in (1.0, 2.0, 5.0):
        soft_sign = (alpha / 2) / (1 + (alpha * z).abs()) ** 2
        close64(reference.fast_sigmoid(alpha, height=alpha / 2).slope(z), soft_sign, 1e-15)
        close64(reference.fast_sigmoid(1.0, height=alpha).slope(z), alpha / (1 + z.abs()) ** 2, 1e-15)
        exp = alpha / 2 * (-alpha * z.abs()).exp()
        close64(reference.piecewise_exp(alpha).slope(z), exp, 1e-15)
    assert reference.rectangular() == reference.rectangular(height=1.0)
    for wrong in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="arctan: height must be a positive finite number"):
            reference.arctan(height=wrong)
        with pytest.raises(ValueError, match="surrogate: its height must be positive and finite"):
            ops.lif(torch.rand(2, 3), surrogate=reference.arctan()._replace(height=wrong))


def bell(z):
    return torch.exp(-z.square()) * 0.8


def erf_like(z):
    return SURROGATES["erf"].slope(z, 2.0)


@pytest.mark.parametrize("centre", [None, 0.1])
def test_a_custom_slope_is_computed(backend, centre):
    """That of a known surrogate has its gradients; whatever asks, the reference answers."""
    backend = "reference" if backend == "reference" else "auto"
    x = make((6, 3, 5), None)
    ours = run(backend, x, **NUMBERS, surrogate=reference.custom(erf_like, centre))
    known = run("reference", x, **NUMBERS, surrogate=reference.erf(2.0, centre))
    for a, b in zip(ours[:2], known[:2], strict=True):
        same_bits(a, b)
    close64(ours[2]["x"], known[2]["x"], 1e-12)
    raised = run(backend, x, **NUMBERS, surrogate=reference.custom(erf_like, centre, height=3.0))
    close64(
        raised[2]["x"],
        run("reference", x, **NUMBERS, surrogate=reference.erf(2.0, centre, 3.0))[2]["x"],
        1e-12,
    )


def test_a_custom_slope_runs_fused_without_gradients(fused, monkeypatch):
    """And says once what it costs with some."""
    calls = []
    monkeypatch.setattr(reference, "lif", lambda *a, lif=reference.lif, **k: calls.append(1) or lif(*a, **k))
    monkeypatch.setattr(_extension, "_said", set())
    neuron, x = neurons.LIF(surrogate=reference.custom(bell)), torch.rand(4, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = neuron(x)
        with torch.no_grad():
            same_bits(neuron(x.requires_grad_()), expected)
    assert not calls
    with pytest.warns(RuntimeWarning, match="a custom slope has no kernel; .*several times the time"):
        same_bits(neuron(x), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neuron(x)
    assert len(calls) == 2
    same_bits(neuron(x.detach()), expected)
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="backend='fused': the kernels know no custom slope"):
        ops.lif(x, surrogate=reference.custom(bell), backend="fused")


def test_a_custom_slope_in_a_layer(fused, monkeypatch):
    """A gradient of any of the seam's tensors counts."""
    monkeypatch.setattr(_extension, "_said", set())
    torch.manual_seed(0)
    neuron = neurons.LIF(surrogate=reference.custom(bell))
    layer = layers.SpikingLayer(nn.Conv2d(2, 3, 1), neuron, norm=nn.BatchNorm2d(3)).double()
    layer.current.requires_grad_(False)
    x = torch.rand(3, 2, 2, 4, 4, dtype=torch.float64) * 3
    with pytest.warns(RuntimeWarning, match="a custom slope has no kernel"):
        layer(x).sum().backward()
    assert layer.norm.weight.grad.any()
    with torch.no_grad():
        close64(layer(x), layer(x.clone()), 0.0)


def test_a_custom_slope_is_a_value():
    """It pickles with its function, is copied, shown, compiled and exported."""
    surrogate = reference.custom(bell)
    neuron = neurons.LIF(surrogate=surrogate)
    assert pickle.loads(pickle.dumps(neuron)).surrogate == surrogate  # noqa: S301  (its own)
    assert copy.deepcopy(neuron).surrogate.function is bell
    assert "surrogate=custom" in repr(neuron)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(reference.custom(lambda z: z))
    x = torch.rand(3, 2, 4, dtype=torch.float64).requires_grad_()
    wanted = torch.autograd.grad(neurons.LIF(surrogate=surrogate, backend="reference")(x).sum(), x)[0]
    compiled = torch.compile(neurons.LIF(surrogate=surrogate, backend="reference"), fullgraph=True)
    close64(torch.autograd.grad(compiled(x).sum(), x)[0], wanted, 1e-12)
    program = torch.export.export(
        neurons.LIF(surrogate=surrogate, backend="reference"), (x.detach(),)
    ).module()
    close64(torch.autograd.grad(program(x).sum(), x)[0], wanted, 1e-12)


@pytest.mark.parametrize(
    ("slope", "sentence"),
    [
        (lambda z: z.sum(), r"slope\(z\) must be a real tensor of z's shape \(2, 3\), got"),
        (lambda z: 1.0, r"must be a real tensor of z's shape \(2, 3\), got float"),
        (lambda z: z > 0, r"got torch.bool \(2, 3\)"),
    ],
)
def test_slopes_that_are_none(slope, sentence):
    x = torch.rand(4, 2, 3).requires_grad_()
    out = ops.lif(x, surrogate=reference.custom(slope), backend="reference")[0]
    with pytest.raises(ValueError, match=sentence):
        out.sum().backward()


def test_what_a_custom_slope_is_not():
    with pytest.raises(TypeError, match="custom: slope must be a function of z, got 2"):
        reference.custom(2)
    for backend in ("auto", "reference"):
        with pytest.raises(ValueError, match="soft: a custom slope has no primitive"):
            ops.lif(torch.rand(2, 3).double(), surrogate=reference.custom(bell), soft=True, backend=backend)
    with pytest.raises(TypeError, match="surrogate must be one of attsnn.reference's"):
        ops.lif(torch.rand(2, 3), surrogate=reference.Surrogate("custom", 1.0))


# ---- integer spikes
# ------------------------------------------------------------------------------------------


class Rounded(torch.autograd.Function):
    """round(clamp(u, 0, D)) as published: the gradient passes where 0 <= u <= D."""

    @staticmethod
    def forward(ctx, u, levels):
        ctx.save_for_backward(u)
        ctx.levels = levels
        return u.clamp(0, levels).round()

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        return grad * ((u >= 0) & (u <= ctx.levels)), None


def published(x, leak, levels, theta=1.0, amount=None, detached=True, share=False, v=0.0):
    """The loop of I-LIF on x [T, N, C, ...]."""
    emitted, amount = [], theta if amount is None else amount
    for now in x.unbind(0):
        h = leak * v + now
        n = Rounded.apply(h / theta, levels)
        v = h - (n.detach() if detached else n) * amount
        emitted.append(n / levels if share else n)
    return torch.stack(emitted), v


@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("detached", [True, False])
def test_ilif_as_published(backend, levels, detached):
    x = (3 * make((9, 3, 4, 5), None)).requires_grad_()
    neuron = neurons.ilif(0.25, levels, detach_reset=detached, backend=backend)
    out, v = neuron.run(x)
    expected, state = published(x, 0.25, levels, detached=detached)
    same_bits(out.detach(), expected.detach())
    close64(v, state, 1e-12)
    assert out.max() == levels and set(out.unique().tolist()) <= set(range(levels + 1))
    draw = torch.randn_like(out)
    grads = (
        torch.autograd.grad((o * draw).sum() + s.sin().sum(), x)[0] for o, s in ((out, v), (expected, state))
    )
    close64(*grads, 1e-11)


def test_half_to_even_and_borders(backend):
    """0.5 and 2.5 round down, 1.5 and 3.5 up; at 0 and at D the gradient passes, beyond it does not."""
    h = [-0.1, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.000001, 9.0, math.nan, math.inf, -math.inf]
    x = torch.tensor([h], dtype=torch.float64, requires_grad=True)
    out = neurons.ilif(backend=backend)(x)
    out.sum().backward()
    assert out[0].tolist() == [0, 0, 0, 2, 2, 4, 4, 4, 4, 0, 4, 0]  # NaN does not fire
    assert x.grad[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("share", [False, True])
def test_every_type_has_the_reference_s_bits(fused, dtype, share):
    """What is emitted, the state and, in float64, every gradient; of thresholds that do not divide evenly."""
    by_channel = torch.tensor([0.3, 0.7, 1.1, 2.0, 0.9], dtype=torch.float64).to(
        reference.state_dtype(torch.empty(0, dtype=dtype))
    )
    for theta in (0.7, by_channel):
        for steps, levels in ((1, 3), (6, 5), (70, 4)):
            neuron = neurons.ilif(levels=levels, threshold=theta, normalize=share)
            x = 2 * make((steps, 3, 5, 7), None, dtype)
            v0 = make((3, 5, 7), None, reference.state_dtype(x))
            how = {k: v for k, v in neuron.arguments().items() if k != "backend"}
            for state in (None, v0):
                ours, plain = (ops.lif(x, state, **how, backend=b) for b in ("fused", "reference"))
                same_bits(ours[0], plain[0], "out")
                same_bits(ours[1], plain[1], "v")
                assert ours[0].any()
            if dtype == torch.float64 and not isinstance(theta, torch.Tensor):
                compare(x, v0, **how)
                leak = torch.tensor(0.3, dtype=torch.float64)
                compare(
                    x, v0, **{**how, "leak": leak, "subtract": torch.full((5,), 0.6, dtype=torch.float64)}
                )
            elif not isinstance(theta, torch.Tensor):
                grads = []
                for given, backend in ((x, "fused"), (x, "reference"), (x.double(), "reference")):
                    leaf = given.clone().requires_grad_()
                    ops.lif(leaf, **how, backend=backend)[0].double().sin().sum().backward()
                    grads.append(leaf.grad)
                if dtype != torch.float32:
                    as_exact_as_eager(*grads, "gradient")
                else:
                    assert (grads[0] - grads[1]).abs().max() < 1e-5


@pytest.mark.parametrize("gates", [None, "TCSA"])
@pytest.mark.parametrize("share", [False, True])
def test_seams_of_integer_spikes(fused, gates, share):
    from test_seam import agree, maps, weights_of

    for steps, last, detached in ((4, False, True), (70, True, False)):
        z, w = 3 * maps(steps, 2, 4, 6, 8, channels_last=last), weights_of(4, steps)
        neuron = neurons.ilif(threshold=0.4, normalize=share, detach_reset=detached).arguments() | {
            "soft": False
        }
        for shortcut in (None, maps(steps, 2, 4, 6, 8, seed=2)):
            seen = agree(
                z, w, gates=gates, shortcut=shortcut, v0=z[0], neuron=neuron, membrane=shortcut is not None
            )
            assert seen["out"].max() == (1 if share else 4)


def test_soft_integer_spikes_pass_gradcheck(fused):
    """The clamp without the rounding, the reset kept in the graph."""
    x = torch.tensor([0.31, 1.92, -0.4, 5.05, 0.7], dtype=torch.float64)[:, None].clone().requires_grad_()
    how = {"leak": 0.25, "v_reset": None, "levels": 4, "threshold": 0.9, "soft": True, "backend": "fused"}
    for share in (False, True):
        assert torch.autograd.gradcheck(lambda x, share=share: ops.lif(x, normalize=share, **how), (x,))


def test_it_keeps_its_input(fused):
    """Two bits do not hold an integer."""
    from attsnn.ops.neuron import pack

    x = torch.rand(3, 2, 4)
    how = neurons.ilif().arguments()
    rules = [how[k] for k in ("surrogate", "strict", "detach_reset", "emit", "start")]
    constants = {k: how[k] for k in reference.CONSTANTS}
    assert pack(x, constants, *rules, False, 4, False).keep == "input"
    assert pack(x, constants, *rules, False).keep == "bits"


@pytest.mark.parametrize("cut", [1, 4])
def test_chunks_of_integer_spikes(backend, cut):
    neuron, x = neurons.ilif(backend=backend), 3 * make((9, 3, 5), None, torch.float32)
    whole, last = neuron.run(x)
    first, v = neuron.run(x[:cut])
    second, end = neuron.run(x[cut:], v)
    same_bits(torch.cat([first, second]), whole)
    same_bits(end, last)


def test_tools_take_integer_spikes(fused):
    neuron = neurons.ilif(backend="fused")
    x = (3 * torch.rand(4, 2, 3, dtype=torch.float64)).requires_grad_()
    out = neuron(x)
    wanted = torch.autograd.grad(out.sum(), x)[0]
    for backend in ("fused", "reference"):
        other = neurons.ilif(backend=backend)
        for run_it in (
            torch.compile(other, fullgraph=True),
            torch.export.export(other, (x.detach(),)).module(),
        ):
            same_bits(run_it(x).detach(), out.detach())
            close64(torch.autograd.grad(run_it(x).sum(), x)[0], wanted, 1e-12)
    tangent = torch.randn_like(x)
    plain = neurons.ilif(backend="reference")
    _, pushed = torch.func.jvp(plain, (x.detach(),), (tangent,))
    draw = torch.randn_like(pushed)
    pulled = torch.autograd.grad((plain(x) * draw).sum(), x)[0]
    close64((pushed * draw).sum(), (pulled * tangent).sum(), 1e-12)
    assert "levels=4" in repr(neuron)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"v_reset": 0.0}, "want the soft reset"),
        ({"strict": True}, "are rounded, not compared"),
        ({"emit": "membrane"}, "are what is emitted"),
        ({"learn": ("threshold",)}, "a threshold no gradient"),
        ({"surrogate": reference.arctan()}, "have a slope of their own"),
        ({"threshold": -1.0}, "want a threshold above 0"),
        ({"levels": 0}, "levels must be None or an integer from 1 to 256, got 0"),
        ({"levels": 2.5}, "levels must be None or an integer"),
        ({"levels": True}, "levels must be None or an integer"),
        ({"levels": None, "normalize": True}, "normalize divides integer spikes"),
    ],
)
def test_what_integer_spikes_do_not_go_with(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        neurons.ilif(**changes)
    arguments = {"leak": 0.25, "v_reset": None, "levels": 4, **changes}
    if arguments.pop("learn", None):
        arguments["threshold"] = torch.ones(()).requires_grad_()
    with pytest.raises(ValueError, match=sentence):
        ops.lif(torch.rand(2, 3), **arguments)


def test_a_share_of_no_levels_in_the_reference():
    with pytest.raises(ValueError, match="normalize divides integer spikes"):
        reference.lif(torch.rand(2, 3), normalize=True)


def test_a_layer_of_integer_spikes_learns(backend):
    torch.manual_seed(0)
    neuron = neurons.ilif(learn="subtract", subtract=1.0, backend=backend)
    layer = layers.SpikingLayer(nn.Linear(6, 5), neuron, norm=nn.BatchNorm1d(5)).double()
    x, target = torch.randn(4, 8, 6, dtype=torch.float64), 2 * torch.rand(8, 5, dtype=torch.float64)
    optimizer, losses = torch.optim.Adam(layer.parameters(), 0.05), []
    for _ in range(25):
        loss = (layer(x).mean(0) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert neuron.subtract.item() != 1.0
