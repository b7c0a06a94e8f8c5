"""Models: parameter counts of the spec, the registry, attention's golden values, the converter, memory."""

import subprocess
import sys

import pytest
import torch
from close import close64
from test_neuron import kept_bytes

from attsnn import attention, models, neurons
from attsnn.models import convert

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


def test_neuron_counts():
    """The paper's 106,763 neurons of the three-layer network."""
    model = models.create("ma_snn_dvs_gesture", attention=None, steps=1).eval()
    with neurons.watch(model) as seen, torch.no_grad():
        model(torch.zeros(1, 1, 2, 32, 32))
    assert sum(out.numel() for out in seen.values()) == 106_763
    assert list(seen) == [f"features.{i}.neuron" for i in range(3)] + [
        f"classifier.{i}.neuron" for i in range(2)
    ]


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
    gates = constant_weights(
        attention.attention(name, channels=4, steps=2, channel_ratio=2, temporal_ratio=1)
    )
    y = gates(generator((1, 2, 4, 3, 3)).transpose(0, 1)).transpose(0, 1)  # published [B, T, ...]
    ours = torch.tensor([y.sum(), *y[0, 0, 0].flatten()[[1, 3, 4, 6]]])
    close64(ours.double(), torch.tensor(GOLDEN[name], dtype=torch.float64), 1e-6, name)


def test_attention_of_a_linear_layer():
    gates = constant_weights(attention.attention("TCSA", steps=3, temporal_ratio=1))
    y = gates(generator((1, 3, 5)).transpose(0, 1)).transpose(0, 1)
    assert abs(y.sum().item() - 2.292346) < 1e-6
    close64(y[0, 0], torch.tensor([0, 0.208395, 0, 0.520988, 0.104198], dtype=torch.float64), 1e-6)
    assert isinstance(attention.attention("CSA", steps=3), torch.nn.Identity)  # published: TA or none


def test_ties_send_the_gradient_to_the_first_maximum():
    """In the logical order of the published reductions: (c, h, w), (t, h, w), (t, c)."""
    for name, first in (("TA", (0, 0, 0, 0, 0)), ("CA", (0, 0, 0, 0, 0)), ("SA", (0, 0, 0, 0, 0))):
        x = (
            torch.ones(2, 1, 2, 3, 3, dtype=torch.float64)
            .to(memory_format=torch.contiguous_format)
            .requires_grad_()
        )
        flat = {"TA": x.flatten(2).max(2), "CA": x.flatten(3).max(3), "SA": x.max(2)}[name].values
        peak = flat if name == "TA" else flat.max(0).values
        (grad,) = torch.autograd.grad(peak.flatten()[0], x)
        assert tuple(grad.nonzero()[0].tolist()) == first and grad.sum() == 1


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
    assert models.names() == sorted(PARAMETERS)


def test_width():
    small = models.create("ma_snn_dvs_gesture", width=0.25)
    assert small.plan.channels == (16, 32, 32) and small.plan.hidden == 64


def published(model, prefix="module."):
    """Our weights under the published names: the converter's inverse, written out by hand."""
    names = {
        "current.conv": "conv2d",
        "current.linear": "linear",
        "current.norm": "BNLayer",
        "attention.temporal.reduce": "attention.ta.sharedMLP.0",
        "attention.temporal.expand": "attention.ta.sharedMLP.2",
        "attention.channel.reduce": "attention.ca.sharedMLP.0",
        "attention.channel.expand": "attention.ca.sharedMLP.2",
        "attention.spatial.conv": "attention.sa.conv",
    }
    out = {}
    for key, value in model.state_dict().items():
        room, i, rest = key.split(".", 2)
        part, leaf = rest.rsplit(".", 1)
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
    checkpoint = {"net": published(model), "acc": 0.9, "epoch": 3, "acc_record": [0.1]}
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
    with pytest.raises(ValueError, match="is no key of a published ma_snn network"):
        convert.from_published({"module.conv9.weight": torch.ones(1)}, "ma_snn")
    with pytest.raises(ValueError, match="family must be one of ma_snn"):
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
    """Over plain PyTorch around them, the neurons add nothing of size [T, N, ...] but the input that they
    keep.
    """
    x = torch.rand(60, 2, 2, 32, 32)
    model = models.create("ma_snn_dvs_gesture", backend="fused").train()
    whole = kept_bytes(lambda: model(x).sum())
    saved = []
    for module in model.modules():
        if isinstance(module, neurons.LIF):
            module.register_forward_hook(lambda m, args, out: saved.append(args[0]))
    with torch.no_grad():
        model(x)
    inputs = sum(a.numel() * 4 for a in saved)
    for module in model.modules():
        if isinstance(module, neurons.LIF):
            module.forward = lambda x, v0=None: x * 1.0  # linear: keeps nothing
    without = kept_bytes(lambda: model(x).sum())
    assert whole - without <= inputs + 1024, (whole, without, inputs)
    eager = models.create("ma_snn_dvs_gesture", backend="reference").train()
    assert kept_bytes(lambda: eager(x).sum()) - without > 2 * (whole - without)


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
