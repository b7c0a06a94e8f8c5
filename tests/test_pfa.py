"""Projected full attention: the op against the reference, as a citizen of PyTorch, and what it keeps; the
module. test_golden.py has what the published one returns.
"""

import copy
import io
import os
import subprocess
import sys

import pytest
import torch
from close import as_exact_as_eager, close64, same_bits
from torch import nn
from torch.export import Dim

from attsnn import layers, neurons, ops, reference
from attsnn.attention import PFA

# (T, N, C, H, W), R, k: more rows than a byte holds, rows that fill no vector, one of everything
SHAPES = {
    "vectors": ((4, 2, 16, 8, 8), 4, 3),
    "odd": ((3, 3, 13, 7, 5), 7, 3),
    "frames": ((6, 2, 2, 20, 21), 8, 3),
    "wide ranks": ((2, 2, 33, 6, 6), 64, 3),
    "many pixels": ((2, 1, 3, 29, 31), 17, 3),
    "by pixel": ((3, 2, 9, 4, 4), 5, 1),
    "one pixel": ((4, 3, 7, 1, 1), 3, 3),
    "one channel": ((5, 2, 1, 6, 4), 2, 1),
    "one step": ((1, 2, 8, 5, 5), 3, 3),
    "one of all": ((1, 1, 1, 1, 1), 1, 3),
    "many samples": ((2, 17, 8, 3, 3), 4, 3),
    "no sample": ((2, 0, 8, 3, 3), 4, 3),
}
WAYS = [("mean", "multiply"), ("sum", "add"), ("sum", "residual")]


def maps(shape, channels_last=False, dtype=torch.float64, seed=0, spikes=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    x = (x.clamp_min(0) if spikes else x).to(dtype)
    if channels_last:
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, shape[:2])
    return x


def module(shape, rank=3, kernel=3, dtype=torch.float64, **how) -> PFA:
    """Its weights larger than at a start, so that all factors differ."""
    torch.manual_seed(0)
    pfa = PFA(shape[0], shape[2], rank, kernel=kernel, **how)
    with torch.no_grad():
        for weight in pfa.parameters():
            weight.mul_(3)
    return pfa.to(dtype)


def run(pfa: PFA, backend: str, x: torch.Tensor, grad: torch.Tensor) -> dict[str, torch.Tensor]:
    pfa = copy.deepcopy(pfa)
    pfa.backend = backend
    x = x.detach().requires_grad_()
    out, scores = pfa.run(x)
    out.backward(grad)
    grads = {name: p.grad for name, p in pfa.named_parameters()}
    return {"out": out.detach(), "x": x.grad, **grads, **scores._asdict()}


# ---- what is computed


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=[fusion for _, fusion in WAYS])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_reference(fused, name, way, channels_last):
    shape, rank, kernel = SHAPES[name]
    pfa = module(shape, rank, kernel, scale=way[0], fusion=way[1])
    x, grad = maps(shape, channels_last, spikes=way[1] == "multiply"), maps(shape, channels_last, seed=1)
    ours, wanted = (run(pfa, backend, x, grad) for backend in ("fused", "reference"))
    for key, value in wanted.items():
        close64(ours[key], value, 1e-11, key)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    laid = [ours[key].flatten(0, 1).is_contiguous(memory_format=layout) for key in ("out", "x")]
    assert all(laid) or 0 in shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS, ids=[fusion for _, fusion in WAYS])
@pytest.mark.parametrize("name", ["vectors", "odd", "frames", "wide ranks", "one pixel"])
def test_low_precision(fused, name, way, dtype):
    shape, rank, kernel = SHAPES[name]
    narrow = module(shape, rank, kernel, torch.float32, scale=way[0], fusion=way[1])
    for channels_last in (False, True):
        x, grad = (maps(shape, channels_last, dtype, seed) for seed in (0, 1))
        ours, eager = (run(narrow, backend, x, grad) for backend in ("fused", "reference"))
        exact = run(copy.deepcopy(narrow).double(), "reference", x.double(), grad.double())
        for key, value in ours.items():
            if key in ("out", "x", *reference.PFAScores._fields):
                as_exact_as_eager(value, eager[key], exact[key], key)
            else:
                close64(value.double(), exact[key], 1e-5, key)


@pytest.mark.parametrize("shape", [(4, 2, 32, 64, 64), (8, 2, 104, 26, 27), (8, 2, 61, 33, 37)])
@pytest.mark.parametrize("fusion", reference.FUSIONS)
def test_results_that_no_cache_holds(fused, fusion, shape):
    """From 4 MB on they are stored past it where rows fill whole lines, or eight of them do."""
    pfa = module(shape, 4, dtype=torch.float32, fusion=fusion)
    for channels_last in (False, True):
        x, grad = (maps(shape, channels_last, torch.float32, seed) for seed in (0, 1))
        assert x.nbytes >= 4 << 20
        ours, wanted = (
            run(pfa, "fused", x, grad),
            run(copy.deepcopy(pfa).double(), "reference", x.double(), grad.double()),
        )
        for key in ("out", "x"):
            close64(ours[key].double(), wanted[key], 1e-6, key)


@pytest.mark.parametrize("way", WAYS, ids=[fusion for _, fusion in WAYS])
@pytest.mark.parametrize("channels_last", [False, True])
def test_gradcheck(fused, way, channels_last):
    shape = (2, 2, 3, 4, 3)
    x = maps(shape, channels_last)
    x = (x.sign() * (x.abs() + 0.5)).requires_grad_()  # off the ReLU's kink: |A| stays below it
    pfa = module(shape, scale="mean", fusion=way[1], backend="fused")
    weights = [weight.detach().clone().mul_(0.3).requires_grad_() for weight in pfa.parameters()]

    def f(x, *w):
        return ops.pfa(x, w[:2], w[2:4], w[4:], scale="mean", fusion=way[1], backend="fused").out

    assert torch.autograd.gradcheck(f, (x, *weights))


def test_the_relu_masks_what_is_silent(backend):
    """Upstream's gradient of x = 0 lacks the direct way: relu's slope there is 0, though A is positive."""
    shape = (2, 1, 2, 3, 3)
    pfa = module(shape)
    with torch.no_grad():
        for weight in (pfa.spatial_weight, pfa.temporal_weight, pfa.channel_weight):
            weight.zero_()  # nothing comes back by the means
    x, ones = maps(shape, spikes=True), torch.ones(shape, dtype=torch.float64)
    assert 0 < (x == 0).sum() < x.numel()
    assert torch.equal(run(pfa, backend, x, ones)["x"] != 0, x > 0)


@pytest.mark.parametrize("fusion", reference.FUSIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_shows(backend, fusion, value):
    """As from PyTorch's own operators: a loss that is not finite must not look healthy."""
    shape = (2, 2, 17, 5, 5)
    pfa, x = module(shape, fusion=fusion), maps(shape)
    x[1, 0, 3, 2, 1] = value
    ours, wanted = (run(pfa, b, x, torch.ones(shape).double()) for b in (backend, "reference"))
    assert not ours["out"][1, 0, 3, 2, 1].isfinite() and ours["out"][:, 1].isfinite().all()
    for key in ("out", "x", "spatial_weight", "temporal_weight", "channel_weight"):
        assert torch.equal(ours[key].isfinite(), wanted[key].isfinite()), key


# ---- how it lies in memory


@pytest.mark.parametrize("fusion", reference.FUSIONS)
def test_a_static_image(fused, fusion):
    """A stride of 0 over the steps: the same bits as of a copy, and what is kept of x is one step."""
    shape = (4, 2, 5, 6, 6)
    pfa, image = module(shape, fusion=fusion), maps((1, *shape[1:]))
    still, copied = image.expand(shape), image.expand(shape).contiguous()
    grad = maps(shape, seed=1)
    for key, value in run(pfa, "fused", copied, grad).items():
        same_bits(run(pfa, "fused", still, grad)[key], value, key)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_first(fused, channels_last):
    """A view of frames [N, T, C, H, W]: read in place, the result in one piece."""
    shape = (4, 3, 2, 6, 5)
    pfa = module(shape)
    frames = maps((shape[1], shape[0], *shape[2:]), channels_last).transpose(0, 1)
    grad = maps(shape, channels_last, seed=1)
    ours = run(pfa, "fused", frames, grad)
    wanted = run(pfa, "fused", maps_of(frames, channels_last), grad)
    for key, value in wanted.items():
        same_bits(ours[key], value, key)
    assert ours["out"].stride() == wanted["out"].stride()


def maps_of(x, channels_last):
    flat = x.flatten(0, 1)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return flat.contiguous(memory_format=layout).unflatten(0, x.shape[:2])


def test_gradients_in_any_strides(fused):
    shape = (3, 2, 9, 5, 5)
    pfa, x = module(shape), maps(shape, spikes=True)
    wanted = run(pfa, "fused", x, torch.ones(shape).double())
    for key, value in run(pfa, "fused", x, torch.ones(1).double().expand(shape)).items():
        same_bits(value, wanted[key], key)


def kept_bytes(pfa, x) -> int:
    """What autograd holds, the parameters and the result aside."""
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = pfa(x)
    for tensor in (*pfa.parameters(), out):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(held.values())


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("fusion", reference.FUSIONS)
def test_what_is_kept(fused, fusion, channels_last):
    """Of x's size x itself, or of an added map a bit a value; else the means and the map's factors."""
    steps, samples, channels, side, rank = 6, 2, 24, 12, 4
    x = maps((steps, samples, channels, side, side), channels_last, torch.float32).requires_grad_()
    pfa = module(x.shape, rank, dtype=torch.float32, fusion=fusion, backend="fused")
    pixels = side * side
    small = samples * (steps * (pixels + channels) + rank * (pixels + steps + channels))
    large = x.numel() // 8 if fusion == "add" else 4 * x.numel()
    assert kept_bytes(pfa, x) == large + 4 * small
    with torch.no_grad():
        assert kept_bytes(pfa, x) == 0


# ---- the same bits


def test_any_number_of_threads(fused):
    """Few samples and many: in ranges of rows, and sample by sample."""
    threads = torch.get_num_threads()
    try:
        for shape in ((5, 1, 24, 16, 16), (3, 5, 40, 9, 9)):
            for channels_last in (False, True):
                for scale, fusion in WAYS:
                    pfa = module(shape, 8, dtype=torch.float32, scale=scale, fusion=fusion)
                    given = (maps(shape, channels_last, torch.float32, seed) for seed in (0, 1))
                    x, grad = given
                    found = []
                    for count in (1, 2, 3, 8):
                        torch.set_num_threads(count)
                        found.append(run(pfa, "fused", x, grad))
                    for other in found[1:]:
                        for key, value in found[0].items():
                            same_bits(other[key], value, f"{key}, {shape}, {fusion}")
    finally:
        torch.set_num_threads(threads)


ISAS = ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(fused, isa):
    """Multiply-adds or products and sums: their bits differ, their errors do not."""
    program = """
import io, sys, torch
from attsnn import _extension
from attsnn.attention import PFA
torch.manual_seed(0)
out = []
for shape, rank in (((3, 2, 20, 9, 9), 4), ((2, 2, 5, 3, 3), 17), ((4, 1, 70, 6, 6), 16)):
    for fusion in ("multiply", "add", "residual"):
        pfa = PFA(shape[0], shape[2], rank, fusion=fusion, backend=sys.argv[1])
        x = torch.randn(shape).to(getattr(torch, sys.argv[2])).requires_grad_()
        pfa.to(x.dtype)
        y = pfa(x)
        y.backward(torch.randn(shape, dtype=torch.float64).to(y.dtype))
        out += [y.detach(), x.grad, *(p.grad for p in pfa.parameters())]
file = io.BytesIO()
torch.save((_extension.compiled().isa(), out), file)
sys.stdout.buffer.write(file.getvalue())
"""

    def results(*arguments):
        command = [sys.executable, "-c", program, *arguments]
        env = {**os.environ, "ATTSNN_ISA": isa}
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE)
        return torch.load(io.BytesIO(done.stdout), weights_only=True)

    ran, ours = results("fused", "float32")
    if ran != isa:
        pytest.skip("no AVX-512" if isa == "avx512" else "no AVX2")
    for a, b in zip(ours, results("reference", "float64")[1], strict=True):
        close64(a.double(), b, 1e-5, isa)


def test_twice_gives_the_same_bits(fused):
    shape = (3, 4, 20, 9, 9)
    pfa, x, grad = module(shape, 5), maps(shape), maps(shape, seed=1)
    for key, value in run(pfa, "fused", x, grad).items():
        same_bits(run(pfa, "fused", x, grad)[key], value, key)


# ---- a citizen of PyTorch


def arguments(fusion, channels_last=False, dtype=torch.float64, keep=True):
    shape = (3, 2, 5, 4, 4)
    x = maps(shape, channels_last, dtype)
    weights = [p.detach().requires_grad_() for p in module(shape, dtype=dtype).parameters()]
    return (x.requires_grad_(), *weights, 0.5, reference.FUSIONS.index(fusion), keep)


@pytest.mark.parametrize("fusion", reference.FUSIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(fused, fusion, channels_last):
    given = arguments(fusion, channels_last)
    torch.library.opcheck(torch.ops.attsnn.pfa_forward.default, given)
    torch.library.opcheck(torch.ops.attsnn.pfa_forward.default, arguments(fusion, dtype=torch.float32))
    x, *weights, scale, number, _ = (a.detach() if isinstance(a, torch.Tensor) else a for a in given)
    torch.library.opcheck(torch.ops.attsnn.pfa_forward.default, (x, *weights, scale, number, False))
    y, *small = torch.ops.attsnn.pfa_forward(x, *weights, scale, number, True)
    for wants_x in (True, False):
        given = (y, None if fusion == "add" else x, *weights[::2], *small, scale, number, wants_x)
        torch.library.opcheck(torch.ops.attsnn.pfa_backward.default, given)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(3, 2, 5, 4)}, r"\[T, N, C, H, W\]"),
        ({"x": torch.zeros(3, 2, 5, 4, 4)[..., ::2]}, "contiguous or channels-last"),
        ({"x": torch.zeros(4, 2, 5, 4, 4)}, "spatial weight must be"),
        ({"x": torch.zeros(3, 2, 6, 4, 4)}, "the temporal weight must"),
        ({"spatial": torch.zeros(3, 3, 5, 5)}, "spatial weight must be"),
        ({"spatial": torch.zeros(65, 3, 3, 3)}, "R from 1 to 64"),
        ({"channel": torch.zeros(3, 3).double()}, "type of the state"),
        ({"fusion": 3}, "there is no fusion 3"),
    ],
)
def test_what_no_wrapper_would_ask(fused, change, sentence):
    x, *weights, scale, fusion, keep = arguments("multiply", dtype=torch.float32)
    names = ("spatial", "spatial_bias", "temporal", "temporal_bias", "channel", "channel_bias")
    given = {"x": x, **dict(zip(names, weights, strict=True)), "scale": scale, "fusion": fusion, "keep": keep}
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.attsnn.pfa_forward(*(given | change).values())


@pytest.mark.parametrize("fusion", reference.FUSIONS)
def test_backward_checks_what_it_is_given(fused, fusion):
    given = arguments(fusion, dtype=torch.float32)
    x, *weights, scale, number, _ = (a.detach() if isinstance(a, torch.Tensor) else a for a in given)
    y, *small = torch.ops.attsnn.pfa_forward(x, *weights, scale, number, True)
    back = torch.ops.attsnn.pfa_backward
    own = None if fusion == "add" else x
    with pytest.raises(RuntimeError, match="x is given where the map is not added"):
        back(y, None if own is not None else x, *weights[::2], *small, scale, number, True)
    with pytest.raises(RuntimeError, match="kept must"):
        back(y, own, *weights[::2], *small[:-1], small[-1][:-1], scale, number, True)
    if own is not None:
        with pytest.raises(RuntimeError, match="x must have the shape, the type and the layout"):
            back(y, own[:, :1], *weights[::2], *small, scale, number, True)


@pytest.mark.parametrize("fusion", reference.FUSIONS)
def test_compile_with_changing_sizes(fused, fusion):
    """One graph for all batches and sides: a size that became a constant would compile again."""
    shape = (3, 2, 6, 8, 8)
    pfa = module(shape, dtype=torch.float32, fusion=fusion, backend="fused")
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: pfa(2 * x) * 3, fullgraph=True, dynamic=True, backend=counter)
    for samples, side in ((2, 8), (3, 9), (5, 7), (7, 12)):
        found = []
        for f in (compiled, lambda x: pfa(2 * x) * 3):
            x = maps((3, samples, 6, side, side + 1), dtype=torch.float32).requires_grad_()
            out = f(x)
            (grad,) = torch.autograd.grad(out.sum(), x)
            found.append((out.detach(), grad))
        for a, b in zip(*found, strict=True):
            same_bits(a, b)
    assert counter.frame_count == 1


def test_export_with_dynamic_sizes(fused):
    shape = (3, 2, 6, 8, 8)
    pfa = module(shape, dtype=torch.float32, backend="fused")
    sizes = {1: Dim("samples"), 3: Dim("height", min=2), 4: Dim("width", min=2)}
    program = torch.export.export(pfa, (maps(shape, dtype=torch.float32),), dynamic_shapes=(sizes,))
    x = maps((3, 5, 6, 7, 11), dtype=torch.float32)
    same_bits(program.module()(x), pfa(x))


def test_autocast(fused):
    """bf16 arrives from a convolution, the weights and the factors stay float32, the result is bf16."""
    conv = nn.Conv2d(2, 6, 3)
    pfa = PFA(3, 6, 4, backend="fused")
    with torch.autocast("cpu", torch.bfloat16):
        current = conv(torch.randn(6, 2, 8, 8)).unflatten(0, (3, 2))
        out, scores = pfa.run(current)
    assert current.dtype == out.dtype == torch.bfloat16 and scores.spatial.dtype == torch.float32
    out.float().square().sum().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.any() for p in (*conv.parameters(), *pfa.parameters())
    )


def test_weights_of_16_bits(backend):
    pfa = module((3, 2, 6, 8, 8), dtype=torch.bfloat16, backend=backend)
    pfa(maps((3, 2, 6, 8, 8), dtype=torch.bfloat16)).float().square().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.any() for p in pfa.parameters())


def test_only_what_is_wanted(fused):
    """Frames want no gradient, frozen weights neither."""
    shape = (3, 2, 2, 8, 8)
    pfa, x, grad = module(shape, backend="fused"), maps(shape), maps(shape, seed=1)
    wanted = run(pfa, "fused", x, grad)
    pfa(x).backward(grad)
    same_bits(pfa.spatial_weight.grad, wanted["spatial_weight"])
    x.requires_grad_()
    pfa.requires_grad_(False)(x).backward(grad)
    same_bits(x.grad, wanted["x"])
    assert not pfa(x.detach()).requires_grad


def test_refusals_have_a_sentence(fused):
    shape = (3, 2, 4, 5, 5)
    pfa, x = module(shape, backend="fused"), maps(shape).requires_grad_()
    (grad,) = torch.autograd.grad(pfa(x).square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="pfa: no double backward"):
        grad.sum().backward()
    with pytest.raises(NotImplementedError, match="pfa: no vmap"):
        torch.func.vmap(pfa)(torch.randn(2, *shape, dtype=torch.float64))


def test_double_backward_and_vmap_of_the_reference():
    shape = (2, 2, 3, 4, 4)
    pfa = module(shape, backend="reference")
    x = torch.randn(3, *shape, dtype=torch.float64)
    together = torch.func.vmap(pfa)(x)
    for one, other in zip(x, together, strict=True):
        close64(pfa(one), other, 1e-12)
    residual = module(shape, backend="reference", fusion="residual")
    assert torch.autograd.gradgradcheck(residual, maps(shape).requires_grad_())


def test_values_are_never_read(fused):
    pfa = module((3, 2, 6, 8, 8), dtype=torch.float32, backend="fused").to("meta")
    out, scores = pfa.run(torch.empty(3, 2, 6, 8, 8, device="meta"))
    assert out.shape == (3, 2, 6, 8, 8) and scores.temporal.shape == (2, 3, 3) and out.device.type == "meta"


# ---- the module


def test_module(backend):
    pfa = PFA(4, 6, 3, backend=backend)
    assert sum(p.numel() for p in pfa.parameters()) == 3 * (10 * 4 + 6 + 3)
    assert sum(p.numel() for p in PFA(4, 6, 3, kernel=1).parameters()) == 3 * (2 * 4 + 6 + 3)
    x = torch.rand(4, 2, 6, 5, 5)
    out, scores = pfa.run(x)
    same_bits(pfa(x), out)
    a = torch.einsum("nrhw,ntr,ncr->tnchw", *scores) / 3
    close64((a * x).double(), out.detach().double(), 1e-6)
    assert [tuple(s.shape) for s in scores] == [(2, 3, 5, 5), (2, 4, 3), (2, 6, 3)]
    assert not any(s.requires_grad for s in scores)
    other = PFA(4, 6, 3, backend=backend)
    other.load_state_dict({**pfa.state_dict(), "weight": torch.ones(3)})
    same_bits(other(x), out)
    nested = nn.Sequential(PFA(4, 6, 3))
    nested.load_state_dict({**{f"0.{k}": v for k, v in pfa.state_dict().items()}, "0.weight": torch.ones(3)})
    assert "PFA(steps=4, channels=6, rank=3, kernel=3, scale=mean, fusion=multiply)" in repr(pfa)


@pytest.mark.parametrize("shortcut", [False, True])
def test_in_front_of_a_neuron(backend, shortcut):
    """Norm, PFA, then shortcut and neuron; and the running statistics as of the norm alone."""
    steps, samples, channels, side = 4, 3, 6, 8
    neuron, norm = neurons.leaky(backend=backend), nn.BatchNorm2d(channels)
    pfa = PFA(steps, channels, 2, scale="sum", fusion="add", backend=backend)
    layer = layers.SpikingLayer(None, neuron, norm=copy.deepcopy(norm), attention=pfa, membrane=True).double()
    z = maps((steps, samples, channels, side, side)).requires_grad_()
    r = maps(z.shape, seed=1) if shortcut else None
    out, membrane = layer(z, r)
    normed = norm.double()(z.flatten(0, 1)).unflatten(0, (steps, samples))
    wanted = pfa(normed)
    wanted = wanted + r if shortcut else wanted
    close64(membrane, wanted, 1e-12)
    same_bits(out, neuron(membrane))
    close64(layer.norm.running_var, norm.running_var, 1e-12)
    out.sum().backward()
    assert z.grad.any() and all(p.grad.any() for p in pfa.parameters())


def wrong(shape=(3, 2, 6, 4, 4), **changes):
    pfa = PFA(3, 6, 2)
    given = {
        "x": torch.zeros(shape),
        "spatial": (pfa.spatial_weight, pfa.spatial_bias),
        "temporal": (pfa.temporal_weight, pfa.temporal_bias),
        "channel": (pfa.channel_weight, pfa.channel_bias),
    }
    return given | changes


TWO = (torch.zeros(2, 6), torch.zeros(2))
MISUSES = {
    "not a tensor": ({"x": [1.0]}, TypeError, "x must be a tensor"),
    "integers": ({"x": torch.zeros(3, 2, 6, 4, 4, dtype=torch.int64)}, TypeError, "int64"),
    "features": ({"x": torch.zeros(3, 2, 6)}, ValueError, r"maps \[T, N, C, H, W\], got shape \(3, 2, 6\)"),
    "no pixels": ({"x": torch.zeros(3, 2, 6, 0, 4)}, ValueError, "must have channels and pixels"),
    "steps": ({"x": torch.zeros(4, 2, 6, 4, 4)}, ValueError, "made for 3 steps, got x with 4"),
    "channels": (
        {"x": torch.zeros(3, 2, 5, 4, 4)},
        ValueError,
        r"temporal must be a weight \(2, 5\) and a bias \(2,\) for x .*got \(2, 6\)",
    ),
    "no pair": ({"channel": torch.zeros(2, 3)}, TypeError, "channel must be a pair of tensors, weight and b"),
    "kernel": ({"spatial": (torch.zeros(2, 3, 5, 5), TWO[1])}, ValueError, r"k 1 or 3, got shape \(2, 3, 5"),
    "rank": ({"spatial": (torch.zeros(65, 3, 3, 3), TWO[1])}, ValueError, "R from 1 to 64"),
    "bias": ({"temporal": (TWO[0], torch.zeros(3))}, ValueError, r"a bias \(2,\).* and \(3,\)"),
    "integer weights": ({"temporal": (TWO[0].long(), TWO[1])}, TypeError, "temporal must be floating-point"),
    "device": ({"temporal": (TWO[0].to("meta"), TWO[1])}, ValueError, "temporal must be on x's device cpu"),
    "scale": ({"scale": "max"}, ValueError, "scale must be one of mean, sum, got 'max'"),
    "fusion": ({"fusion": "mul"}, ValueError, "fusion must be one of multiply, add, residual, got 'mul'"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of auto, fused, reference"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(backend, name):
    changes, exception, sentence = MISUSES[name]
    with pytest.raises(exception, match=sentence):
        ops.pfa(**{"backend": backend, **wrong(**changes)})


def test_another_layout(fused):
    x = torch.zeros(3, 2, 4, 6, 4).transpose(2, 3)
    with pytest.raises(ValueError, match="contiguous or channels-last in every sample.*call x.contiguous"):
        ops.pfa(**wrong(x=x, backend="fused"))


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"channels": 2.0}, "channels must be an integer of at least 1, got 2.0"),
        ({"rank": True}, "rank must be an integer of at least 1, got True"),
        ({"rank": 65}, "rank must be from 1 to 64, got 65"),
        ({"kernel": 5}, "kernel must be 1 or 3, got 5"),
        ({"scale": "max"}, "scale must be one of mean, sum, got 'max'"),
        ({"fusion": None}, "fusion must be one of multiply, add, residual, got None"),
    ],
)
def test_misuse_of_the_module(knobs, sentence):
    with pytest.raises(ValueError, match=sentence):
        PFA(**{"steps": 3, "channels": 4, "rank": 2, **knobs})
