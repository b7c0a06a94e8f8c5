"""Profiles of networks: the spec's tables, counts against the tensors themselves, and a profile's manners."""

import copy
import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as every_module

from attsnn import attention, layers, models, neurons, ops
from attsnn.profile import MODELS, PUBLISHED, Costs, Profile, compare, profile
from attsnn.profile.records import Layer, Neurons

GESTURE = (1_179_648, 75_497_472, 37_748_736, 2_097_152, 2_816)  # MACs a step, spec/attention_snn.md
CIFAR = (9_437_184, *[75_497_472] * 4, 524_288, 2_560)


def frames(steps, n, size, share=0.1):
    draw = torch.Generator().manual_seed(3)
    x = torch.randint(1, 4, (steps, n, 2, size, size), generator=draw).float()
    return x * (torch.rand(x.shape, generator=draw) < share)


def lively(net):
    """In evaluation mode and with spikes: the running statistics are those of a batch."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            module.bias.data.uniform_(0, 0.5)
    return net


def settled(net, x):
    with torch.no_grad():
        lively(net).train()(x)
    return net.eval()


@pytest.mark.parametrize(
    ("name", "size", "steps", "macs", "count"),
    [
        ("ma_snn_dvs_gesture", 32, 3, GESTURE, 106_763),
        ("ma_snn_cifar10_dvs", 128, 1, CIFAR, 248_074),
        ("ma_snn_dvs_gait", 128, 1, (*CIFAR[:-1], 5_376), 248_085),
    ],
)
def test_macs_and_neurons_of_ma_snn(name, size, steps, macs, count, backend):
    net = models.create(name, attention=None, steps=steps, backend=backend).eval()
    with torch.no_grad(), profile(net, read=False) as p:
        net(frames(steps, 1, size))
    assert [row.dense / steps for row in p.rows] == [*macs]
    assert p.total.neurons == count and p.total.parameters == sum(q.numel() for q in net.parameters())


@pytest.mark.parametrize(
    ("depth", "convolutions", "count"),
    [(18, 1.6763e9, 2_308_096), (34, 3.5260e9, 3_562_496), (104, 11.6184e9, 7_225_344)],
)
def test_macs_and_neurons_of_att_ms_resnet(depth, convolutions, count, fused):
    """At 224 pixels: stem, 3x3, shortcuts, classifier."""
    net = models.create(f"att_ms_resnet{depth}", backend="fused").eval()
    with torch.no_grad(), profile(net, read=False) as p:
        net(torch.randn(1, 3, 224, 224))
    found = {"stem": 0.0, "shortcut": 0.0, "classifier": 0.0, "3x3": 0.0}
    for row in p.rows:
        found[next((part for part in found if part in row.layer), "3x3")] += row.dense
    assert found["stem"] == 118_013_952 and found["classifier"] == 512_000
    assert found["3x3"] == pytest.approx(convolutions, rel=1e-4)
    assert found["shortcut"] == pytest.approx(32.11e6, rel=1e-3)
    assert p.total.neurons == count and not p.left_out


def test_gates_of_the_paper():
    """Table 5: CA of the three-layer network takes 276,480 multiply-accumulates at T = 60, r = 16."""
    net = models.create("ma_snn_dvs_gesture", attention="CA", channel_ratio=16).eval()
    with torch.no_grad(), profile(net, read=False, per_step=True) as p:
        net(frames(60, 1, 32))
    refined = 60 * (64 * 32**2 + 128 * 16**2 + 128 * 8**2)
    assert p.gates - refined == 276_480
    once = p.with_costs(per_step=False)
    assert once.gates - refined == 4_608 and once.energy() < p.energy()


def test_spikes_from_the_published_activity():
    """.173 x 106,763 neurons x 60 steps = 1.108 M spikes."""
    sizes, p = (64 * 32**2, 128 * 16**2, 128 * 8**2, 256, 11), Profile(Costs(), 1000)
    found = {}
    for i, size in enumerate(sizes):
        spikes = round(0.173 * size * 1000)
        record = Neurons(by_step=[spikes] * 60, updates=60 * 1000 * size, shape=(size,), steps=60)
        found[str(i)] = Layer(str(i), neurons=record)
    p.fill(found, 1000, 0, {})
    assert p.nasar == p.nasfr == pytest.approx(0.173, abs=1e-6)
    assert p.spikes == pytest.approx(p.nasar * p.total.neurons * 60)
    assert round(p.spikes / 1e6, 3) == 1.108
    assert p.rate_by_step("total") == pytest.approx([0.173] * 60, abs=1e-6)


# ---- what the kernels counted, and what the tensors hold
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_rates(backend, mode):
    """Over several batches of several sizes, in all and by step, as `watch` sees them."""
    torch.manual_seed(1)
    net = models.create("ma_snn_dvs_gesture", attention="TCSA", width=0.125, size=16, steps=6,
                        temporal_ratio=2, backend=backend)  # fmt: skip
    getattr(settled(net, frames(6, 4, 16)), mode)()
    batches, seen = [frames(6, n, 16) for n in (2, 3)], []
    twin = copy.deepcopy(net)
    with profile(net) as p:
        for x in batches:
            net(x)
    for x in batches:
        with models.watch(twin) as emitted:
            twin(x)
        seen.append({name: e.double() for name, e in emitted.items()})
    assert p.samples == 5
    for name, rate in p.rates().items():
        whole = torch.cat([part[name] for part in seen], 1)
        assert rate == pytest.approx((whole != 0).double().mean().item()) and rate > 0
        assert p.rate_by_step(name) == pytest.approx((whole != 0).double().flatten(1).mean(1).tolist())
        assert p[name].output == tuple(whole.shape[2:])
        channels = (whole != 0).flatten(3) if whole.dim() > 3 else (whole != 0)[..., None]
        assert p.layers[name].neurons.by_channel == channels.sum((0, 1, 3)).tolist()
    assert p.nasar == pytest.approx(p.spikes / p.total.neurons / 6)


LAYERS = {
    "borders": nn.Conv2d(6, 4, 3, padding=1),
    "strides": nn.Conv2d(6, 4, (3, 5), stride=(2, 3), padding=(1, 0), bias=False),
    "dilation": nn.Conv2d(6, 4, 3, dilation=2, padding=2),
    "groups": nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "same": nn.Conv2d(6, 4, 3, padding="same"),
    "circular": nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"),
    "transposed": nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
    "transposed, groups": nn.ConvTranspose2d(6, 4, 4, stride=2, groups=2, dilation=2),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_synaptic_operations(kind):
    """As many as weights of one add up, each layer's own way, and of a border fewer than the rate says."""
    layer = copy.deepcopy(LAYERS[kind])
    net = nn.Sequential(layer)
    x = (torch.rand(5, 6, 9, 11, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    with profile(net, samples=5) as p:
        net(x)
    ones = copy.deepcopy(layer).double()
    nn.init.ones_(ones.weight)
    if ones.bias is not None:
        nn.init.zeros_(ones.bias)
    want = ones(x.double()).sum().item()
    assert p["0"].synaptic * 5 == pytest.approx(want, abs=1e-6) and p["0"].macs == 0
    assert p["0"].additions * 5 == pytest.approx(want + (layer(x).numel() if layer.bias is not None else 0))
    with profile(net, samples=5) as real:
        net(x + 0.5)
    places = x.numel() if "transposed" in kind else layer(x).numel()
    assert real["0"].macs * 5 == places * layer.weight[0].numel() and real["0"].synaptic == 0


@pytest.mark.parametrize("layer", [nn.Linear(7, 3), nn.Conv1d(7, 3, 3), nn.Conv3d(2, 3, 3, padding=1)])
def test_other_dimensions(layer):
    shape = {nn.Linear: (4, 6, 7), nn.Conv1d: (4, 7, 12), nn.Conv3d: (4, 2, 5, 6, 7)}[type(layer)]
    x = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)).float()
    net = nn.Sequential(layer)
    with profile(net, samples=4) as p:
        net(x)
    ones = copy.deepcopy(layer)
    nn.init.ones_(ones.weight), nn.init.zeros_(ones.bias)
    assert p["0"].synaptic * 4 == ones(x).sum().item()
    assert p["0"].dense * 4 == layer(x).numel() * layer.weight[0].numel()


def made(emit=None, **how):
    neuron = neurons.ma_snn(emit="relu_membrane") if emit else neurons.ilif(threshold=0.3, **how)
    first = layers.SpikingLayer(nn.Linear(6, 8), neuron)
    return nn.Sequential(first, layers.SpikingLayer(nn.Linear(8, 5), neurons.leaky()))


def test_what_values_are():
    """Spikes, integers of I-LIF, as they are and divided by their levels, and membranes, by their values."""
    x = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(0))
    found = {}
    for name, net in {
        "integer": made(),
        "shares": made(normalize=True, levels=3),
        "real": made("membrane"),
    }.items():
        torch.manual_seed(0)
        for module in net.modules():
            if isinstance(module, nn.Linear):
                nn.init.uniform_(module.weight, 0, 1)
        with profile(net) as p:
            net(x)
        (found[name],) = p.layers["1"].synapses.values()
        found[name + "'s spikes"] = p.layers["0"].neurons.spikes
    assert found["integer"].values == found["shares"].values == "integer" and found["real"].values == "real"
    for name in ("integer", "shares"):
        assert found[name].spikes == found[name + "'s spikes"] > 0
        assert found[name].fan_out == 5 * found[name].spikes
    assert found["real"].fan_out == 0 and found["real"].dense == 4 * 3 * 8 * 5


def test_where_values_come_from():
    """Through pools, views and concatenations; a residual network's shortcuts read currents."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = layers.SpikingLayer(nn.Conv2d(2, 4, 3, padding=1), neurons.leaky(threshold=0.1))
            self.two = layers.SpikingLayer(nn.Conv2d(2, 4, 3, padding=1), neurons.leaky(threshold=0.2))
            self.three = nn.Linear(8 * 9, 5)

        def forward(self, x):
            a = self.one(x)
            pooled = F.max_pool2d(self.two(x).flatten(0, 1), 2).unflatten(0, x.shape[:2])
            small = F.max_pool2d(a.flatten(0, 1), 2).unflatten(0, x.shape[:2])
            return self.three(torch.cat([pooled, small], 2).flatten(2)).mean(0)

    net, x = Net(), 3 * torch.rand(3, 2, 2, 6, 6)
    with profile(net) as p:
        net(x)
    (record,) = p.layers["three"].synapses.values()
    assert [*record.feeders] == ["two"] and record.values == "binary" and not record.first
    assert "of two, which feeds it" in p.explain("three")
    assert p.layers["one"].synapses["one.current"].first

    resnet = settled(models.create("ms_resnet18", width=0.125, steps=2), torch.randn(4, 3, 32, 32))
    with torch.no_grad(), profile(resnet) as p:
        resnet(torch.randn(2, 3, 32, 32))
    shortcut = p.layers["stages.1.0.shortcut"].synapses["stages.1.0.shortcut.current"]
    assert shortcut.values == "real" and not shortcut.feeders
    assert "of stages.0.1.second, whose current it reads" in p.explain("stages.1.0.shortcut")
    assert p["stages.1.0.shortcut"].macs > 0 and p["stages.1.0.first"].macs == 0
    assert p["stages.1.0.second"].synaptic > 0


def test_a_static_image():
    """Convolved once, T times by the papers' count; the twin looks once."""
    net = models.create("att_ms_resnet18", width=0.125, steps=3).eval()
    with torch.no_grad(), profile(net) as p:
        net(torch.randn(2, 3, 32, 32))
    stem = 7 * 7 * 16 * 16 * 3 * 8
    assert p["stem"].macs == stem and p["stem"].dense == 3 * stem
    assert p["stem"].energy["papers"] == pytest.approx(4.6e-3 * 3 * stem)
    looks = sum(t for row in p.rows if (t := row.dense / (1 if row.layer == "classifier" else 3)))
    assert p.twin == pytest.approx(4.6e-3 * looks)


def test_the_spiking_vae():
    """Prefix passes count, T (T + 1) / 2 steps in training; a transposed convolution's input reaches
    k^2 outputs at most, not s^2 times as many; the first layer adds for each output (the published counter
    has both otherwise).
    """
    net = models.create("fsvae", size=16, widths=(4, 6), hidden=(8, 8), latent=5, k=3, steps=4)
    lively(net).train()
    images = torch.rand(3, 1, 16, 16) * 2 - 1
    with profile(net) as p:
        net(images)
    steps = 1 + 2 + 3 + 4
    assert p.layers["posterior.0"].synapses["posterior.0.current"].rows == 3 * steps
    assert p["posterior.0"].dense == steps * 10 * 8
    assert p["decoder.0"].dense == 4 * (6 * 4 * 4) * (9 * 4)
    first = p["encoder.0"]
    outputs = 4 * 8 * 8
    assert first.macs == outputs * 9  # computed once: the image stands still
    assert first.additions == first.macs + outputs + 4 * outputs  # biases once, and neurons at each step
    assert p["final"].macs > 0 and p.samples == 3

    net.eval()
    with profile(net, samples=6) as p:
        for _ in range(2):
            net.sample(3)
    assert p["prior.0"].dense == 4 * 5 * 8 and p["decoder.1"].neurons == 4 * 16 * 16
    with profile(net) as p:
        net.sample(3)
    with pytest.raises(ValueError, match=r"the network itself was not called.*samples=N"):
        p.total  # noqa: B018


def test_products_of_matrices():
    """Spikes meet real values, spikes meet spikes; einsum is named as left out."""

    class Net(nn.Module):
        def forward(self, q, k):
            torch.einsum("bij,bkj->bik", q, k)
            return q @ k.transpose(-1, -2)

    net, draw = Net(), torch.Generator().manual_seed(0)
    spikes = (torch.rand(2, 4, 5, generator=draw) < 0.4).float()
    other = (torch.rand(2, 3, 5, generator=draw) < 0.4).float()
    real = torch.rand(2, 3, 5, generator=draw)
    for b, want in ((other, (spikes @ other.mT).sum()), (real, spikes.sum() * 3)):
        with profile(net, samples=2) as p:
            net(spikes, b)
        assert p.total.synaptic * 2 == want.item() and p.total.macs == 0
        assert p.left_out == {"einsum": 1} and "Not counted: einsum, 1 calls" in str(p)
    with profile(net, samples=2) as p:
        net(spikes + 0.5, real)
    assert p.total.macs * 2 == 2 * 4 * 3 * 5 and p.total.synaptic == 0
    costs = Costs()  # lemaire: operations alone
    assert p.energy("lemaire") == pytest.approx(1e-3 * (costs.e_mul + costs.e_add) * p.total.macs)


@pytest.mark.parametrize("name", ["TCSA", "CSA", "pruned", "PFA", "alone"])
def test_gates_count_wherever_they_stand(name, backend):
    """Read by a layer, called, composed, or outside of one: the same counts."""
    if name == "PFA":
        gates = attention.PFA(4, 6, 3, backend=backend)
    elif name == "pruned":
        gates = attention.attention("CA", channels=6, channel_ratio=2, keep_channels=0.5)
    elif name == "alone":
        gates = attention.ChannelAttention(6, 2)
    else:
        gates = attention.attention(name, channels=6, steps=4, channel_ratio=2, temporal_ratio=2)
    x = torch.rand(4, 3, 6, 5, 5)
    outside = nn.Sequential(gates, layers.SpikingLayer(None, neurons.leaky(backend=backend)))
    with profile(outside) as p:
        outside(x)
    values, want = 4 * 6 * 25, {"TA": 2 * 4 * 2, "CA": 2 * 6 * 3, "SA": 2 * 9 * 25}
    kinds = {"TCSA": ("TA", "CA", "SA"), "CSA": ("CA", "SA"), "pruned": ("CA",), "alone": ("CA",)}
    if name == "PFA":
        rank = 3 * (4 * 9 * 25 + 2 * 4 * 6 + 4 * 6 * 25) + 4 * 6 * 3
        assert p.gates == rank + values
    else:
        assert p.gates == sum(want[kind] for kind in kinds[name]) + len(kinds[name]) * values
    if name == "alone":
        return
    inside = nn.Sequential(layers.SpikingLayer(None, neurons.leaky(backend=backend), attention=gates))
    with profile(inside) as within:
        inside(x)
    assert within.gates == p.gates


# ---- models of energy
# ------------------------------------------------------------------------------------------


def example():
    """Of docs/energy.md: two convolutions of neurons on two frames of two events."""
    net = nn.Sequential(
        layers.SpikingLayer(nn.Conv2d(1, 2, 3, padding=1, bias=False), neurons.leaky(threshold=0.4)),
        layers.SpikingLayer(nn.Conv2d(2, 1, 3, padding=1, bias=False), neurons.leaky(threshold=9.0)),
    )
    nn.init.ones_(net[0].current.weight)
    x = torch.zeros(2, 1, 1, 4, 4)
    x[0, 0, 0, 0, 0] = x[1, 0, 0, 2, 2] = 1
    with torch.no_grad(), profile(net) as p:
        net(x)
    return p


def test_the_worked_example():
    """By hand, as docs/energy.md has it."""
    p = example()
    # An event in the corner reaches 4 places of 2 maps, one inside 9: 26 additions, and each a current of 1,
    # half of which is charged: 0.5 fires at 0.4. In step 2 the first 8 neurons are at rest again.
    assert p["0"].synaptic == 2 * (4 + 9) and p["0"].spikes == 26 and p["0"].neurons == 32
    assert p["0"].rate == 26 / 64 and p.rate_by_step("0") == [8 / 32, 18 / 32]
    fl = 9 * 4 * 4 * 1 * 2
    assert p["0"].dense == 2 * fl and p["1"].dense == 2 * 288
    assert p["0"].energy["papers"] == pytest.approx(4.6e-3 * 2 * fl * 2 / 32)
    assert p["1"].energy["papers"] == pytest.approx(0.9e-3 * 2 * 288 * 26 / 64)
    # Of the spikes of step 1 (the corner's 2x2 places of two maps) one is a corner, two lie at a border, one
    # is inside: 4 + 6 + 6 + 9; of step 2 (rows and columns 1 to 3) 4 inside, 4 at a border, 1 in a corner.
    assert p["1"].synaptic == 2 * (4 + 6 + 6 + 9) + 2 * (4 * 9 + 4 * 6 + 4) == 178
    assert p["1"].additions == 178 + 32 and p["1"].multiplications == 32 and p["1"].macs == 0
    assert p["1"].energy["operations"] == pytest.approx(1e-3 * (0.9 * 210 + 3.7 * 32))
    traffic = 4 * 178 + 2 * 4 * 32
    assert p["1"].energy["memory"] == pytest.approx(1e-3 * (0.9 * 210 + 3.7 * 32 + 24.96 * traffic))
    weights = 10 * 18 * 4 / 8192  # pJ of 32 bits of a memory as large as the weights
    states, queue = 10 * 16 * 4 / 8192, 10 * 4000 / 8192
    spikes, reached = 26 * 2, 52 * 1 * 9 // 2  # 26 spikes, each by 9 positions of one map
    assert spikes == 52 and reached == 234
    want = 0.1 * (234 + 234) + 3.2 * 2 * 26 + 26 * queue + 234 * weights + 2 * 234 * states
    want += 3.2 * 32 + 2 * 32 * states  # its neurons leak, and none fires
    assert p["1"].energy["lemaire"] == pytest.approx(1e-3 * want)
    assert p.twin == pytest.approx(4.6e-3 * 2 * (fl + 288)) and p.r_ee() == p.twin / p.energy()
    page = (Path(__file__).parents[1] / "docs" / "energy.md").read_text()
    assert f'>>> print(p.explain("1"))\n{p.explain("1")}\n' in page


def test_costs():
    p = example()
    cheap = p.with_costs(e_mac=2.3, e_ac=0.45)
    assert cheap.energy() == pytest.approx(p.energy() / 2)
    assert cheap.energy("operations") == pytest.approx(p.energy("operations") / 2)
    for wrong in ({"e_mac": -1.0}, {"e_ac": math.nan}, {"e_mac": 0.1}):
        with pytest.raises(ValueError, match="e_mac" if "e_ac" not in wrong else "e_ac"):
            Costs(**wrong)
    assert Costs().access(8192) == 10 and Costs().access(4096) == 5 and Costs().access(1e9) == 100
    with pytest.raises(ValueError, match="model must be one of papers"):
        p.energy("guess")


def test_reasons_hold_the_numbers():
    p = example()
    text = p.explain("1")
    for part in ("FL       = k^2 h w c_in c_out / groups = 3 * 3 * 4 * 4 * 2 * 1 = 288 MACs a step",
                 "Phi      = 0.406250: 26 / 64 of 0, which feeds it",
                 "papers   = e_ac T FL Phi = 0.9 pJ * 2 * 288 * 0.406250 = 0.211 nJ",
                 "sum of 26.0 input spikes, each by the outputs that it reaches = 178.0",
                 "additions  = synaptic 178.0 + neurons 32.0 = 210.0"):  # fmt: skip
        assert part in text, text
    with pytest.raises(KeyError, match="no layer 'two' ran; those that did: 0, 1"):
        p.explain("two")
    total = p.explain("total")
    assert "NASAR      = spikes / (neurons * steps) = 26 / 96 = 0.270833" in total
    assert f"r_EE       = twin / papers = {p.r_ee():.4f}" in total


def test_inputs_that_are_not_read(tmp_path):
    """The papers' model holds; what is not known is not a number, and no 0."""
    net = nn.Sequential(
        layers.SpikingLayer(nn.Linear(3, 4), neurons.leaky(threshold=0.01)), nn.Linear(4, 2), layers.Rate()
    )
    x = torch.rand(5, 3, 3)
    with profile(net) as whole, profile(net, read=False) as p:
        net(x)
    assert p.rates() == whole.rates() and p["1"].energy["papers"] == whole["1"].energy["papers"]
    assert math.isnan(p.energy("operations")) and math.isnan(p["1"].synaptic)
    found = json.loads(p.json())
    assert found["total"]["energy"]["memory"] is None and found["total"]["macs"] is None
    assert "Inputs were not read" in str(p) and "NaN" not in p.json() and "nan" not in str(p) + p.csv()
    assert "unknown: inputs were not read" in p.explain("1")
    assert "1: the first layer's input was not read" in p.explain("0")
    p.save(tmp_path / "p.csv")


def test_forms(tmp_path):
    p = example()
    rows = list(csv.DictReader(io.StringIO(p.csv())))
    assert [row["layer"] for row in rows] == ["0", "1", "total"] and rows[1]["output"] == "1x4x4"
    assert float(rows[2]["papers_nj"]) == p.energy() and float(rows[0]["rate"]) == p["0"].rate
    found = json.loads(p.json())
    assert found["counts"]["1"]["synapses"]["1.current"]["fan_out"] == 178 and found["samples"] == 1
    assert len(p.markdown().splitlines()[2].split("|")) == len(p.markdown().splitlines()[0].split("|"))
    for suffix in ("csv", "json", "md", "txt"):
        p.save(tmp_path / f"p.{suffix}")
    assert (tmp_path / "p.csv").read_text() == p.csv()
    with pytest.raises(ValueError, match="path must end in .csv"):
        p.save(tmp_path / "p.png")


# ---- manners
# ------------------------------------------------------------------------------------------


def test_nothing_changes_and_nothing_stays(backend):
    """The same bits, forwards and backwards; no hook anywhere, also where the block ends in an error."""
    net = models.create(
        "ma_snn_dvs_gesture", width=0.125, size=16, steps=5, temporal_ratio=2, backend=backend
    )
    x, found = frames(5, 2, 16, 0.5), []
    hooks = [dict(m.__dict__) for m in net.modules()]
    for ask in (False, True):
        net.zero_grad()
        torch.manual_seed(0)
        twin = copy.deepcopy(net)
        if ask:
            with profile(twin):
                out = twin(x)
        else:
            out = twin(x)
        out.square().sum().backward()
        found.append([out.detach(), *(q.grad for q in twin.parameters()), *twin.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    with pytest.raises(ValueError, match="frames"), profile(net):
        net(x[0])
    assert [m.__dict__.keys() for m in net.modules()] == [before.keys() for before in hooks]
    assert not any(v for k, v in vars(every_module).items() if k.startswith("_global_forward"))
    assert not torch.overrides._get_current_function_mode_stack()


def test_before_the_end_and_of_what_cannot_be():
    net = nn.Sequential(layers.SpikingLayer(nn.Linear(3, 4), neurons.leaky()))
    with profile(net) as p:
        with pytest.raises(RuntimeError, match="leave its `with` block first"):
            p.rows  # noqa: B018
        net(torch.rand(2, 3, 3))
    assert repr(p) == "Profile(1 layers)"
    with (
        pytest.raises(ValueError, match=r"profile\(\) sees nothing of what torch.compile runs"),
        profile(torch.compile(net)),
    ):
        pass
    with pytest.raises(ValueError, match="nn.DataParallel"), profile(nn.DataParallel(net)):
        pass
    with pytest.raises(TypeError, match="e_max"), profile(net, e_max=3):
        pass


def test_inside_of_a_larger_network():
    """Layers of ours in any module; two profiles at once; a layer that nobody called has no row."""
    part = layers.SpikingLayer(nn.Linear(3, 4), neurons.leaky(threshold=0.01))
    net = nn.ModuleDict({"part": part, "idle": nn.Linear(2, 2), "head": nn.Linear(4, 2)})
    net.forward = lambda x: net["head"](net["part"](x).mean(0))
    x = torch.rand(5, 3, 3)
    with profile(net) as p, profile(part) as own:
        net(x)
    assert list(p.layers) == ["part", "head"] and p.samples == own.samples == 3
    assert list(own.layers) == ["SpikingLayer"] and own.spikes == p.spikes
    assert p.layers["head"].synapses["head"].feeders == {"part": 3 * 4}


def test_neurons_of_others():
    """A module of one's own that calls the op has a row, and feeds the next layer; outside it is named."""

    class Own(nn.Module):
        def forward(self, x):
            return ops.lif(x, threshold=0.3)[0]

    net, x = nn.Sequential(nn.Linear(3, 4), Own(), nn.Linear(4, 2)), torch.rand(5, 3, 3)
    with torch.no_grad(), profile(net) as p:
        out = net[1](net[0](x))
        net(x)
        ops.lif(x)
    assert p["1"].rate == pytest.approx(out.mean().item()) and p.samples == 3
    assert [*p.layers["2"].synapses["2"].feeders] == ["1"]
    assert p.left_out == {"neurons outside of the network's modules": 1}


def test_compare():
    torch.manual_seed(0)
    nets = {
        name: settled(
            models.create("ma_snn_dvs_gesture", attention=attention, width=0.125, size=16, steps=4,
                          temporal_ratio=2),
            frames(4, 4, 16),
        ).train()
        for name, attention in (("TCSA", "TCSA"), ("none", None))
    }  # fmt: skip
    labels = torch.arange(3)
    found = compare(nets, ((frames(4, 3, 16), labels) for _ in range(2)), published=PUBLISHED)
    assert found.base == "none" and found.r_ee("none") == 1
    ours, plain = found.profiles["TCSA"], found.profiles["none"]
    assert found.r_ee("TCSA") == pytest.approx(plain.energy() / ours.energy())
    # r_EE = E_base / (E_base + Delta E), Delta E = e_mac Delta MAC - e_ac Delta AC
    delta = ours.energy() - plain.energy()
    assert found.r_ee("TCSA") == pytest.approx(plain.energy() / (plain.energy() + delta))
    assert ours.samples == plain.samples == 6 and all(net.training for net in nets.values())
    nets["TCSA"].eval()
    right = (nets["TCSA"](frames(4, 3, 16)).argmax(1) == labels).float().mean().item()
    assert found.accuracy["TCSA"] == pytest.approx(right)
    head, rows = found.cells()
    assert rows[0][head.index("published r_EE")] == "3.4" and "r_EE / none" in str(found)
    assert found.markdown().count("\n") == 4
    with pytest.raises(ValueError, match="base must be one of TCSA, none"):
        compare(nets, frames(4, 3, 16), base="other")
    assert not compare(nets, frames(4, 3, 16)).accuracy and set(MODELS) == set(ours.total.energy)
