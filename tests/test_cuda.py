"""On a GPU: the same bits as on the CPU, any stream and graph, and large sizes."""

import copy

import pytest
import torch
from close import as_exact_as_eager, close64, same_bits
from test_neuron import NUMBERS, SHAPES, make, run
from test_pfa import SHAPES as PFA_SHAPES
from test_pfa import WAYS, module
from test_pfa import maps as pfa_maps
from test_pfa import run as run_pfa
from test_seam import GATES, MA_SNN, MS_RESNET, maps, weights_of
from test_seam import run as run_seam
from torch import nn

from attsnn import attention, layers, models, neurons, ops, reference

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


@pytest.mark.parametrize("preset", neurons.PRESETS)
def test_a_static_input(preset):
    """One step that stands for seven: its gradient is summed behind the kernel, on the CPU within it."""
    image, found = make((1, 3, 5, 7, 3), (0, 1, 3, 4, 2)), []
    for device in ("cpu", "cuda"):
        x = image.detach().to(device).requires_grad_()
        out = neurons.PRESETS[preset](backend="fused").to(device)(x, steps=7)
        out.sum().backward()
        assert x.grad.stride()[1:] == x.stride()[1:]
        found.append((out.detach().cpu(), x.grad.cpu()))
    (out, grad), (gpu_out, gpu_grad) = found
    same_bits(gpu_out, out)
    close64(gpu_grad, grad, 1e-12)


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


@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("neuron", [MA_SNN, MS_RESNET], ids=["ma_snn", "ms_resnet"])
def test_seams_equal_the_cpu(gates, channels_last, neuron):
    """In float64, every output and gradient; odd sizes, whole vectors, one step, more steps than are kept."""
    for steps, shape, pool in ((6, (3, 8, 7, 9), 2), (1, (2, 16, 8, 8), 1), (70, (2, 5, 5, 5), 1)):
        w, z = weights_of(shape[1], steps), maps(steps, *shape, channels_last=channels_last)
        sides = (side // pool for side in shape[2:])
        given = {"norm": "train", "gates": gates, "pool": pool, "neuron": neuron}
        for shortcut in (None, maps(steps, *shape[:2], *sides, seed=1)):
            cpu = run_seam("fused", z, w, shortcut=shortcut, **given)
            there = {k: v.cuda() for k, v in w.items()}
            shortcut = None if shortcut is None else shortcut.cuda()
            gpu, again = (run_seam("fused", z.cuda(), there, shortcut=shortcut, **given) for _ in range(2))
            for name, value in cpu.items():
                close64(gpu[name].cpu(), value, 1e-9, name)
                same_bits(gpu[name], again[name], f"{name}, twice")


FIRING = {
    "an amount": {**NUMBERS, "bias": 0.0, "v_reset": None, "subtract": 0.55},
    "integers": {"leak": 0.25, "v_reset": None, "levels": 4, "threshold": 0.7, "detach_reset": True},
    "shares": {"leak": 0.25, "v_reset": None, "levels": 3, "threshold": 0.7, "normalize": True},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FIRING)
def test_amounts_and_integer_spikes_equal_the_cpu(kind, dtype):
    for steps, shape in ((1, (3, 5, 7)), (6, (2, 33)), (16, (3, 64)), (70, (3, 5, 7, 3))):
        x = make((steps, *shape), None, dtype)
        v0 = make(shape, None, reference.state_dtype(x))
        cpu, gpu = (run("fused", x.to(d), v0.to(d), **FIRING[kind]) for d in ("cpu", "cuda"))
        for a, b, what in zip(gpu[:2], cpu[:2], ("out", "v"), strict=True):
            same_bits(a.cpu(), b, what)
        for key, grad in cpu[2].items():
            same_bits(gpu[2][key].cpu(), grad, key)


@pytest.mark.parametrize("gates", [None, "TCSA"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_state_of_a_seam_equals_the_cpu(gates, channels_last):
    """In and out, with both gradients."""
    for steps, neuron in ((5, MA_SNN), (70, MA_SNN), (5, MS_RESNET)):
        z, w = maps(steps, 2, 6, 5, 8, channels_last=channels_last), weights_of(6, steps)
        r = maps(steps, 2, 6, 5, 8, seed=1) if neuron is MS_RESNET else None
        found = []
        for device in ("cpu", "cuda"):
            there = {k: v.to(device) for k, v in w.items()}
            shortcut = None if r is None else r.to(device)
            given = {"norm": "train", "gates": gates, "shortcut": shortcut, "neuron": neuron}
            found.append(run_seam("fused", z.to(device), there, v0=z[0].to(device), **given))
        for name, value in found[0].items():
            close64(found[1][name].cpu(), value, 1e-9, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_counts_are_those_of_what_is_emitted(dtype, channels_last):
    """Of neurons and seams, learned constants and integer spikes among them; of many blocks."""
    torch.manual_seed(0)
    made = {
        "spikes": neurons.ms_resnet(threshold=0.2, backend="fused"),
        "learned": neurons.PLIF(channels=12, backend="fused"),
        "membranes": neurons.ma_snn(emit="relu_membrane", backend="fused"),
        "integers": neurons.ilif(threshold=0.3, backend="fused"),
    }
    x = maps(6, 4, 12, 33, 40, channels_last=channels_last, dtype=dtype).cuda()
    for name, neuron in made.items():
        layer = layers.SpikingLayer(None, neuron, norm=nn.BatchNorm2d(12)).cuda()
        for module_ in (layer.neuron, layer):
            with ops.counting() as found:
                out = module_(x).detach()
            values = out.double().round() if name == "integers" else (out != 0).double()
            assert found[0].by_step.tolist() == values.sum((1, 2, 3, 4)).long().tolist(), name
            assert found[0].by_channel.tolist() == values.sum((0, 1, 3, 4)).long().tolist(), name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("way", WAYS, ids=[fusion for _, fusion in WAYS])
@pytest.mark.parametrize("name", PFA_SHAPES)
def test_pfa_equals_the_cpu(name, way, channels_last):
    """In float64, every output and gradient; and twice the same bits. In 16 bit the map is as exact."""
    shape, rank, kernel = PFA_SHAPES[name]
    pfa = module(shape, rank, kernel, scale=way[0], fusion=way[1])
    x = pfa_maps(shape, channels_last, spikes=way[1] == "multiply")
    grad = pfa_maps(shape, channels_last, seed=1)
    cpu = run_pfa(pfa, "fused", x, grad)
    gpu, again = (run_pfa(pfa.cuda(), "fused", x.cuda(), grad.cuda()) for _ in range(2))
    for key, value in cpu.items():
        close64(gpu[key].cpu(), value, 1e-11, key)
        same_bits(gpu[key], again[key], f"{key}, twice")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        narrow = [v.to(dtype).cuda() for v in (x, grad)]
        ours, eager = (run_pfa(pfa.float(), backend, *narrow) for backend in ("fused", "reference"))
        exact = run_pfa(pfa.double(), "reference", *(v.double() for v in narrow))
        for key in ("out", "x"):
            as_exact_as_eager(ours[key], eager[key], exact[key], f"{key}, {dtype}")


@pytest.mark.parametrize("how", ["still", "batch first"])
def test_pfa_of_other_strides(how):
    shape = (4, 3, 5, 6, 6)
    pfa = module(shape)
    x = (
        pfa_maps((1, *shape[1:])).expand(shape)
        if how == "still"
        else pfa_maps((3, 4, *shape[2:])).transpose(0, 1)
    )
    grad = pfa_maps(shape, seed=1)
    cpu, gpu = run_pfa(pfa, "fused", x, grad), run_pfa(pfa.cuda(), "fused", x.cuda(), grad.cuda())
    for key, value in cpu.items():
        close64(gpu[key].cpu(), value, 1e-11, key)


def test_more_steps_than_a_launch_takes():
    """The gradient of a seam has the steps in a dimension of the grid that ends at 65,535."""
    layer = layers.SpikingLayer(None, neurons.ma_snn(backend="fused"), norm=nn.BatchNorm2d(4)).double()
    z = torch.randn(70_000, 1, 4, 1, 2, dtype=torch.float64)
    found = []
    for device in ("cpu", "cuda"):
        leaf = z.detach().to(device).requires_grad_()
        layer.to(device)(leaf).sum().backward()
        found.append(leaf.grad.cpu())
    close64(found[1], found[0], 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_seams_of_as_much_shared_memory_as_goes_unasked(dtype):
    """From 41 to 48 steps the kernel's own arrays and those of a launch are above 48 KiB only together."""
    layer = layers.SpikingLayer(None, neurons.ma_snn(backend="fused"), norm=nn.BatchNorm2d(8)).cuda()
    for steps in (40, 44, 48):
        z = torch.randn(steps, 2, 8, 8, 8, device="cuda", dtype=dtype, requires_grad=True)
        layer(z).sum().backward()
        assert z.grad.isfinite().all()


@pytest.mark.parametrize("what", ["neuron", "seam", "pfa"])
def test_graph_capture(what):
    neuron = neurons.ma_snn(backend="fused")
    if what == "pfa":
        neuron = attention.PFA(20, 4, 3, backend="fused").cuda()
    if what == "seam":
        gates = attention.attention("TCSA", channels=4, steps=20, channel_ratio=2)
        neuron = layers.SpikingLayer(None, neuron, norm=nn.BatchNorm2d(4), pool=2, attention=gates).cuda()
    x = torch.randn(20, 3, 4, 6, 6, device="cuda", requires_grad=True)

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


# A small network of each family and its input; of several that fit a name, the longest.
_SMALL = {"steps": 3, "width": 0.125}
FAMILIES = {
    **dict.fromkeys(("att_ms_resnet", "ms_resnet", "pfa_ms_resnet", "att_vgg"), (_SMALL, (2, 3, 32, 32))),
    **dict.fromkeys(("fmnist_baseline", "pfa_fmnist"), (_SMALL, (2, 1, 28, 28))),
    **dict.fromkeys(("ma_snn", "pfa_vgg"), (_SMALL, (3, 2, 2, 128, 128))),
    "ma_snn_dvs_gesture": ({"steps": 6, "width": 0.25}, (6, 2, 2, 32, 32)),
    "fsvae": ({"steps": 4}, (2, 1, 32, 32)),
    "fsvae_large": ({"steps": 4}, (2, 3, 64, 64)),
    "fsvae_autoencoder": ({}, (2, 1, 28, 28)),
}


def _trained(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of a training step, and all gradients as one tensor."""
    torch.manual_seed(1)  # what the VAE draws, on the CPU
    out = model(x)
    outputs = list(out) if isinstance(out, tuple) else [out]
    sum((o - 0.5).square().sum() for o in outputs if o.requires_grad).backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return [t.detach().cpu() for t in (*outputs, grads)]


@pytest.mark.parametrize("name", models.names())
def test_models_equal_the_cpu(name):
    """A training step in float64; then one in bf16, channels-last, has finite gradients."""
    keywords, shape = FAMILIES[max((key for key in FAMILIES if name.startswith(key)), key=len)]
    backend = {} if name == "fsvae_autoencoder" else {"backend": "fused"}  # it has no neurons
    model = models.create(name, **keywords, **backend).double().train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.weight.data.mul_(3)  # so that deep layers fire
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0  # drawn on the device
    x = torch.rand(shape, dtype=torch.float64)
    x = (x < 0.3).double() if len(shape) == 5 else x
    cpu, gpu = _trained(copy.deepcopy(model), x), _trained(copy.deepcopy(model).cuda(), x.cuda())
    for a, b in zip(gpu, cpu, strict=True):
        close64(a, b, 1e-9)
    model = model.float().cuda().to(memory_format=torch.channels_last)
    with torch.autocast("cuda", torch.bfloat16):
        *_, grads = _trained(model, x.float().cuda())
    assert grads.isfinite().all() and grads.abs().sum() > 0


def test_out_of_memory():
    """Of PyTorch's class, forward and backward; what tools that look for a batch that fits go by."""
    x = torch.randn(16, 2**22, device="cuda", requires_grad=True)  # 256 MiB
    neuron = neurons.leaky(backend="fused")
    out = neuron(x).sum()
    held = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(held)
    try:
        kept = [torch.empty(2**26, device="cuda")]
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            while True:
                kept.append(neuron(x.detach()))
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            out.backward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
