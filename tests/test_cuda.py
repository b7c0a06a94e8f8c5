"""On a GPU: the same bits as on the CPU, any stream and graph, and large sizes."""

import pytest
import torch
from close import as_exact_as_eager, close64, same_bits
from test_neuron import NUMBERS, SHAPES, make, run

from attsnn import models, neurons, ops, reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SHAPES)
def test_equals_the_cpu(name, dtype):
    shape, order = SHAPES[name]
    x, v0 = (
        make(shape, order, dtype),
        make(shape[1:], None, reference.state_dtype(torch.empty(0, dtype=dtype))),
    )
    for preset in ("ma_snn", "ms_resnet"):
        constants, neuron = neurons.PRESETS[preset]().constants(), neurons.PRESETS[preset]()
        rules = {k: getattr(neuron, k) for k in ("surrogate", "strict", "detach_reset", "start")}
        cpu, gpu = (run("fused", x.to(d), v0.to(d), **constants, **rules) for d in ("cpu", "cuda"))
        for a, b, what in zip(gpu[:2], cpu[:2], ("out", "v"), strict=True):
            same_bits(a.cpu(), b, what)
        for key, grad in cpu[2].items():
            same_bits(gpu[2][key].cpu(), grad, key)


@pytest.mark.parametrize("kind", reference.SURROGATES)
@pytest.mark.parametrize("steps", [1, 4, 8, 16, 33, 70])
def test_surrogates(kind, steps):
    x = make((steps, 3, 5, 7, 3), None)
    for dtype in (torch.float64, torch.float32):
        surrogate = reference.Surrogate(kind, 0.8)
        cpu, gpu = (run("fused", x.to(d, dtype), **NUMBERS, surrogate=surrogate) for d in ("cpu", "cuda"))
        same_bits(gpu[0].cpu(), cpu[0], "out")
        if dtype == torch.float64:
            close64(gpu[2]["x"].cpu(), cpu[2]["x"], 1e-12, kind)
        else:
            exact = run("reference", x, **NUMBERS, surrogate=surrogate)[2]["x"]
            as_exact_as_eager(gpu[2]["x"].cpu(), cpu[2]["x"], exact, kind)


@pytest.mark.parametrize("per_channel", [False, True])
def test_learned_constants(per_channel):
    x = make((20, 3, 6, 17, 5), (0, 1, 3, 4, 2))
    constants = {
        k: torch.rand(6 if per_channel else (), dtype=torch.float64) * 0.2 + v for k, v in NUMBERS.items()
    }
    on = lambda d: run("fused", x.to(d), **{k: v.to(d) for k, v in constants.items()})  # noqa: E731
    cpu, gpu = on("cpu"), on("cuda")
    for key, grad in cpu[2].items():
        close64(gpu[2][key].cpu(), grad, 1e-10, key)
    for key, grad in on("cuda")[2].items():
        same_bits(grad, gpu[2][key], f"{key}, twice")


def test_graph_capture():
    neuron, x = neurons.ma_snn(backend="fused"), torch.randn(20, 3, 4, 33, device="cuda", requires_grad=True)

    def step():
        return torch.autograd.grad(neuron(x).sum(), x)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    graph.replay()
    same_bits(result, expected)


def test_more_than_two_to_the_31_elements():
    torch.use_deterministic_algorithms(False)
    step = torch.randn(1, 2**19 + 8, device="cuda").bfloat16()
    out, _ = ops.lif(step.expand(4097, *step.shape[1:]), leak=0.0, threshold=0.5, backend="fused")
    assert out.numel() > 2**31
    same_bits(out[-1], (step[0] >= 0.5).bfloat16())


def test_network():
    torch.manual_seed(0)
    model = models.create("ma_snn_dvs_gesture", steps=6, width=0.25, backend="fused").double()
    x = (torch.rand(6, 2, 2, 32, 32) < 0.2).double()
    close64(model.cuda()(x.cuda()).cpu(), model.cpu()(x), 1e-6)
