"""The LIF family: the fused op against the reference, value and every gradient."""

import math

import pytest
import torch
from close import as_exact_as_eager, close64, same_bits
from torch.autograd.gradcheck import GradcheckError

from attsnn import neurons, ops, reference
from attsnn.reference import CONSTANTS, EMITS, SURROGATES

SHAPES = {  # name: (shape, permutation of the memory order or None)
    "one step": ((1, 2, 3, 4, 5), None),
    "one neuron": ((5, 1), None),
    "no neurons": ((3, 0, 4), None),
    "odd": ((6, 3, 5, 7, 3), None),
    "channels last": ((4, 2, 6, 5, 3), (0, 1, 3, 4, 2)),
    "permuted": ((4, 3, 5, 2, 3), (0, 4, 2, 1, 3)),
    "features": ((16, 3, 33), None),
    "flat, two tiles": ((7, 1037), None),
    "chunks": ((65, 2, 9), None),
    "long": ((101, 3, 5, 3, 3), None),
}
RULES = {
    "hard, kept": {"v_reset": -0.2},
    "hard, detached, strict": {"v_reset": 0.0, "detach_reset": True, "strict": True},
    "soft, kept": {"v_reset": None, "bias": 0.0},
    "soft, detached": {"v_reset": None, "detach_reset": True, "bias": 0.0},
    "to the threshold, as from rest": {"v_reset": 0.4, "start": "reset"},
}
NUMBERS = {"leak": 0.7, "gain": 0.9, "bias": 0.05, "threshold": 0.4}


def make(shape, order, dtype=torch.float64, device="cpu") -> torch.Tensor:
    """Normal numbers of that shape, with that order of the dimensions in memory."""
    x = torch.randn(shape, dtype=torch.float64)
    if order is not None:
        x = x.permute(order).contiguous().permute([order.index(d) for d in range(len(order))])
    return x.to(dtype).to(device)


def run(backend, x, v0=None, weights=None, **kwargs):
    """(out, v, gradients of x, v0 and every tensor keyword) of a weighted sum of out and v."""
    leaves = {
        k: t.detach().clone().requires_grad_() for k, t in kwargs.items() if isinstance(t, torch.Tensor)
    }
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    v0 = None if v0 is None else v0.detach().clone().requires_grad_()
    out, v = ops.lif(x, v0, backend=backend, **{**kwargs, **leaves})
    generator = torch.Generator().manual_seed(7)
    loss = sum((t.double() * torch.randn(t.shape, generator=generator).to(t)).sum() for t in (out, v))
    loss.backward()
    grads = {
        "x": x.grad,
        **({"v0": v0.grad} if v0 is not None else {}),
        **{k: t.grad for k, t in leaves.items()},
    }
    return out.detach(), v.detach(), grads


def settings(neuron) -> dict:
    """The keywords of `ops.lif` that make it this neuron, its learned constants as plain tensors."""
    constants = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in neuron.constants().items()}
    return constants | {k: getattr(neuron, k) for k in ("surrogate", "strict", "detach_reset", "start")}


def compare(x, v0=None, tolerance=1e-10, **kwargs) -> None:
    ours, reference_ = run("fused", x, v0, **kwargs), run("reference", x, v0, **kwargs)
    same_bits(ours[0], reference_[0], "out")
    same_bits(ours[1], reference_[1], "v")
    for name, grad in reference_[2].items():
        if x.dtype == torch.float64:
            close64(ours[2][name], grad, tolerance, f"gradient of {name}")
        else:
            exact = run("reference", x.double(), None if v0 is None else v0.double(), **kwargs)[2][name]
            as_exact_as_eager(ours[2][name], grad, exact, f"gradient of {name}")


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_and_layouts(fused, name):
    x = make(*SHAPES[name])
    v0 = make(SHAPES[name][0][1:], None)
    compare(x, **NUMBERS)
    compare(x, v0, **NUMBERS, detach_reset=True)
    out = ops.lif(x, backend="fused")[0]
    if x.numel():
        inner = [(s, n) for s, n in zip(x.stride(), x.shape, strict=True)][1:]
        assert all(a == s or n == 1 for a, (s, n) in zip(out.stride()[1:], inner, strict=True)), (
            "layout not kept"
        )


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("emit", EMITS)
def test_rules(fused, name, emit):
    for steps in (6, 70):
        x = make((steps, 3, 4, 5), None)
        compare(x, make((3, 4, 5), None), **{**NUMBERS, **RULES[name]}, emit=emit)
        compare(x, **{**NUMBERS, **RULES[name]}, emit=emit)


@pytest.mark.parametrize("kind", SURROGATES)
def test_surrogates(fused, kind):
    for centre in (None, 0.1):
        surrogate = reference.Surrogate(kind, 0.8, centre)
        compare(make((9, 2, 33), None), **NUMBERS, surrogate=surrogate)
        compare(make((9, 2, 33), None), **NUMBERS, surrogate=surrogate, detach_reset=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("preset", neurons.PRESETS)
def test_types(fused, dtype, preset):
    """Spikes and state equal to the bit; gradients no worse than eager's."""
    keywords = settings(neurons.PRESETS[preset]())
    for shape in ((12, 2, 5, 7), (70, 3, 3)):
        x = make(shape, None, dtype)
        for v0 in (None, make(shape[1:], None, torch.float32)):
            ours, eager = (ops.lif(x, v0, **keywords, backend=backend) for backend in ("fused", "reference"))
            same_bits(ours[0], eager[0], "out")
            same_bits(ours[1], eager[1], "v")
            assert ours[1].dtype == torch.float32
            assert 0 < eager[0].float().mean().item() < 1  # silent neurons would prove nothing
    compare(make((12, 2, 5, 7), None, dtype), **keywords)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", RULES)
def test_learned_constants(fused, name, per_channel):
    """Gradients of all five constants within 1e-10 of autograd's, from x, from v0, and from the bits."""
    values = {**dict.fromkeys(CONSTANTS, 0.0), **NUMBERS, **RULES[name]}
    for steps, order in ((7, None), (70, (0, 1, 3, 4, 2))):
        x = make((steps, 3, 6, 4, 5), order)
        constants = {
            k: torch.rand(6 if per_channel else (), dtype=torch.float64) * 0.2 + v
            for k, v in values.items()
            if k in CONSTANTS and v is not None
        }
        rest = {k: v for k, v in values.items() if k not in constants}
        compare(x, **constants, **rest)
        compare(x, make((3, 6, 4, 5), None), **constants, **rest, surrogate=reference.arctan())
        for alone in ("threshold", "bias", "v_reset"):  # these do with two bits a neuron and step
            if alone in constants:
                compare(x, **{**values, alone: constants[alone]})


@pytest.mark.parametrize("preset", neurons.PRESETS)
@pytest.mark.parametrize("cut", [1, 5, 33])
def test_cut_in_two_gives_the_same_bits(backend, preset, cut):
    neuron = neurons.PRESETS[preset](backend=backend)
    x = make((70, 3, 4, 5), None, torch.float32)
    whole, whole_v = neuron.run(x)
    first, v = neuron.run(x[:cut])
    second, last_v = neuron.run(x[cut:], v)
    same_bits(torch.cat([first, second]), whole, "out")
    same_bits(last_v, whole_v, "v")


def test_gradient_flows_through_the_state(fused):
    """T cut in two, the state handed over with its gradient: the gradients of the whole."""
    x = make((40, 3, 5), None).requires_grad_()
    neuron = neurons.ma_snn(backend="fused")
    neuron(x).square().sum().backward()
    whole, x.grad = x.grad, None
    first, v = neuron.run(x[:13])
    (first.square().sum() + neuron(x[13:], v).square().sum()).backward()
    close64(x.grad, whole, 1e-14)


@pytest.mark.parametrize("kind", SURROGATES)
@pytest.mark.parametrize("rules", [{"v_reset": -0.1}, {"v_reset": None, "bias": 0.0}])
def test_gradcheck(fused, kind, rules):
    """Soft spikes have true derivatives: finite differences check the whole op."""
    surrogate = reference.Surrogate(kind, 2.0)
    x = make((5, 2, 2, 2), None) * 0.5 + 0.4
    if kind in ("rectangular", "triangle"):  # stay 1e-3 off the kinks
        x = off_kinks(x, rules, surrogate)
    constants = {
        k: torch.tensor(v, dtype=torch.float64, requires_grad=True)
        for k, v in {**NUMBERS, **rules}.items()
        if v is not None
    }
    names = list(constants)

    def f(x, v0, *values):
        return ops.lif(
            x,
            v0,
            **{**rules, **dict(zip(names, values, strict=True))},
            surrogate=surrogate,
            soft=True,
            backend="fused",
        )

    v0 = (make((2, 2, 2), None) * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(f, (x.requires_grad_(), v0, *constants.values()))


def off_kinks(x, rules, surrogate) -> torch.Tensor:
    """x, redrawn until no membrane lies within 1e-3 of a kink of the surrogate (at 0 and +-scale)."""
    for _ in range(100):
        out = reference.lif(x, **{**NUMBERS, **rules}, surrogate=surrogate, soft=True, emit="membrane")[0]
        z = (out - NUMBERS["threshold"]).abs()
        if min(z.min(), (z - surrogate.scale).abs().min()) > 1e-3:
            return x
        x = torch.randn_like(x) * 0.5 + 0.4
    raise AssertionError("no input off the kinks was found")


def test_a_detached_reset_cannot_pass_gradcheck(fused):
    x = (make((4, 3), None) * 0.5 + 0.4).requires_grad_()
    f = lambda x: ops.lif(x, surrogate=reference.sigmoid(), soft=True, detach_reset=True, backend="fused")[0]  # noqa: E731
    with pytest.raises(GradcheckError):
        torch.autograd.gradcheck(f, (x,))


@pytest.mark.parametrize("kind", SURROGATES)
def test_slope_is_the_derivative_of_its_primitive(kind):
    step, scale, e = SURROGATES[kind], 0.7, 1e-6
    z = torch.linspace(-2.03, 2.01, 400, dtype=torch.float64)
    kinks = torch.tensor([0.0, scale, -scale], dtype=torch.float64)
    z = z[(z[:, None] - kinks).abs().min(1).values > 1e-3]
    difference = (step.primitive(z + e, scale) - step.primitive(z - e, scale)) / (2 * e)
    close64(step.slope(z, scale), difference, 1e-8, kind)


def test_published_vectors(backend):
    """The golden vectors of the published cells (MA-SNN, MS-ResNet), spikes, state and gradient."""
    x = torch.tensor([0.2, 0.2, 0.3, -0.1, 0.5, 0.0], dtype=torch.float64)[:, None].requires_grad_()
    out, v = neurons.ma_snn(backend=backend).run(x)
    out.sum().backward()
    assert out.flatten().tolist() == [0, 0, 1, 0, 1, 0]
    assert abs(0.3 * v.item() - 0.027) < 1e-12  # the published state is already decayed
    expected = torch.tensor([2.950392, 2.639977, 1.975239, 0.52908, 1.7636, 2.0], dtype=torch.float64)
    close64(x.grad.flatten(), expected, 1e-6)
    x = torch.tensor([0.3, 0.45, 0.6, 0.5, 0.4, 1.2], dtype=torch.float64)[:, None].requires_grad_()
    out = neurons.ms_resnet(backend=backend)(x)
    out.sum().backward()
    assert out.flatten().tolist() == [0, 1, 1, 0, 1, 1]
    close64(x.grad.flatten(), torch.tensor([1.25, 1, 1, 1.25, 1, 0], dtype=torch.float64), 1e-12)


def test_ma_snn_starts_from_nothing_with_a_bias(backend):
    """Published u_0 = x_0 also for beta != 0."""
    x = torch.full((2, 1), 0.1, dtype=torch.float64)
    out, _ = neurons.ma_snn(beta=0.1, emit="membrane", backend=backend).run(x)
    close64(out.flatten(), torch.tensor([0.1, 0.3 * 0.1 + 0.1 + 0.1], dtype=torch.float64), 1e-15)


# The loops as published, in float64; a learned constant arrives as [1 or C, 1], for x [T, N, C, L].


def fires(spike, soft):
    """The spike, with the gradient of the soft step."""
    return spike.double() + (soft - soft.detach())


def window(z, half_width):
    return ((z + half_width) / (2 * half_width)).clamp(0, 1)


def base_node(x, charge, threshold=1.0, v_reset=0.0):
    """SpikingJelly's `BaseNode`: from v = v_reset; >=, ATan(2); v_reset None is the soft reset."""
    v, spikes = torch.zeros_like(x[0]) + (0.0 if v_reset is None else v_reset), []
    for current in x:
        h = charge(v, current)
        s = fires(h >= threshold, torch.atan(math.pi * (h - threshold)) / math.pi)
        v = h - s * threshold if v_reset is None else (1 - s) * h + s * v_reset
        spikes.append(s)
    return torch.stack(spikes), v


def if_node(x, v_reset=0.0):
    return base_node(x, lambda v, current: v + current, v_reset=v_reset)


def lif_node(x, tau, v_reset=0.0, *, decay_input=True, **_):
    rest = 0.0 if v_reset is None else v_reset
    if decay_input:
        return base_node(x, lambda v, current: v + (current - (v - rest)) / tau, v_reset=v_reset)
    return base_node(x, lambda v, current: v - (v - rest) / tau + current, v_reset=v_reset)


def plif_node(x, w, threshold=1.0, v_reset=0.0):
    rest = 0.0 if v_reset is None else v_reset
    return base_node(x, lambda v, current: v + (current - (v - rest)) * torch.sigmoid(w), threshold, v_reset)


def ma_snn_cell(x, leak, bias, threshold):
    """The released code's cell: the reset goes to the threshold; decay and beta come after it."""
    state, spikes = torch.zeros_like(x[0]), []
    for current in x:
        u = state + current
        s = fires(u >= threshold, window(u - threshold, 0.25))
        v = s * threshold + (1 - s) * u
        state = leak * v + bias
        spikes.append(s)
    return torch.stack(spikes), v


def mem_update(x):
    """MS-ResNet's: 0 < u < 1 is the window, the reset is detached."""
    u, s, spikes = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for current in x:
        u = 0.25 * u * (1 - s.detach()) + current
        s = fires(u > 0.5, window(u - 0.5, 0.5))
        spikes.append(s)
    return torch.stack(spikes), u * (1 - s.detach())


def lif_spike(x):
    """FSVAE's: |u| < 0.5 is the window, the reset is not detached."""
    u, s, spikes = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for current in x:
        u = 0.25 * u * (1 - s) + current
        s = fires(u > 0.2, window(u, 0.5))
        spikes.append(s)
    return torch.stack(spikes), u * (1 - s)


RESTS = torch.tensor([-0.3, 0.0, -0.1, 0.2])
ALL_THREE = ("alpha", "beta", "threshold")
EQUATIONS = {  # name: (preset, published loop of x and of the preset's parameters and buffers)
    "IF": (neurons.integrate_and_fire, if_node),
    "IF, rest": (lambda: neurons.integrate_and_fire(v_reset=-0.2), lambda x: if_node(x, -0.2)),
    "IF, soft": (lambda: neurons.integrate_and_fire(v_reset=None), lambda x: if_node(x, None)),
    "LIF": (neurons.leaky, lambda x: lif_node(x, 2.0)),
    "LIF, rest": (lambda: neurons.leaky(3.0, v_reset=-0.3), lambda x: lif_node(x, 3.0, -0.3)),
    "LIF, soft": (lambda: neurons.leaky(3.0, v_reset=None), lambda x: lif_node(x, 3.0, None)),
    "LIF, rests at zeros": (
        lambda: neurons.leaky(v_reset=torch.zeros(4)),
        lambda x, **buffers: lif_node(x, 2.0, **buffers),
    ),
    "LIF, rests": (lambda: neurons.leaky(v_reset=RESTS), lambda x, **buffers: lif_node(x, 2.0, **buffers)),
    "LIF, whole input": (
        lambda: neurons.leaky(3.0, decay_input=False),
        lambda x: lif_node(x, 3.0, decay_input=False),
    ),
    "LIF, whole input, rest": (
        lambda: neurons.leaky(3.0, v_reset=-0.3, decay_input=False),
        lambda x: lif_node(x, 3.0, -0.3, decay_input=False),
    ),
    "LIF, whole input, soft": (
        lambda: neurons.leaky(3.0, v_reset=None, decay_input=False),
        lambda x: lif_node(x, 3.0, None, decay_input=False),
    ),
    "PLIF": (neurons.PLIF, plif_node),
    "PLIF, rest": (lambda: neurons.PLIF(v_reset=-0.3), lambda x, w: plif_node(x, w, v_reset=-0.3)),
    "PLIF, soft": (lambda: neurons.PLIF(v_reset=None), lambda x, w: plif_node(x, w, v_reset=None)),
    "PLIF, channels": (lambda: neurons.PLIF(3.0, channels=4), plif_node),
    "PLIF, learned threshold": (lambda: neurons.PLIF(threshold=0.3, learn=("threshold",)), plif_node),
    "PLIF, thresholds": (lambda: neurons.PLIF(threshold=torch.full((4,), 0.3)), plif_node),
    "PLIF, learned rests": (lambda: neurons.PLIF(v_reset=-0.2, learn=("v_reset",), channels=4), plif_node),
    "PLIF, rests": (lambda: neurons.PLIF(v_reset=RESTS), plif_node),
    "MA-SNN": (lambda: neurons.ma_snn(beta=0.1), lambda x: ma_snn_cell(x, 0.3, 0.1, 0.3)),
    "MA-SNN, learned": (lambda: neurons.ma_snn(learn=ALL_THREE), ma_snn_cell),
    "MA-SNN, learned, channels": (lambda: neurons.ma_snn(learn=ALL_THREE, channels=4), ma_snn_cell),
    "MS-ResNet": (neurons.ms_resnet, mem_update),
    "FSVAE": (neurons.fsvae, lif_spike),
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_textbook_equations(backend, name):
    """Spikes equal; state and every gradient, of learned constants too, equal to rounding."""
    preset, equation = EQUATIONS[name]
    neuron = preset().double()
    neuron.backend = backend
    with torch.no_grad():  # a value of its own for each channel that learns
        for parameter in neuron.parameters():
            parameter.add_(0.2 * torch.rand_like(parameter))
    x = (2 * make((12, 5, 4, 25), None)).requires_grad_()
    weights = make(x.shape, None), make(x.shape[1:], None)

    def gradients(out, v, leaves):
        loss = sum((t * weight).sum() for t, weight in zip((out, v), weights, strict=True))
        return torch.autograd.grad(loss, leaves)

    tensors = {**dict(neuron.named_parameters()), **dict(neuron.named_buffers())}
    copies = {k: t.detach().clone().requires_grad_(t.requires_grad) for k, t in tensors.items()}
    out, v = neuron.run(x)
    published, published_v = equation(x, **{k: t.view(-1, 1) for k, t in copies.items()})
    assert 0 < published.mean() < 1
    same_bits(out.detach(), published.detach(), "spikes")
    close64(v.detach(), published_v.detach(), 1e-12, "v")
    ours = gradients(out, v, [x, *neuron.parameters()])
    theirs = gradients(published, published_v, [x, *(t for t in copies.values() if t.requires_grad)])
    for what, a, b in zip(("x", *dict(neuron.named_parameters())), ours, theirs, strict=True):
        close64(a, b, 1e-10, f"gradient of {what}")


def test_same_bits_for_any_number_of_threads(fused):
    x = make((20, 5, 4, 31, 33), None, torch.float32)
    constants = {k: torch.full((4,), v) for k, v in NUMBERS.items()}
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                [run("fused", x, **constants), run("fused", x, **{k: c[0] for k, c in constants.items()})]
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            same_bits(a[0], b[0])
            for name in a[2]:
                same_bits(a[2][name], b[2][name], f"gradient of {name}")


@pytest.mark.parametrize("kind", reference.SURROGATES)
@pytest.mark.parametrize("emit", reference.EMITS)
def test_nan_shows_wherever_the_reference_shows_it(fused, kind, emit):
    """A neuron maps NaN to no spike: the gradient alone tells a training that there was one."""
    x = make((3, 2, 4), None)
    x[1, 0, 1], x[0, 1, 2] = math.nan, math.inf
    for detach in (False, True):
        given = {**NUMBERS, "surrogate": reference.Surrogate(kind, 0.8), "emit": emit, "detach_reset": detach}
        ours, plain = (run(backend, x, **given) for backend in ("fused", "reference"))
        for a, b, what in ((ours[0], plain[0], "out"), (ours[1], plain[1], "v")):
            assert torch.equal(a.isnan(), b.isnan()), what
        seen, wanted = (result[2]["x"].isnan() for result in (ours, plain))
        assert seen[wanted].all()
        # A spike that nobody emits and that no reset hands a gradient has a slope all the same: 0 times NaN.
        assert torch.equal(seen, wanted) or (detach and emit != "spike")


def test_gradients_of_any_strides(fused):
    x = make((5, 3, 4, 6), None).requires_grad_()
    for weigh in (
        lambda out: out.sum(),  # expanded, stride 0
        lambda out: out.sum(0).square().sum(),  # expanded over T
        lambda out: (
            out.permute(3, 1, 0, 2).contiguous() * torch.arange(5.0).view(1, 1, 5, 1).double()
        ).sum(),
        lambda out: out[1:, :, ::2].square().sum(),
    ):
        grads = []
        for backend in ("fused", "reference"):
            x.grad = None
            weigh(ops.lif(x, **NUMBERS, backend=backend)[0]).backward()
            grads.append(x.grad)
        close64(*grads, 1e-12)
    for outputs in ((0,), (1,)):  # the gradient of the other output is None
        grads = []
        for backend in ("fused", "reference"):
            x.grad = None
            sum(ops.lif(x, **NUMBERS, backend=backend)[i].square().sum() for i in outputs).backward()
            grads.append(x.grad)
        close64(*grads, 1e-12)
    x32 = x.detach().float().requires_grad_()  # the final state alone, from bits
    ops.lif(x32, backend="fused", detach_reset=True)[1].sum().backward()
    assert x32.grad.isfinite().all()


def test_views_that_are_not_dense(fused):
    base = make((4, 6, 8, 5), None)
    for x in (base[:, :, ::2], base[:, 1:4], base.transpose(0, 1), base[1:].transpose(2, 3)):
        compare(x, **NUMBERS)


def test_an_input_shown_t_times(fused):
    """Stride 0 over T: same results, and no copy of the input is made."""
    image = make((3, 4, 5, 5), None, torch.float32).requires_grad_()
    shown, copied = image.expand(6, *image.shape), image.repeat(6, 1, 1, 1, 1)
    same_bits(ops.lif(shown, backend="fused")[0], ops.lif(copied, backend="fused")[0])
    (grad,) = torch.autograd.grad(ops.lif(shown, backend="fused")[0].square().sum(), image)
    (expected,) = torch.autograd.grad(ops.lif(copied, backend="fused")[0].square().sum(), image)
    assert torch.allclose(grad, expected)
    bytes_ = kept_bytes(lambda: ops.lif(shown, backend="fused", final_state=False)[0])
    assert bytes_ == image.numel() * 4


def kept_bytes(f) -> int:
    """Bytes of the distinct storages that autograd holds for f's result."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        f()
    return sum(storages.values())


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 16, 60, 70])
def test_bytes_kept_by_one_layer(fused, steps):
    x = make((steps, 2, 8, 16, 16), None, torch.float32).requires_grad_()
    n = x[0].numel()
    bits = kept_bytes(lambda: neurons.ms_resnet(backend="fused")(x))
    assert bits == steps * n // 4, "two bits a neuron and step, and nothing else"
    learned = neurons.LIF(learn=("threshold", "bias"), detach_reset=True, backend="fused")
    assert kept_bytes(lambda: learned(x)) <= bits + 5 * 4 + 8  # and the constants
    state = (steps - 1) // 32 * n * 4 if steps > 64 else 0
    for neuron in (neurons.ma_snn, neurons.fsvae, neurons.leaky):
        assert kept_bytes(lambda neuron=neuron: neuron(backend="fused")(x)) == x.numel() * 4 + state
    with torch.no_grad():
        assert kept_bytes(lambda: neurons.ma_snn(backend="fused")(x)) == 0
    kept = torch.ops.attsnn.lif_forward(x, None, None, [0.0] * 6 + [0.5], [0] * 8, 0, "nothing", False)
    assert kept[1].numel() == kept[2].numel() == 0


@pytest.mark.parametrize("preset", neurons.PRESETS)
@pytest.mark.parametrize("steps", [1, 3, 4, 7, 70])
def test_a_static_input(backend, preset, steps):
    """x [1, N, ...] with `steps` is x T times: spikes, state, and a gradient that is summed over steps."""
    image = torch.randn(1, 3, 40, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(steps, 1, 1, 1, 7, generator=torch.Generator().manual_seed(2))

    def run(dtype, backend, shared):
        neuron, x = neurons.PRESETS[preset](backend=backend), image.to(dtype, copy=True).requires_grad_()
        if shared:
            out, state = ops.lif(x, steps=steps, **neuron.arguments())
            same_bits(neuron(x, steps=steps), out)
        else:
            out, state = neuron.run(x.expand(steps, -1, -1, -1, -1))
        assert out.shape == (steps, *image.shape[1:])
        (out * weight.to(dtype)).sum().backward()
        return out.detach(), state.detach(), x.grad

    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        out, state, grad = run(dtype, backend, True)
        expected = run(dtype, "reference", False)
        same_bits(out, expected[0])
        same_bits(state, expected[1])
        found[dtype] = grad, expected[2]
    close64(*found[torch.float64], 1e-14)
    if steps > 7:  # float32 and float64 part ways at some spike
        return
    image = image.bfloat16().double()
    weight = weight.bfloat16()
    exact = run(torch.float64, "reference", False)
    assert (exact[0] == out).all()
    as_exact_as_eager(*found[torch.bfloat16], exact[2])


@pytest.mark.parametrize(("shape", "steps"), [((2, 3), 3), ((1, 3), 0), ((3, 3), 1)])
def test_steps_that_do_not_fit(backend, shape, steps):
    with pytest.raises(ValueError, match="steps must be T"):
        ops.lif(torch.zeros(shape), steps=steps, backend=backend)


@pytest.mark.parametrize("preset", ["leaky", "ms_resnet"])  # one keeps x and checkpoints, one two bits
def test_thousands_of_steps(fused, preset):
    compare(make((4096, 2, 3), None), make((2, 3), None), **settings(neurons.PRESETS[preset]()))


def test_a_window_of_two_to_the_31_elements(fused):
    """Indices past 2^31, forward and back: the neurons give what some of them give by themselves."""
    if free_gib() < 12:
        pytest.skip("less than 12 GiB free")
    torch.use_deterministic_algorithms(False)  # filling 8 GB with NaN takes longer than the test
    steps, neuron = 4097, neurons.ms_resnet(backend="fused")
    image, weight = torch.randn(2, 2**19 + 8).bfloat16()  # of 16 bits what takes less time than half
    places = torch.linspace(0, image.numel() - 1, 64).long()

    def run_on(image, weight):
        x = image.expand(steps, -1).requires_grad_()
        out, v = neuron.run(x)
        return out, v.detach(), torch.autograd.grad(out, x, weight.expand(steps, -1))[0]

    out, v, grad = run_on(image, weight)
    assert out.numel() == grad.numel() > 2**31
    few_out, few_v, few_grad = run_on(image[places], weight[places])
    assert 0 < few_out.float().mean() < 1 and (few_grad != 0).float().mean() > 0.1
    same_bits(out[:, places], few_out, "out")
    same_bits(v[places], few_v, "v")
    same_bits(grad[:, places], few_grad, "gradient of x")


def free_gib() -> float:
    try:
        with open("/proc/meminfo") as f:
            available = next(line for line in f if line.startswith("MemAvailable"))
        return int(available.split()[1]) / 2**20
    except (OSError, StopIteration):
        return math.inf


def test_lists_agree_with_the_kernels(fused):
    from attsnn.ops import neuron

    assert fused.neurons == list(reference.neurons)
    assert fused.surrogates == list(SURROGATES)
    assert fused.emits == list(EMITS)
    assert (fused.checkpoint_above, fused.checkpoint_every) == (
        neuron.CHECKPOINT_ABOVE,
        neuron.CHECKPOINT_EVERY,
    )


def test_the_reference_contracts_nothing():
    """add(alpha=), lerp and addcmul round once where the kernels round twice."""
    from pathlib import Path

    source = (Path(reference.__file__).parent / "neuron.py").read_text()
    assert not any(word in source for word in ("alpha=", "lerp", "addcmul", "addcdiv", "baddbmm"))
