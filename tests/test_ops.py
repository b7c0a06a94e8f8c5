"""The neurons' ops as citizens of PyTorch: opcheck, compile, autocast, checkpoint, vmap, and sentences for
misuse.
"""

import copy
import functools
import io
import itertools
import os
import subprocess
import sys
import warnings

import pytest
import torch
from close import same_bits
from torch.nn.utils import parametrize

from attsnn import _extension, neurons, ops, reference
from attsnn.ops import registration


def arguments(steps=5, keep="input", learned=False, state=False, dtype=torch.float64):
    """Positional arguments of attsnn::lif_forward."""
    x = torch.randn(steps, 2, 3, 4, dtype=dtype, requires_grad=True)
    constants = torch.tensor([[0.7], [0.9], [0.1], [0.4], [0.0]], dtype=dtype).expand(5, 3).contiguous()
    v0 = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True) if state else None
    rules = [1, int(keep == "bits"), 0, 0, 1, 0, 0, 0]
    learns = (0b11000 if keep == "bits" else 0b11111) if learned else 0
    numbers = [0.7, 0.9, 0.1, 0.4, 0.0, 0.5, 0.0]
    return x, v0, constants.requires_grad_() if learned else None, numbers, rules, learns, keep, state


@pytest.mark.parametrize("keep", ["input", "bits"])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_opcheck(fused, keep, learned, state):
    for steps in (5, 70):
        torch.library.opcheck(torch.ops.attsnn.lif_forward.default, arguments(steps, keep, learned, state))


@pytest.mark.parametrize("keep", ["input", "bits"])
def test_opcheck_of_a_static_input(fused, keep):
    for steps in (5, 70):
        given = arguments(1, keep, learned=True, state=True)
        torch.library.opcheck(torch.ops.attsnn.lif_forward.default, (*given, steps))


def test_opcheck_of_backward(fused):
    for keep, shared in itertools.product(("input", "bits"), (False, True)):
        x, v0, learned, numbers, rules, learns, _, _ = (
            a.detach() if isinstance(a, torch.Tensor) else a for a in arguments(5, keep, True, True)
        )
        out, v, kept = torch.ops.attsnn.lif_forward(x, v0, learned, numbers, rules, learns, keep, True)
        given = (
            torch.randn_like(out),
            torch.randn_like(v),
            x if keep == "input" else None,
            v0,
            learned,
            kept,
        )
        op = torch.ops.attsnn.lif_backward.default
        torch.library.opcheck(op, (*given, numbers, rules, learns, keep, True, shared))


def raw(steps=5, **changes):
    """lif_forward and, of what it keeps, lif_backward, with arguments that a wrapper would not give."""
    x, v0, learned, numbers, rules, learns, keep, _ = arguments(steps, "input")
    given = {
        "x": x.detach(),
        "v0": None,
        "keep": keep,
        "rules": rules,
        "grad_v": None,
        "kept": None,
    } | changes
    how = (learned, numbers, given["rules"], learns, given["keep"])
    out, _, kept = torch.ops.attsnn.lif_forward(x.detach(), given["v0"], *how, False)
    kept = kept if given["kept"] is None else given["kept"]
    back = (given["x"], given["v0"], learned, kept, *how[1:])
    torch.ops.attsnn.lif_backward(torch.ones_like(out), given["grad_v"], *back, False, False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"keep": "bit"}, "keep must be bits, input or nothing, got bit"),
        ({"keep": "nothing"}, "nothing was kept"),
        ({"keep": "bits", "kept": torch.empty(0, dtype=torch.uint8)}, "kept must be what the forward pass"),
        ({"steps": 65, "kept": torch.empty(0, dtype=torch.float64)}, "kept must be what the forward pass"),
        ({"x": torch.zeros(4, 2, 3, 4, dtype=torch.float64)}, "x must be given, in the steps"),
        ({"x": torch.zeros(5, 2, 3, 4)}, "x must be given, in the steps, type"),
        ({"grad_v": torch.zeros(2, 3, 4)}, "in the state's type"),
        ({"grad_v": torch.zeros(2, 3, 4, 1, dtype=torch.float64)}, "must lie in memory like one step"),
        ({"v0": torch.zeros(2, 3, 4)}, "in the state's type"),
        ({"rules": [1, 0, 0, 0, 1, 0, 0, 77]}, "there is no surrogate 77"),
        ({"rules": [1, 0, 0, 0, 1, 0, 9, 0]}, "there is no emit 9"),
    ],
)
def test_what_no_wrapper_would_ask(fused, changes, sentence):
    """The dispatcher ops are public: a sentence, and no read of what is not there."""
    with pytest.raises(RuntimeError, match=sentence):
        raw(**changes)


def test_steps_that_overlap_and_soft_spikes_of_float32(fused):
    x = torch.zeros(4, 24).as_strided((4, 2, 3, 3), (24, 9, 2, 2))  # as long as if it were dense
    how = (None, None, [0.0] * 6 + [0.5], [0] * 8, 0, "nothing", False)
    with pytest.raises(RuntimeError, match="must be dense"):
        torch.ops.attsnn.lif_forward(x, *how)
    soft = [1, 0, 0, 1, 1, 0, 0, 0]
    with pytest.raises(RuntimeError, match="soft spikes are computed in float64 only"):
        torch.ops.attsnn.lif_forward(torch.zeros(4, 2), *how[:3], soft, *how[4:])


def grads(f, x):
    x = x.detach().clone().requires_grad_()
    out = f(x)
    out.square().sum().backward()
    return out.detach(), x.grad


@pytest.mark.parametrize("preset", neurons.PRESETS)
def test_compile_fullgraph(fused, preset):
    neuron = neurons.PRESETS[preset](backend="fused")
    compiled = torch.compile(lambda x: neuron(2 * x) * 3, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 2, 3, 5)
    for a, b in zip(grads(compiled, x), grads(lambda x: neuron(2 * x) * 3, x), strict=True):
        same_bits(a, b, preset)


def test_compile_with_inductor(fused):
    """A channels-last convolution before and a sum after; shapes change between calls."""
    conv, neuron = torch.nn.Conv2d(2, 4, 3, padding=1), neurons.ma_snn(backend="fused")

    def net(x):
        return neuron(conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])).mean(0)

    compiled = torch.compile(net, fullgraph=True)
    for batch in (2, 3):
        x = torch.randn(4, batch, 2, 8, 8)
        for a, b in zip(grads(compiled, x), grads(net, x), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_autocast(fused):
    """bf16 arrives from a convolution, the constants and the state stay float32, the result is bf16."""
    conv, neuron = torch.nn.Conv2d(2, 4, 3), neurons.PLIF(backend="fused")
    x = torch.randn(6, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        current = conv(x).unflatten(0, (3, 2))
        out, v = neuron.run(current)
    assert current.dtype == out.dtype == torch.bfloat16 and v.dtype == torch.float32
    out.sum().backward()
    assert neuron.w.grad.dtype == conv.weight.grad.dtype == torch.float32
    assert neuron.w.grad.isfinite() and neuron.w.grad != 0


def test_twice_gives_the_same_bits(fused):
    neuron, x = neurons.leaky(backend="fused"), torch.randn(20, 3, 4, 33)
    for a, b in zip(grads(neuron, x), grads(neuron, x), strict=True):
        same_bits(a, b)


def test_module_life(backend):
    """deepcopy, a state_dict round trip, .double(), .bfloat16(), activation checkpointing."""
    neuron = neurons.LIF(
        leak=0.5, learn=("leak", "threshold"), channels=3, v_reset=torch.zeros(3), backend=backend
    )
    x = torch.randn(4, 2, 3, 5)
    same_bits(copy.deepcopy(neuron)(x), neuron(x))
    other = neurons.LIF(
        leak=0.1, learn=("leak", "threshold"), channels=3, v_reset=torch.ones(3), backend=backend
    )
    other.load_state_dict(neuron.state_dict())
    same_bits(other(x), neuron(x))
    assert set(neuron.state_dict()) == {"leak", "threshold", "v_reset"}
    assert copy.deepcopy(neuron).double()(x.double()).dtype == torch.float64
    assert copy.deepcopy(neuron).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    checkpointed = lambda x: torch.utils.checkpoint.checkpoint(neuron, x, use_reentrant=False)  # noqa: E731
    for a, b in zip(grads(checkpointed, x), grads(neuron, x), strict=True):
        same_bits(a, b)


@pytest.mark.parametrize("name", reference.CONSTANTS)
def test_a_parameter_stays_the_one_it_is(name, backend):
    own = torch.nn.Parameter(torch.tensor([0.3, 0.4, 0.5]))
    neuron = neurons.LIF(**{name: own}, backend=backend)
    (found,) = neuron.parameters()
    assert found is own and dict(neuron.named_parameters()).keys() == {name}
    neuron(torch.randn(4, 2, 3, 5)).sum().backward()
    assert own.grad.any()


def test_a_parametrised_constant(backend):
    """What `torch.nn.utils.parametrize` makes of it is what the neuron computes with."""
    neuron = neurons.LIF(
        threshold=-1.0, v_reset="threshold", learn=("threshold",), channels=3, backend=backend
    )
    parametrize.register_parametrization(neuron, "threshold", torch.nn.Softplus())
    x, softened = torch.randn(4, 2, 3, 5), torch.nn.functional.softplus(torch.full((3,), -1.0))
    same_bits(neuron(x), neurons.LIF(threshold=softened, v_reset="threshold", backend=backend)(x))
    neuron(x).sum().backward()
    assert neuron.parametrizations.threshold.original.grad.any()


def test_refusals_have_a_sentence(fused):
    x = torch.randn(3, 2, 4, requires_grad=True)
    out = ops.lif(x, backend="fused", surrogate=reference.arctan())[0]
    (grad,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="lif: no double backward"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="lif: no vmap"):
        torch.func.vmap(lambda x: ops.lif(x, backend="fused")[0])(torch.randn(2, 3, 4, 5))


@pytest.mark.parametrize("kind", ["", "soft reset, state", "by channel"])
def test_vmap_over_the_reference_is_a_loop(kind):
    """Values and gradients."""
    x = torch.randn(5, 4, 2, 3, dtype=torch.float64)
    rules = {"v_reset": None} if kind.startswith("soft") else {"leak": torch.rand(3)} if kind else {}

    def f(x):
        v0 = x[0] / 2 if kind.endswith("state") else None
        out, v = ops.lif(x, v0, **rules, backend="reference")
        return out, v, (out.square() + v).sum()

    def slope(x):
        return torch.func.grad(lambda x: f(x)[2])(x)

    for g in (lambda x: f(x)[:2], lambda x: (slope(x),)):
        together = torch.func.vmap(g)(x)
        for a, b in zip(together, zip(*map(g, x), strict=True), strict=True):
            assert b[0].any()
            same_bits(a, torch.stack(b), kind)


X = torch.randn(3, 2, 4)
MISUSES = {  # name: (arguments, keywords, exception, what the sentence says)
    "not a tensor": (([1.0],), {}, TypeError, "x must be a tensor"),
    "integers": ((torch.ones(3, 2, dtype=torch.int64),), {}, TypeError, "x must be float64.*int64"),
    "complex": ((X.to(torch.complex64),), {}, TypeError, "complex64"),
    "no time": ((torch.ones(3),), {}, ValueError, r"\[T, N, ...\] with time first.*\(3,\)"),
    "no steps": ((torch.ones(0, 2, 4),), {}, ValueError, "T = 0"),
    "state shape": ((X, torch.zeros(2, 5)), {}, ValueError, r"v0 must be .*\(2, 4\).*\(2, 5\)"),
    "state type": ((X.bfloat16(), torch.zeros(2, 4).bfloat16()), {}, TypeError, "v0 must be a torch.float32"),
    "state device": ((X, torch.zeros(2, 4, device="meta")), {}, ValueError, "v0 must be .* on cpu.*meta"),
    "channels": ((X,), {"leak": torch.ones(3)}, ValueError, r"leak must be one value or \[C\] = \[4\]"),
    "no channels": ((torch.randn(3, 4),), {"leak": torch.ones(4)}, ValueError, "has no channels"),
    "constant": ((X,), {"gain": "1"}, TypeError, "gain must be a number"),
    "constant type": ((X,), {"gain": torch.ones((), dtype=torch.int32)}, TypeError, "gain .* torch.int32"),
    "constant device": (
        (X,),
        {"bias": torch.ones((), device="meta")},
        ValueError,
        "bias must be on x's device",
    ),
    "infinite": ((X,), {"threshold": float("inf")}, ValueError, "threshold must be finite, got inf"),
    "nan": ((X,), {"v_reset": float("nan")}, ValueError, "v_reset must be finite, got nan"),
    "emit": ((X,), {"emit": "spikes"}, ValueError, "emit must be one of spike, membrane"),
    "start": ((X,), {"start": "rest"}, ValueError, "start must be one of zero, reset"),
    "surrogate's scale": (
        (X,),
        {"surrogate": reference.Surrogate("arctan", float("nan"))},
        ValueError,
        "surrogate: its scale must be positive and finite, got nan",
    ),
    "surrogate's centre": (
        (X,),
        {"surrogate": reference.Surrogate("erf", 1.0, float("inf"))},
        ValueError,
        "surrogate: its centre must be finite or None, got inf",
    ),
    "surrogate": ((X,), {"surrogate": "atan"}, TypeError, "surrogate must be one of .*rectangular"),
    "backend": ((X,), {"backend": "cuda"}, ValueError, "backend must be one of auto, fused, reference"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(backend, name):
    positional, keywords, exception, sentence = MISUSES[name]
    with pytest.raises(exception, match=sentence):
        ops.lif(*positional, **{"backend": backend, **keywords})


def test_soft_spikes_are_float64(fused):
    with pytest.raises(TypeError, match="soft: the kernels compute soft spikes in float64"):
        ops.lif(X, soft=True, backend="fused")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: reference.rectangular(0), "half_width must be a positive finite number, got 0"),
        (lambda: reference.arctan(float("nan")), "alpha must be a positive finite number, got nan"),
        (lambda: reference.erf(2, centre=float("inf")), "centre must be a finite"),
        (lambda: neurons.leaky(1.0), "tau must be greater than 1"),
        (lambda: neurons.PLIF(0.5), "tau must be greater than 1"),
        (lambda: neurons.PLIF(learn=("leak",)), "leak of PLIF follow from w, which is learned anyway"),
        (lambda: neurons.leaky(v_reset="threshold"), "v_reset of leaky is its rest too"),
        (lambda: neurons.leaky(learn=("v_reset",)), "v_reset of leaky is its rest too"),
        (lambda: neurons.LIF(v_reset="zero"), "v_reset must be a number, a tensor, None or 'threshold'"),
        (lambda: neurons.LIF(leak="0.5"), "leak must be a number or a tensor, got '0.5'"),
        (lambda: neurons.ms_resnet(threshold=None), "threshold must be a number or a tensor, got None"),
        (lambda: neurons.leaky(tau="2"), "tau must be a number or a tensor, got '2'"),
        (lambda: neurons.PLIF(tau=[2.0]), "tau must be a number or a tensor"),
        (lambda: neurons.LIF(v_reset=None, learn=("v_reset",)), "'v_reset' is not a constant with a value"),
        (
            lambda: neurons.LIF(gain=torch.ones(3, requires_grad=True)),
            "gain wants a gradient: name it in `le",
        ),
        (lambda: neurons.LIF(emit="spikes"), "emit must be one of spike, membrane"),
        (lambda: neurons.ma_snn(learn=("tau",)), "tau unknown; MA-SNN learns alpha, beta, threshold"),
    ],
)
def test_misuse_of_presets(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_values_are_never_read(fused):
    """On the meta device there are no values: shapes and strides come out all the same."""
    x = torch.empty(4, 2, 3, 5, 5, device="meta").to(memory_format=torch.preserve_format)
    out, v = ops.lif(x, backend="fused", leak=torch.ones(3, device="meta"))
    assert out.shape == x.shape and v.shape == x.shape[1:] and out.device.type == "meta"


def test_a_device_without_kernels(fused):
    assert "only for cpu and cuda" in _extension.obstacle("mps")


def test_without_the_build():
    """Unbuilt, "auto" runs the reference and says so once; "fused" raises with the build command."""
    program = """
import sys, warnings
sys.modules["attsnn._C"] = None  # importing it raises ImportError
import torch
from attsnn import models, neurons
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        out = neurons.leaky()(torch.ones(4, 2))
assert out.shape == (4, 2)
assert [str(w.message).split(":")[0] for w in caught] == ["attsnn runs the PyTorch reference"], caught
assert models.create("ma_snn_dvs_gesture", width=0.25, steps=6)(torch.zeros(6, 1, 2, 32, 32)).shape == (1, 11)
try:
    neurons.leaky(backend="fused")(torch.ones(4, 2))
except RuntimeError as error:
    assert "python setup.py build_ext" in str(error)
else:
    raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_instruction_set():
    """ATTSNN_ISA with a name that is none: the kernels do not load, and say why."""
    program = "from attsnn import _extension; print(_extension.obstacle('cpu'))"
    env = {**os.environ, "ATTSNN_ISA": "avx1024"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True
    )
    assert "ATTSNN_ISA must be baseline, avx2 or avx512, got 'avx1024'" in done.stdout


def test_import_is_light():
    """At most a quarter of what torch takes (2 s and 0.3 s on a slow processor), and no extra is imported."""
    program = """
import sys, time
start = time.process_time()
import torch
before, torchs, start = set(sys.modules), time.process_time() - start, time.process_time()
import attsnn
share = (time.process_time() - start) / torchs
heavy = {"matplotlib", "tensorboard", "scipy", "torchvision", "tyro", "tqdm", "PIL"}
assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)
print(share)
"""
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True) for _ in range(2)]
    assert all(r.returncode == 0 for r in runs), runs[0].stderr
    assert min(float(r.stdout) for r in runs) <= 0.25


ISAS = {"baseline": None, "avx2": "no AVX2", "avx512": "no AVX-512"}  # from narrow to wide: why it is skipped


@functools.cache
def run_in_a_process(isa: str | None) -> tuple[str, list[torch.Tensor]]:
    """(instruction set that ran, results and gradients of every preset and of seams) with that ATTSNN_ISA, or
    without.
    """
    program = """
import io, sys, torch
from attsnn import _extension, neurons, ops
torch.manual_seed(0)
out = []
for make in neurons.PRESETS.values():
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.randn(7, 3, 4, 33).to(dtype).requires_grad_()
        s, v = make(backend="fused").run(x)
        (s.double().sum() + v.double().square().sum()).backward()
        out += [s.detach(), v.detach(), x.grad]
for side in (2, 4, 9):
    z = torch.randn(2, 2, 70, side, side, requires_grad=True)
    weights = [torch.randn(shape, requires_grad=True) for shape in ((3, 70), (70, 3), (1, 2, 3, 3))]
    gates, norm = ops.Gates(None, weights[:2], weights[2]), ops.Norm()
    result = ops.seam(z, norm=norm, gates=gates, shortcut=z.detach(), backend="fused")
    result.out.square().sum().backward()
    out += [result.out.detach(), z.grad, *(w.grad for w in weights)]
file = io.BytesIO()
torch.save((_extension.compiled().isa(), out), file)
sys.stdout.buffer.write(file.getvalue())
"""
    environment = {k: v for k, v in os.environ.items() if k != "ATTSNN_ISA"}
    environment |= {"ATTSNN_ISA": isa} if isa else {}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return torch.load(io.BytesIO(done.stdout), weights_only=True)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_bits(fused, isa):
    """ATTSNN_ISA runs the kernels compiled for a narrower set, in a process of its own."""
    widest, expected = run_in_a_process(None)
    if list(ISAS).index(isa) > list(ISAS).index(widest):
        assert run_in_a_process(isa)[0] == widest  # a wider set than there is is not taken
        pytest.skip(ISAS[isa])
    ran, results = run_in_a_process(isa)
    assert ran == isa
    for a, b in zip(expected, results, strict=True):
        same_bits(a, b, isa)


def test_warnings_are_not_errors_in_the_fused_path(fused):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        neurons.ma_snn(backend="auto")(X)


def test_more_than_the_memory(fused):
    """In PyTorch's words, by which tools that look for a batch that fits know it; of a GPU in its class."""
    with pytest.raises(RuntimeError, match="^DefaultCPUAllocator: can't allocate memory: .*99511627776, 4,"):
        ops.lif(torch.ones(1, 4, 2**10), steps=2**40, backend="fused")

    @registration.telling_of_memory
    def fail(words: str) -> None:
        raise RuntimeError(words)

    with pytest.raises(torch.OutOfMemoryError, match="^CUDA out of memory. attsnn wants"):
        fail("CUDA out of memory. attsnn wants a tensor of shape [2]")
    with pytest.raises(RuntimeError, match="^else$") as error:
        fail("else")
    assert type(error.value) is RuntimeError
