"""Models: parameter counts of the spec, the registry, attention's golden values, the converter, memory."""

import re
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

import pytest
import torch
from close import as_exact_as_eager, close64, same_bits
from test_neuron import kept_bytes

from attsnn import attention, layers, models, neurons
from attsnn.models import convert
from attsnn.reference import CONSTANTS, rectangular

NAMES = (None, *attention.NAMES)
PARAMETERS = {  # None, TA, CA, SA, TCA, TSA, CSA, TCSA
    "ma_snn_dvs_gesture": (2324065, 2331265, 2333281, 2324119, 2340481, 2331319, 2333335, 2340535),
    "ma_snn_cifar10_dvs": (2097918, 2100718, 2185214, 2098008, 2188014, 2100808, 2185304, 2188104),
    "ma_snn_dvs_gait": (2100767, 2101215, 2188063, 2100857, 2188511, 2101305, 2188153, 2188601),
}


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("gates", NAMES)
def test_parameter_counts(name, gates):
    model = models.create(name, attention=gates)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name][NAMES.index(gates)]


@pytest.mark.parametrize(
    ("name", "half_width"),
    [("ma_snn_dvs_gesture", 0.25), ("ma_snn_cifar10_dvs", 0.5), ("ma_snn_dvs_gait", 0.25)],
)
def test_published_windows_of_the_surrogate(name, half_width):
    with torch.device("meta"):
        model = models.create(name)
    wanted = rectangular(half_width)
    assert all(layer.neuron.surrogate == wanted for layer in [*model.features, *model.classifier])


def test_neuron_counts():
    """The paper's 106,763 neurons of the three-layer network."""
    model = models.create("ma_snn_dvs_gesture", attention=None, steps=1).eval()
    with layers.watch(model) as seen, torch.no_grad():
        model(torch.zeros(1, 1, 2, 32, 32))
    assert sum(out.numel() for out in seen.values()) == 106_763
    assert list(seen) == [f"features.{i}" for i in range(3)] + [f"classifier.{i}" for i in range(2)]


# Output sum, and elements 1, 3, 4, 6 of the first map, of spec section 2.2.
GOLDEN = {
    "TA": (9.995974, 0.203999, 0.509999, 0.102000, 0.407999),
    "CA": (10.191792, 0.207996, 0.519989, 0.103998, 0.415992),
    "SA": (12.324598, 0.255736, 0.642791, 0.140323, 0.482787),
    "TCA": (5.099932, 0.104080, 0.260201, 0.052040, 0.208160),
    "TSA": (5.668403, 0.116785, 0.292918, 0.061946, 0.225765),
    "CSA": (5.792630, 0.119364, 0.299402, 0.063371, 0.230619),
    "TCSA": (2.725448, 0.055909, 0.140025, 0.028903, 0.109762),
}


def generator(shape) -> torch.Tensor:
    k = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    return (((7 * k) % 11) - 5) / 5


def constant_weights(module):
    for parameter in module.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    return module.double()


@pytest.mark.parametrize("name", GOLDEN)
def test_attention_values(name):
    gates = small_gates(name)
    y = gates(generator((1, 2, 4, 3, 3)).transpose(0, 1)).transpose(0, 1)  # published [B, T, ...]
    ours = torch.stack([y.sum(), *y[0, 0, 0].flatten()[[1, 3, 4, 6]]]).detach()
    close64(ours, torch.tensor(GOLDEN[name], dtype=torch.float64), 1e-6, name)


def test_attention_of_a_linear_layer():
    gates = constant_weights(attention.attention("TCSA", steps=3, maps=False, temporal_ratio=1))
    y = gates(generator((1, 3, 5)).transpose(0, 1)).transpose(0, 1)
    assert abs(y.sum().item() - 2.292346) < 1e-6
    close64(y[0, 0], torch.tensor([0, 0.208395, 0, 0.520988, 0.104198], dtype=torch.float64), 1e-6)
    assert isinstance(
        attention.attention("CSA", steps=3, maps=False), torch.nn.Identity
    )  # published: TA or none


# What a gate takes the maximum over, as dimensions of [T, N, C, H, W], and where along them it is attained:
# the first place comes first in that order of the dimensions and in no other.
TIES = {
    "TA": ((2, 3, 4), [(0, 1, 2), (0, 2, 0), (1, 0, 1)]),
    "CA": ((0, 3, 4), [(0, 1, 2), (0, 2, 0), (1, 0, 1)]),
    "SA": ((0, 2), [(0, 1), (1, 0)]),
}


def small_gates(name):
    sizes = {"channels": 4, "steps": 2, "channel_ratio": 2, "temporal_ratio": 1}
    return constant_weights(attention.attention(name, **sizes))


def in_channels_last(x):
    return x.movedim(2, -1).contiguous().movedim(-1, 2)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", TIES)
def test_ties_send_the_gradient_to_the_first_maximum(name, channels_last):
    """In logical order, whatever the order in memory. All else that a gate does with tied elements is alike,
    so that the gradient of its maximum is what the first has more than the others.
    """
    pooled, places = TIES[name]
    x = torch.rand(2, 3, 4, 3, 3, dtype=torch.float64)
    peaks = 1 + torch.rand([1 if d in pooled else n for d, n in enumerate(x.shape)], dtype=torch.float64)

    def at(place):
        along = dict(zip(pooled, place, strict=True))
        return tuple(slice(along[d], along[d] + 1) if d in along else slice(None) for d in range(5))

    for place in places:
        x[at(place)] = peaks
    x = (in_channels_last(x) if channels_last else x).requires_grad_()
    (grad,) = torch.autograd.grad(small_gates(name)(x).sum(), x)
    first, *others = [grad[at(place)] for place in places]
    assert all((first - other).min() > 1e-3 for other in others)
    for other in others[1:]:
        close64(other, others[0], 1e-14)


@pytest.mark.parametrize("name", attention.NAMES)
def test_gradients_of_ties_do_not_depend_on_the_layout(name):
    """Of spikes, most of which tie for the maximum."""
    x, gates = (torch.rand(2, 3, 4, 3, 3) < 0.4).double(), small_gates(name)
    weights, grads = generator(x.shape), []
    for layout in (x, in_channels_last(x)):
        leaf = layout.detach().requires_grad_()
        grads += torch.autograd.grad((gates(leaf) * weights).sum(), leaf)
    close64(grads[1], grads[0], 1e-13, name)


@pytest.mark.parametrize("name", attention.NAMES)
def test_gates_read_the_type_of_their_input(name):
    """bfloat16 from a convolution under autocast, weights in float32: as with rounded weights."""
    gates = small_gates(name).float()
    x = generator((2, 3, 4, 3, 3)).bfloat16()
    out = gates(x)
    same_bits(out, small_gates(name).bfloat16()(x))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in gates.parameters())


def tensors_in(value, where: str):
    """Where tensors hide in dicts, lists, tuples and sets."""
    if isinstance(value, torch.Tensor):
        yield where
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_in(inner, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple | set | frozenset):
        for inner in value:
            yield from tensors_in(inner, f"{where}[...]")


def stray_tensors(model: torch.nn.Module) -> list[str]:
    """The tensors that modules hold beside parameters and buffers: `.to`, state_dict and DDP miss them."""
    registered = ("_parameters", "_buffers", "_modules")
    return [
        found
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in registered
        for found in tensors_in(value, f"{name or type(module).__name__}.{attribute}")
    ]


ROW = torch.full((4,), 0.3)  # one value a channel
MODULES = {
    **{name: partial(models.create, name, width=0.25, backend="reference") for name in PARAMETERS},
    "ma_snn_dvs_gesture, learned": partial(
        models.create, "ma_snn_dvs_gesture", width=0.25, learn=tuple(neurons.MA_SNN_CONSTANTS)
    ),
    **neurons.PRESETS,
    "LIF, tensors": partial(neurons.LIF, **dict.fromkeys(CONSTANTS, ROW)),
    "LIF, learned": partial(neurons.LIF, **dict.fromkeys(CONSTANTS, ROW), learn=("leak", "v_reset")),
    "integrate_and_fire, tensors": partial(neurons.integrate_and_fire, threshold=ROW, v_reset=ROW),
    "leaky, tensors": partial(neurons.leaky, threshold=ROW, v_reset=ROW),
    "plif, tensors": partial(neurons.PLIF, threshold=ROW, v_reset=ROW, learn=("threshold",)),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_hold_parameters_and_buffers_only(name):
    """As made, and after a call: no state is kept."""
    module = MODULES[name]()
    assert not stray_tensors(module)
    plan = getattr(module, "plan", None)
    shape = (plan.steps, 1, 2, *plan.size) if plan else (3, 2, 4)
    module(torch.rand(shape, requires_grad=True)).sum().backward()
    assert not stray_tensors(module)


@pytest.mark.parametrize("name", models.names())
def test_models_hold_parameters_and_buffers_only(name):
    with torch.device("meta"):
        assert not stray_tensors(models.create(name))


def test_misuse():
    for make, sentence in (
        (lambda: models.create("ma_snn_dvs_gestur"), "did you mean 'ma_snn_dvs_gesture'"),
        (
            lambda: models.create("ma_snn_dvs_gesture", attention="TC"),
            "attention must be None or one of TA, CA",
        ),
        (
            lambda: models.create("ma_snn_dvs_gesture", steps=3),
            "temporal_ratio=5 leaves no hidden unit for 3 steps",
        ),
        (lambda: models.create("ma_snn_dvs_gesture", emit="spikes"), "emit must be one of spike, membrane"),
        (lambda: models.create("ma_snn_dvs_gesture", channels=(1, 2)), "channels must name 3 widths"),
        (lambda: attention.attention("TA"), "give steps"),
        (
            lambda: attention.attention("TCA", steps=16, keep_channels=0.5),
            "keep_channels: give channels, whose scores choose",
        ),
        (
            lambda: models.create("ma_snn_dvs_gait")(torch.zeros(8, 1, 2, 32, 32)),
            r"frames \[T, N, 2, 128, 128\]",
        ),
        (
            lambda: models.create("ma_snn_dvs_gesture")(torch.zeros(5, 1, 2, 32, 32)),
            "made for 60 steps, got x with 5",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            make()
    with pytest.raises(TypeError, match="no keyword depth; it takes attention, steps"):
        models.create("ma_snn_dvs_gesture", depth=3)


def test_names():
    resnets = [f"{kind}ms_resnet{depth}" for kind in ("", "att_") for depth in (18, 34, 104)]
    vggs = [f"att_vgg{depth}" for depth in (7, 11, 13, 16, 19)]
    pfa = ["vgg_cifar10_dvs", "vgg_ncaltech101", "vgg_dvs_gesture", "fmnist", "ms_resnet18"]
    pfa = ["fmnist_baseline", *(f"pfa_{name}" for name in pfa)]
    assert models.names() == sorted(
        [*PARAMETERS, *resnets, *vggs, *pfa, "fsvae", "fsvae_autoencoder", "fsvae_large"]
    )


POOLED = "size must be a multiple of 4, which the layers pool by, or (H, W) of multiples; got "


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"width": -1.0}, "width must be positive"),
        ({"width": float("nan")}, "width must be positive"),
        *(
            ({"size": size}, re.escape(f"{POOLED}{size!r}"))
            for size in (0, 2, 30, -4, True, 32.0, "32", (32, 30), (30, 32), (32, 0), (32,), (32, 32, 32))
        ),
        ({"hidden": 0}, "hidden must be an integer of at least 1"),
        ({"num_classes": 0}, "classes must be an integer of at least 1"),
        ({"learn": ("leak",)}, "MA-SNN learns alpha, beta, threshold"),
    ],
)
def test_sizes_that_make_no_network(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        models.create("ma_snn_dvs_gesture", **kwargs)


def test_width():
    small = models.create("ma_snn_dvs_gesture", width=0.25)
    assert small.plan.channels == (16, 32, 32) and small.plan.hidden == 64


# Where the pools of all layers, 4 or 64 in all, leave the maps as they are written here.
OBLONG = {
    "ma_snn_dvs_gesture": ((8, 20), (2, 5)),
    "ma_snn_cifar10_dvs": ((128, 64), (2, 1)),
    "ma_snn_dvs_gait": ((64, 192), (1, 3)),
}


@pytest.mark.parametrize("name", OBLONG)
def test_frames_that_are_not_square(fused, name):
    """The linear layer follows from both sides. Values and gradients: fused as the plain composition."""
    (size, maps), results = OBLONG[name], []
    draw = torch.Generator().manual_seed(1)
    x = (torch.rand(4, 2, 2, *size, dtype=torch.float64, generator=draw) < 0.2).double()
    for backend in ("fused", "reference"):
        torch.manual_seed(3)
        words = {"steps": 4, "temporal_ratio": 2, "width": 0.125, "emit": "membrane"}
        model = models.create(name, size=size, **words, backend=backend).double()
        assert model.plan.size == size and model.features(x).shape[3:] == maps
        assert model.classifier[0].current.in_features == model.plan.channels[-1] * maps[0] * maps[1]
        out = model(x)
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
        wanted = re.escape(f"[T, N, 2, {size[0]}, {size[1]}], got shape (4, 2, 2, {size[1]}, {size[0]})")
        with pytest.raises(ValueError, match=wanted):
            model(x.mT)
    assert results[0][0].std() > 1e-3
    for ours, plain in zip(*results, strict=True):
        close64(ours, plain, 1e-10)


def test_a_size_is_a_side_or_both():
    for size in (16, (16, 16), [16, 16]):
        assert models.create("ma_snn_dvs_gesture", width=0.125, size=size).plan.size == (16, 16)


@pytest.mark.parametrize("name", models.names())
def test_what_is_averaged_over_time(name):
    """Scores where a linear layer, or membranes, come last; else spikes."""
    with torch.device("meta"):
        model = models.create(name)
        assert model.averages_scores is (name.startswith("att_vgg") or "ms_resnet" in name)
        if name in PARAMETERS:
            assert models.create(name, emit="membrane").averages_scores is True


def scores_by_hand(model, x):
    """Of an MA-SNN, its classifier one step after another, the states handed on."""
    x = model.features(x).flatten(2)
    for layer in model.classifier:
        z = layer.norm(layer.current(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        z = z if layer.attention is None else layer.attention(z)
        v, emitted = None, []
        for step in z:
            out, v = layer.neuron.run(step[None], v)
            emitted.append(out[0])
        x = torch.stack(emitted)
    return x


def membranes(gates, backend):
    torch.manual_seed(3)
    words = {"emit": "membrane", "steps": 5, "size": (8, 4), "width": 0.125, "attention": gates}
    return models.create("ma_snn_dvs_gesture", **words, backend=backend).double()


@pytest.mark.parametrize("gates", ["TCSA", None])
def test_scores_of_every_step(backend, gates):
    """Values and gradients as by hand, in training; their mean is what the network returns."""
    x, results = torch.rand(5, 3, 2, 8, 4, dtype=torch.float64), []
    for f in (lambda m: m(x, every_step=True), lambda m: scores_by_hand(m, x)):
        model = membranes(gates, backend)
        scores = f(model)
        weights = torch.randn(5, 3, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        (scores * weights).sum().backward()
        results.append([scores.detach(), *(p.grad for p in model.parameters())])
    assert (results[0][0][1:] != results[0][0][:-1]).any((1, 2)).all()  # each step its own
    for ours, by_hand in zip(*results, strict=True):
        close64(ours, by_hand, 1e-11)
    for mode in (True, False):
        model.train(mode)
        close64(model(x, every_step=True).mean(0), model(x), 1e-12)


def test_a_network_that_ends_in_spikes_has_no_scores_of_a_step():
    model = models.create("ma_snn_dvs_gesture", width=0.125, size=4)
    with pytest.raises(ValueError, match=r"every_step: this network ends in spikes, .* emit='membrane'"):
        model(torch.zeros(60, 1, 2, 4, 4), every_step=True)


def published(state, prefix="module."):
    """Our weights under the published names: the converter's inverse, written out by hand."""
    names = {
        "norm": "BNLayer",
        "attention.temporal.reduce": "attention.ta.sharedMLP.0",
        "attention.temporal.expand": "attention.ta.sharedMLP.2",
        "attention.channel.reduce": "attention.ca.sharedMLP.0",
        "attention.channel.expand": "attention.ca.sharedMLP.2",
        "attention.spatial.conv": "attention.sa.conv",
    }
    out = {}
    for key, value in state.items():
        room, i, rest = key.split(".", 2)
        part, leaf = rest.rsplit(".", 1)
        names["current"] = "conv2d" if room == "features" else "linear"
        if "reduce" in part or "expand" in part:
            value = value[..., None, None, None] if room == "features" else value[..., None]
        out[f"{prefix}{'convAttLIF' if room == 'features' else 'FC'}{i}.{names[part]}.{leaf}"] = value
    return out


@pytest.mark.parametrize(
    ("name", "gates", "steps"),
    [("ma_snn_dvs_gesture", "TCSA", 60), ("ma_snn_cifar10_dvs", "CA", 20), ("ma_snn_dvs_gait", None, 8)],
)
def test_published_file_round_trip(tmp_path, name, gates, steps):
    """A checkpoint as published (legacy .t7, {"net": ...}, module. prefix) -> command line -> safetensors ->
    load.
    """
    from safetensors.torch import load_file

    model = models.create(name, attention=gates, steps=steps)
    checkpoint = {"net": published(model.state_dict()), "acc": 0.9, "epoch": 3, "acc_record": [0.1]}
    torch.save(checkpoint, tmp_path / "net.t7", _use_new_zipfile_serialization=False)
    command = [
        sys.executable,
        "-m",
        "attsnn.models.convert",
        "ma_snn",
        tmp_path / "net.t7",
        tmp_path / "net.safetensors",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    other = models.create(name, attention=gates, steps=steps)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )
    state, kwargs = convert.load_published(tmp_path / "net.t7")
    models.create(**kwargs).load_state_dict(state, strict=True)
    assert kwargs["name"] == name and kwargs["attention"] == gates


@pytest.mark.parametrize("ratio", [7, 11, 12, 22])
def test_ratios_that_not_every_gate_tells_apart(ratio):
    """11 and 12 leave 5 of the first layer's 64 channels, but 11 and 10 of the others' 128."""
    with torch.device("meta"):
        model = models.create("ma_snn_dvs_gesture", attention="CA", channel_ratio=ratio)
        state = convert.from_published(published(model.state_dict()), "ma_snn")
        other = models.create(**convert.infer_ma_snn(state))
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.state_dict().items()}


@pytest.mark.parametrize(("name", "size"), [("ma_snn_dvs_gesture", 64), ("ma_snn_dvs_gait", 64)])
def test_the_size_is_in_the_file(name, size):
    with torch.device("meta"):
        model = models.create(name, attention=None, size=size)
        state = convert.from_published(published(model.state_dict()), "ma_snn")
    assert convert.infer_ma_snn(state)["size"] == size


def test_published_frames_are_square():
    with torch.device("meta"):
        model = models.create("ma_snn_dvs_gesture", attention=None, size=(32, 64))
        state = convert.from_published(published(model.state_dict()), "ma_snn")
    with pytest.raises(ValueError, match="reads 128 cells a channel, which do not make a square frame"):
        convert.infer_ma_snn(state)


def test_published_neurons_that_learn():
    """`pa_train_self`: alpha, beta, Vthres are [C, 1, 1] or [1, F]; Vreset, never read, is dropped."""
    learn = ("alpha", "beta", "threshold")
    model = models.create("ma_snn_dvs_gesture", width=0.125, steps=10, learn=learn)
    torch.nn.init.uniform_(model.features[0].neuron.leak)
    names = {"leak": "alpha", "bias": "beta", "threshold": "Vthres"}
    theirs = {}
    for key, value in model.state_dict().items():
        room, i, rest = key.split(".", 2)
        if rest.startswith("neuron."):
            cell, layer = ("ConvIF", f"convAttLIF{i}") if room == "features" else ("IF", f"FC{i}")
            value = value[..., None, None] if room == "features" else value[None]
            theirs[f"module.{layer}.network.{cell}.{names[rest.removeprefix('neuron.')]}"] = value
            theirs[f"module.{layer}.network.{cell}.Vreset"] = torch.zeros_like(value)
    plain = {k: v for k, v in model.state_dict().items() if ".neuron." not in k}
    state = convert.from_published({**published(plain), **theirs}, "ma_snn")
    kwargs = convert.infer_ma_snn(state)
    assert kwargs["learn"] == learn
    other = models.create(**kwargs)
    other.load_state_dict(state, strict=True)
    x = (torch.rand(10, 2, 2, 32, 32) < 0.1).float()
    assert torch.equal(model.eval()(x), other.eval()(x))
    with pytest.raises(ValueError, match="is not a key of a published"):
        convert.from_published({"module.FC0.network.IF.Vother": torch.ones(1)}, "ma_snn")


ONE = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ([1, 2], "a state dict of ma_snn is wanted, got list"),
        ({"FC0.linear.bias": ONE, "module.FC0.linear.bias": ONE}, "'module.FC0.linear.bias' is there twice"),
        ({"module.FC0.linear.bias": ONE, "FC0.linear.bias": ONE}, "'FC0.linear.bias' is there twice"),
        ({"convAttLIF0.foo": ONE}, "'convAttLIF0.foo' is not a key of a published ma_snn network"),
        ({"convAttLIF0.conv2d.foo": ONE}, "is not a key of a published ma_snn network"),
        ({"convAttLIF0.attention.ca.sharedMLP.0.weight": torch.ones(3)}, r"matrix of a gate, got shape \(3,"),
    ],
)
def test_no_published_state(state, sentence):
    with pytest.raises(ValueError, match=sentence):
        convert.from_published(state, "ma_snn")


def test_gates_without_a_common_ratio():
    with torch.device("meta"):
        model = models.create("ma_snn_dvs_gesture", attention="CA", channel_ratio=4)
        state = convert.from_published(published(model.state_dict()), "ma_snn")
        state["features.2.attention.channel.reduce.weight"] = torch.empty(31, 128)
    with pytest.raises(ValueError, match=r"channel gates have no ratio in common: .*\(31, 128\)"):
        convert.infer_ma_snn(state)


def test_converter_misuse(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    torch.save({"net": Evil()}, tmp_path / "evil.t7")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.t7").write_text("no checkpoint")
    torch.save({"net": {"module.FC1.linear.weight": torch.ones(11, 2)}}, tmp_path / "part.t7")
    for file, sentence in (
        ("evil.t7", "read safely"),
        ("list.pth", "holds list"),
        ("text.t7", "read safely"),
        ("part.t7", "is missing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            convert.load_published(tmp_path / file)
    with pytest.raises(FileNotFoundError, match="no such file"):
        convert.load_published(tmp_path / "nothing.t7")
    with pytest.raises(ValueError, match="is not a key of a published ma_snn network"):
        convert.from_published({"module.conv9.weight": torch.ones(1)}, "ma_snn")
    with pytest.raises(ValueError, match="family must be one of ma_snn, ms_resnet, att_ms_resnet"):
        convert.from_published({}, "vgg")
    command = [
        sys.executable,
        "-m",
        "attsnn.models.convert",
        "ma_snn",
        tmp_path / "evil.t7",
        tmp_path / "out",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("convert: ") and "executed" not in done.stdout
    assert not (tmp_path / "out").exists()


def test_bytes_kept_by_the_gesture_network(fused):
    """Unique storages over the whole forward, T = 60, TCSA, fp32: z, pooled maps and spikes, 1.5 GB at batch
    16; the plain composition keeps more than three times as much.
    """
    x = torch.rand(60, 2, 2, 32, 32)
    kept = {}
    for backend in ("fused", "reference"):
        model = models.create("ma_snn_dvs_gesture", attention="TCSA", backend=backend).train()
        kept[backend] = kept_bytes(lambda model=model: model(x).sum()) - kept_bytes(lambda: 1 * x.sum())
    parameters = sum(p.numel() * 4 for p in model.parameters())
    assert kept["fused"] - parameters <= 1.5e9 * 2 / 16, kept
    assert kept["reference"] - parameters > 3 * (kept["fused"] - parameters), kept


def test_the_first_step_in_float32(fused, capsys):
    """Fused and reference from one seed: the loss and the gradients of the first step as exact as eager's;
    then a spike flips somewhere and two correct runs part ways.
    """
    frames = (torch.rand(8, 4, 2, 16, 16, generator=torch.Generator().manual_seed(1)) < 0.1).float()
    target = torch.eye(4)
    runs = {}
    for backend, dtype in (("fused", torch.float32), ("reference", torch.float32), ("exact", torch.float64)):
        torch.manual_seed(3)
        sizes = {"steps": 8, "width": 0.125, "num_classes": 4, "size": 16, "temporal_ratio": 2}
        name = "fused" if backend == "fused" else "reference"
        model = models.create("ma_snn_dvs_gesture", attention="TCSA", **sizes, backend=name).to(dtype)
        optimizer, runs[backend] = torch.optim.SGD(model.parameters(), 0.1), []
        for step in range(20):
            optimizer.zero_grad()
            with layers.watch(model) as seen:
                loss = torch.nn.functional.mse_loss(model(frames.to(dtype)), target.to(dtype))
            loss.backward()
            if step == 0:
                first = loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])
            runs[backend].append([v.float() for v in seen.values()])
            optimizer.step()
        runs[backend].append(first)
    (*ours, mine), (*theirs, eager), (*_, exact) = runs["fused"], runs["reference"], runs["exact"]
    for a, b, c, what in zip(mine, eager, exact, ("loss", "gradients"), strict=True):
        as_exact_as_eager(a, b, c, what)
    flips = [step for step, (a, b) in enumerate(zip(ours, theirs, strict=True)) if any(map(differ, a, b))]
    with capsys.disabled():
        print(f" first flipped spike: step {flips[0] if flips else 'none of 20'} ", end="")


def differ(a, b):
    return not torch.equal(a, b)


@pytest.mark.parametrize(("emit", "distinct"), [("spike", 10), ("membrane", 20)])
def test_training_fused_and_reference_agree(fused, emit, distinct):
    """20 optimiser steps in float64 from one seed: equal losses to 1e-9. (A loss of rates of 6 steps may
    recur.)
    """
    losses = []
    for backend in ("fused", "reference"):
        torch.manual_seed(3)
        model = models.create(
            "ma_snn_dvs_gesture", emit=emit, steps=6, width=0.125, num_classes=4, size=16, backend=backend
        ).double()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        generator = torch.Generator().manual_seed(5)
        x = (torch.rand(6, 8, 2, 16, 16, generator=generator) < 0.2).double()
        target = torch.eye(4, dtype=torch.float64)[torch.arange(8) % 4]
        history = []
        for _ in range(20):
            loss = (model(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    assert len(set(losses[0])) >= distinct  # it moves
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-9


@pytest.mark.parametrize("gates", ["TCSA", None])
def test_folded_norms(gates):
    """Inference without norms: the same numbers in float64, and nothing left of them."""
    model = models.create(
        "ma_snn_dvs_gesture", attention=gates, width=0.25, steps=10, emit="membrane"
    ).double()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
    x = (torch.rand(10, 2, 2, 32, 32) < 0.1).double()
    folded = layers.fold(model)
    assert model.training and not folded.training
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert not any("norm" in key for key in folded.state_dict())
    close64(folded(x), model.eval()(x), 1e-12)


def test_a_norm_without_statistics_is_not_folded():
    norm = torch.nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="1 has no running statistics"):
        layers.fold(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), norm))


def some_norm(features=4):
    norm = torch.nn.BatchNorm2d(features)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


def test_fold_sees_every_place_of_a_shared_module():
    """The norm stands behind the activation, whose first place is elsewhere, not behind the convolution."""
    act, convs = torch.nn.ReLU(), [torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(4, 4, 3)]
    model = torch.nn.Sequential(convs[0], act, convs[1], act, some_norm()).double().eval()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    folded = layers.fold(model)
    close64(folded(x), model(x), 1e-12)
    assert isinstance(folded[4], torch.nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("current", "kind"),
    [
        (torch.nn.ConvTranspose2d(2, 4, 3), "ConvTranspose2d"),
        (torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.ReLU()), "ReLU"),
    ],
)
@pytest.mark.parametrize("layer", ["SpikingLayer", "NormedLayer"])
def test_a_layer_that_cannot_take_its_norm(current, kind, layer):
    model = {
        "SpikingLayer": lambda: layers.SpikingLayer(current, neurons.leaky(), norm=some_norm()),
        "NormedLayer": lambda: layers.NormedLayer(current, some_norm()),
    }[layer]()
    with pytest.raises(ValueError, match=f"norm follows {kind}; it can only be folded into Linear"):
        layers.fold(torch.nn.Sequential(model))
