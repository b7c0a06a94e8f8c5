"""Networks with projected full attention: counts, the compositions written out, training, misuse."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from close import close64, same_bits
from test_models import stray_tensors
from torch import nn

from attsnn import layers, models, neurons
from attsnn.attention import PFA
from attsnn.models.ms_resnet import MSResNet
from attsnn.models.pfa_ms_resnet import PLAN
from attsnn.reference import arctan, triangle

BACKBONES = {"cifar10_dvs": 9_268_746, "ncaltech101": 9_688_165, "dvs_gesture": 12_827_246}


def made(name, **keywords):
    with torch.device("meta"):
        return models.create(name, **keywords)


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- the spec's counts
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keywords", "ranks", "gates"),
    [
        ("cifar10_dvs", {}, 5 * 8, 16_240),
        ("cifar10_dvs", {"steps": 10, "rank": 16}, 5 * 16, 30_880),
        ("cifar10_dvs", {"steps": 10, "rank": 64}, 5 * 64, 123_520),
        ("ncaltech101", {}, 5 * 64, 136_320),
        ("ncaltech101", {"rank": 8}, 5 * 8, 17_040),
        ("dvs_gesture", {"parity": True}, 4 * 32 + 64, 100_672),
        ("dvs_gesture", {}, 5 * 32, 5 * 32 * 204 + 32 * (2 + 128 + 256 + 512 + 512)),
        ("dvs_gesture", {"parity": True, "attention": None}, 0, 0),
        ("cifar10_dvs", {"attention": None}, 0, 0),
        ("ncaltech101", {"attention": None}, 0, 0),
    ],
)
def test_counts_of_the_event_networks(name, keywords, ranks, gates):
    """Spec 3.2 and 3.3, less a PFA's rank weight, which never trained."""
    model = made(f"pfa_vgg_{name}", **keywords)
    assert parameters(model) == BACKBONES[name] + gates - ranks
    assert sum(isinstance(m, PFA) for m in model.modules()) == (5 if gates else 0)


def test_counts_of_fmnist():
    assert parameters(made("pfa_fmnist")) == 13_015_340
    assert parameters(made("pfa_fmnist", attention=None)) == 13_014_656
    assert parameters(made("fmnist_baseline")) == 13_014_656


@pytest.mark.parametrize("attention", ["PFA", "CSA", None])
def test_counts_of_ms_resnet18(attention):
    """From its description: 18 layers, a norm behind each convolution."""
    blocks = [(64, 128), (128, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512), (512, 512)]
    want = 3 * 64 * 9 + 2 * 64 + 512 * 10 + 10
    for c, width in blocks:
        want += 9 * width * (c + width) + 4 * width + (c != width) * (c * width + 2 * width)
        want += {"PFA": 4 * (10 * 4 + width + 3), "CSA": 2 * width * (width // 8) + 18, None: 0}[attention]
    for downsample in ("stride", "max"):
        model = made("pfa_ms_resnet18", attention=attention, downsample=downsample)
        assert parameters(model) == want
        assert len([m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]) == (
            17 if attention != "CSA" else 17 + 8
        )


def test_defaults():
    """Steps and rank of each data set; scale and fusion of the released codes."""
    for name, (steps, rank) in {
        "cifar10_dvs": (12, 8),
        "ncaltech101": (14, 64),
        "dvs_gesture": (20, 32),
    }.items():
        model = made(f"pfa_vgg_{name}")
        gates = [m for m in model.modules() if isinstance(m, PFA)]
        assert all((g.steps, g.rank, g.scale, g.fusion) == (steps, rank, "mean", "multiply") for g in gates)
    (gate,) = (m for m in made("pfa_fmnist").modules() if isinstance(m, PFA))
    assert (gate.steps, gate.rank, gate.scale, gate.fusion) == (4, 4, "sum", "add")
    gates = [m for m in made("pfa_ms_resnet18", scale="sum").modules() if isinstance(m, PFA)]
    assert [g.channels for g in gates] == 3 * [128] + 3 * [256] + 2 * [512]
    assert all((g.steps, g.rank, g.scale, g.fusion) == (4, 4, "sum", "multiply") for g in gates)


@pytest.mark.parametrize("name", ["pfa_vgg_cifar10_dvs", "pfa_vgg_dvs_gesture", "pfa_fmnist"])
def test_published_neurons(name):
    """Spec 3.2 and 3.4: the reset is detached on event data, and stays in the graph on Fashion-MNIST."""
    found = [m for m in made(name).modules() if isinstance(m, neurons.LIF)]
    assert len(found) == (9 if "vgg" in name else 4)
    for neuron in found:
        constants = neuron.constants()
        assert (constants["leak"], constants["gain"], constants["threshold"]) == (0.5, 0.5, 1.0)
        assert constants["v_reset"] == constants["bias"] == 0.0 and not neuron.strict
        assert neuron.surrogate == arctan(2.0) and neuron.detach_reset is ("vgg" in name)


def test_baseline_of_fmnist():
    """Spec 3.4: IF neurons, no PFA, no dropout; its tensors are those of the network without PFA."""
    model, plain = made("fmnist_baseline"), made("pfa_fmnist", attention=None)
    found = [m for m in model.modules() if isinstance(m, neurons.LIF)]
    assert len(found) == 4 and model.plan.steps == 4
    for neuron in found:
        constants = neuron.constants()
        assert (constants["leak"], constants["gain"], constants["threshold"]) == (1.0, 1.0, 1.0)
        assert constants["v_reset"] == constants["bias"] == 0.0 and not neuron.strict
        assert neuron.surrogate == arctan(2.0) and neuron.detach_reset is False
    assert not any(isinstance(m, PFA) for m in model.modules()) and model.dropout.p == 0
    shapes, theirs = ({k: v.shape for k, v in m.state_dict().items()} for m in (model, plain))
    assert shapes == theirs


def test_neuron_of_ms_resnet18():
    model = models.create("pfa_ms_resnet18", width=0.125)
    for module in model.modules():
        if isinstance(module, neurons.LIF):
            constants = module.constants()
            assert (constants["leak"], constants["gain"], constants["threshold"]) == (0.5, 1.0, 1.0)
            assert constants["v_reset"] == 0.0 and module.strict and not module.detach_reset
            assert module.surrogate == triangle(1.0)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
        elif isinstance(module, nn.Dropout):
            assert module.p == 0


# ---- small networks
# ------------------------------------------------------------------------------------------

SMALL = {  # name -> keywords of a small one, and the shape of its input
    "pfa_vgg_cifar10_dvs": ({"width": 0.0625, "steps": 4, "rank": 2}, (4, 2, 2, 48, 48)),
    "pfa_vgg_ncaltech101": ({"width": 0.0625, "steps": 4, "rank": 2}, (4, 2, 2, 50, 40)),
    "pfa_vgg_dvs_gesture": ({"width": 0.0625, "steps": 4, "rank": 2, "size": (32, 16)}, (4, 2, 2, 32, 16)),
    "pfa_fmnist": ({"width": 0.0625, "steps": 4, "rank": 2, "dropout": 0.0}, (3, 1, 28, 28)),
    "fmnist_baseline": ({"width": 0.0625, "steps": 4}, (3, 1, 28, 28)),
    "pfa_ms_resnet18": ({"width": 0.0625, "steps": 3, "rank": 2, "channel_ratio": 4}, (2, 3, 16, 16)),
}


def lively(model):
    """With norms, and linear layers before neurons, at which these fire; evaluation knows the last batch."""
    for module in model.modules():
        if isinstance(module, layers.SpikingLayer) and isinstance(module.current, nn.Linear):
            nn.init.normal_(module.current.weight, std=50 * module.current.in_features**-0.5)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 1.0, 3.0)
            nn.init.normal_(module.bias, std=0.3)
            module.momentum = 1.0
    return model


def small(name, **keywords):
    torch.manual_seed(5)
    return lively(models.create(name, **{**SMALL[name][0], **keywords})).double()


def example(name, seed=1, shape=None) -> torch.Tensor:
    shape, generator = shape or SMALL[name][1], torch.Generator().manual_seed(seed)
    if "vgg" not in name:
        return torch.randn(shape, dtype=torch.float64, generator=generator)
    return torch.poisson(torch.full(shape, 0.4, dtype=torch.float64), generator=generator)  # counts of events


# ---- the compositions, written out
# ------------------------------------------------------------------------------------------


class Fire(torch.autograd.Function):
    """A step whose slope is given."""

    @staticmethod
    def forward(ctx, z, slope, strict):
        ctx.save_for_backward(slope(z))
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None


def of_spikingjelly(x, charge, detach):
    """Spec 2, ATan(2)."""
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        h = charge(v, current)
        s = Fire.apply(h - 1, lambda z: 1 / (1 + (torch.pi * z) ** 2), False)
        v = (1 - (s.detach() if detach else s)) * h
        spikes.append(s)
    return torch.stack(spikes)


def leaky(x, detach):
    """tau = 2."""
    return of_spikingjelly(x, lambda v, current: v + (current - v) / 2, detach)


def integrate_and_fire(x, detach):
    return of_spikingjelly(x, lambda v, current: v + current, detach)


def gac(x):
    v, spikes = torch.zeros_like(x[0]), []
    for current in x:
        h = 0.5 * v + current
        s = Fire.apply(h - 1, lambda z: (1 - z.abs()).clamp(min=0), True)
        v = (1 - s) * h
        spikes.append(s)
    return torch.stack(spikes)


def each(layer, x):
    """A layer of single maps, step by step."""
    return torch.stack([layer(step) for step in x])


def normed(norm, x):
    """Statistics over T, N, H and W."""
    return norm(x.flatten(0, 1)).view(x.shape)


def pfa(module, x):
    """Spec 1.2 to 1.4, term by term."""
    if not isinstance(module, PFA):
        return x
    spatial, temporal, channel = [], [], []
    for r in range(module.rank):
        weight = module.spatial_weight[r : r + 1]
        maps = F.conv2d(x.mean(2).transpose(0, 1), weight, module.spatial_bias[r : r + 1], padding=1)
        spatial.append(torch.sigmoid(maps[:, 0]))  # [N, H, W]
        means = x.mean((3, 4))  # [T, N, C]
        temporal.append(torch.sigmoid(means @ module.temporal_weight[r] + module.temporal_bias[r]))  # [T, N]
        by_channel = torch.einsum("tnc,t->nc", means, module.channel_weight[r]) + module.channel_bias[r]
        channel.append(torch.sigmoid(by_channel))  # [N, C]
    terms = zip(spatial, temporal, channel, strict=True)
    a = sum(tm[:, :, None, None, None] * cm[None, :, :, None, None] * s[None, :, None] for s, tm, cm in terms)
    a = a / module.rank if module.scale == "mean" else a
    return torch.relu(a * x if module.fusion == "multiply" else a + x)


def event_forward(model, x):
    plan = model.plan
    if plan.size is None:
        x = each(lambda step: F.adaptive_avg_pool2d(step, 48), x)
    x = pfa(model.attention, x)
    for stage in model.stages:
        for layer in (stage.first, stage.second):
            x = leaky(normed(layer.norm, each(layer.current, x)), detach=True)
        x = pfa(stage.attention, each(lambda step: F.avg_pool2d(step, 2), x))
    rates = leaky(each(model.classifier.current, x.flatten(2)), detach=True).mean(0)
    if plan.voters > 1 and not plan.parity:
        rates = torch.stack([rates[:, 10 * k : 10 * k + 10].mean(1) for k in range(plan.classes)], 1)
    return rates


def fmnist_forward(model, x, neuron=leaky):
    x = model.stem.norm(model.stem.current(x)).repeat(model.plan.steps, 1, 1, 1, 1)  # the norm sees it once
    x = each(lambda step: F.max_pool2d(step, 2), neuron(x, detach=False))
    x = pfa(model.features.attention, normed(model.features.norm, each(model.features.current, x)))
    x = each(lambda step: F.max_pool2d(step, 2).flatten(1), neuron(x, detach=False))
    for layer in (model.hidden, model.classifier):
        x = neuron(each(layer.current, x), detach=False)
    return x.mean(0)


def halved(norm, conv, x, stride, by_maximum=False):
    """Convolution and norm; the stride is the convolution's, or that of a 3x3 maximum pool behind them."""
    own, padding = 1 if by_maximum else stride, conv.weight.shape[-1] // 2
    y = normed(norm, each(lambda step: F.conv2d(step, conv.weight, stride=own, padding=padding), x))
    return each(lambda step: F.max_pool2d(step, 3, stride, 1), y) if by_maximum else y


def ms_resnet_scores(model, x):
    """Of every step."""
    plan = model.plan
    membrane = halved(model.stem.norm, model.stem.current, torch.stack([x] * plan.steps), 1)
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage):
            stride = 2 if i > 0 and j == 0 else 1
            pooled = stride == 2 and plan.downsample == "max"
            y = halved(block.first.norm, block.first.current, gac(membrane), stride, pooled)
            y = halved(block.second.norm, block.second.current, gac(y), 1)
            y = block.second.attention(y) if plan.attention == "CSA" else pfa(block.second.attention, y)
            if j == 0:  # width or stride changes
                membrane = halved(block.shortcut.norm, block.shortcut.current, membrane, stride)
            membrane = membrane + y
    return each(lambda step: model.classifier(step.mean((2, 3))), gac(membrane))


def ms_resnet_forward(model, x):
    return ms_resnet_scores(model, x).mean(0)


COMPOSITIONS = [
    ("pfa_vgg_cifar10_dvs", {}, event_forward),
    ("pfa_vgg_cifar10_dvs", {"attention": None}, event_forward),
    ("pfa_vgg_ncaltech101", {"scale": "sum"}, event_forward),
    ("pfa_vgg_dvs_gesture", {}, event_forward),
    ("pfa_vgg_dvs_gesture", {"parity": True}, event_forward),
    ("pfa_fmnist", {}, fmnist_forward),
    ("pfa_fmnist", {"attention": None}, fmnist_forward),
    ("pfa_fmnist", {"fusion": "multiply", "rank": 8}, fmnist_forward),
    ("fmnist_baseline", {}, partial(fmnist_forward, neuron=integrate_and_fire)),
    ("pfa_ms_resnet18", {}, ms_resnet_forward),
    ("pfa_ms_resnet18", {"downsample": "max", "scale": "sum"}, ms_resnet_forward),
    ("pfa_ms_resnet18", {"downsample": "max", "attention": "CSA"}, ms_resnet_forward),
    ("pfa_ms_resnet18", {"attention": None}, ms_resnet_forward),
]


@pytest.mark.parametrize(("name", "keywords", "forward"), COMPOSITIONS)
def test_the_composition_written_out(backend, name, keywords, forward):
    """Output, every gradient and the running statistics of a step of training; then those of evaluation."""
    x, results = example(name), []
    for run in (nn.Module.__call__, forward):
        model = small(name, backend=backend, **keywords).train()
        out = run(model, x)
        weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(2))
        (out * weights).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
        results[-1] += [t.clone() for key, t in model.state_dict().items() if "running" in key]
        with torch.no_grad():
            results[-1].append(run(model.eval(), x))
    (out, *_, evaluated), _ = results
    assert out.std() > 1e-3 and evaluated.std() > 1e-3  # neurons fire, and not all alike
    for ours, published in zip(*results, strict=True):
        close64(ours, published, 1e-10)


@pytest.mark.parametrize("keywords", [{}, {"attention": "CSA", "downsample": "max"}])
def test_scores_of_every_step(backend, keywords):
    """Values and gradients as written out, in training; their mean is what the network returns."""
    x, results = example("pfa_ms_resnet18"), []
    for f in (lambda m: m(x, every_step=True), lambda m: ms_resnet_scores(m, x)):
        model = small("pfa_ms_resnet18", backend=backend, **keywords)
        scores = f(model)
        weights = torch.randn(3, 2, 10, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        (scores * weights).sum().backward()
        results.append([scores.detach(), *(p.grad for p in model.parameters())])
    assert (results[0][0][1:] != results[0][0][:-1]).any((1, 2)).all()  # each step its own
    for ours, by_hand in zip(*results, strict=True):
        close64(ours, by_hand, 1e-10)
    for mode in (True, False):
        model.train(mode)
        close64(model(x, every_step=True).mean(0), model(x), 1e-12)


# ---- what they do
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keywords", "distinct"),
    [
        ("pfa_vgg_cifar10_dvs", {}, 5),
        ("pfa_vgg_dvs_gesture", {"size": 16}, 5),
        ("pfa_fmnist", {}, 5),
        ("fmnist_baseline", {}, 5),
        ("pfa_ms_resnet18", {}, 18),
        ("pfa_ms_resnet18", {"downsample": "max"}, 18),
    ],
)
def test_training_fused_and_reference_agree(fused, name, keywords, distinct):
    """20 optimiser steps in float64 from one seed: equal losses to 1e-9. (Rates of few steps may recur.)"""
    losses = []
    for backend in ("fused", "reference"):
        model = small(name, backend=backend, **keywords)
        optimizer, history = torch.optim.Adam(model.parameters(), 3e-3), []
        x = example(name, shape=(4, 2, 2, 16, 16) if "size" in keywords else None)
        for _ in range(20):
            out = model(x)
            loss = (out - torch.eye(out.shape[1], dtype=out.dtype)[: len(out)]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    assert losses[0][-1] < losses[0][0] and len(set(losses[0])) >= distinct, losses[0]  # it learns
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-9


@pytest.mark.parametrize("name", SMALL)
def test_one_step(name):
    """T = 1, in float32, and no state is left in the modules."""
    model = small(name, steps=1).float()
    x = example(name).float()
    out = model(x[:1] if "vgg" in name else x)
    out.square().sum().backward()
    classes = {"pfa_vgg_ncaltech101": 101, "pfa_vgg_dvs_gesture": 11}.get(name, 10)
    assert out.shape == (x.shape["vgg" in name], classes)
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert not stray_tensors(model)


@pytest.mark.parametrize("name", SMALL)
def test_folded_norms(name):
    """For inference, also where a PFA stands behind the norm: the same numbers, and nothing left of them."""
    model, x = small(name), example(name)
    with torch.no_grad():
        model(x)
        folded = layers.fold(model)
        close64(folded(x), model.eval()(x), 1e-12)
    assert not any("norm" in key for key in folded.state_dict())


def test_a_maximum_pool_folds():
    model, x = small("pfa_ms_resnet18", downsample="max"), example("pfa_ms_resnet18")
    with torch.no_grad():
        model(x)
        close64(layers.fold(model)(x), model.eval()(x), 1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_state_dict(name, tmp_path):
    """Saved and loaded, the same bits; a published rank weight is accepted and dropped."""
    model, x = small(name).eval(), example(name)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    state, (kwargs, _) = torch.load(tmp_path / "weights.pt", weights_only=True), SMALL[name]
    gates = [key.removesuffix("spatial_weight") for key in state if key.endswith("spatial_weight")]
    other = models.create(name, **kwargs).double()
    other.load_state_dict(state | {f"{gate}weight": torch.ones(2) for gate in gates}, strict=True)
    same_bits(other.eval()(x), model(x))
    assert len(gates) == {"pfa_fmnist": 1, "fmnist_baseline": 0, "pfa_ms_resnet18": 8}.get(name, 5)


def test_downsampling_has_the_same_tensors():
    by_stride, by_maximum = (small("pfa_ms_resnet18", downsample=how) for how in ("stride", "max"))
    by_maximum.load_state_dict(by_stride.state_dict(), strict=True)
    x = example("pfa_ms_resnet18", shape=(2, 3, 19, 30))  # halved alike for sides of any parity
    assert by_maximum(x).shape == by_stride(x).shape == (2, 10)


@pytest.mark.parametrize("name", ["pfa_fmnist", "fmnist_baseline", "pfa_ms_resnet18"])
def test_a_static_image_is_read_once(name):
    """By the stem, its norm, the first neuron and the first shortcut; by everything else T times."""
    model, read = small(name), {}
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda m, a, key=key: read.setdefault(key, []).append(len(a[0])))
    model.stem_neuron.register_forward_pre_hook(lambda m, a: read.update(neuron=len(a[0])))
    x = example(name)
    model(x)
    assert read.pop("neuron") == 1
    for key, counts in read.items():
        once = key.startswith("stem.") or key == "stages.0.0.shortcut.current"
        assert counts == [len(x) if once else model.plan.steps * len(x)], key


def test_frames_of_any_size_are_averaged():
    """Spec 3.2: to 48 x 48, in windows that overlap where they must."""
    model = small("pfa_vgg_cifar10_dvs")
    for sides in ((128, 128), (180, 240), (30, 50)):
        frames = example("pfa_vgg_cifar10_dvs", shape=(4, 1, 2, *sides))
        small_frames = F.adaptive_avg_pool2d(frames.flatten(0, 1), 48).unflatten(0, (4, 1))
        same_bits(model.eval()(frames), model(small_frames))


def test_votes():
    """Ten outputs side by side are a class's; the released network hands on all of them."""
    voting, released = (small("pfa_vgg_dvs_gesture", rank=64, parity=parity) for parity in (False, True))
    x = example("pfa_vgg_dvs_gesture")
    voting(x)
    released.load_state_dict(voting.state_dict(), strict=True)
    rates, votes = released.eval()(x), voting.eval()(x)
    assert rates.shape == (2, 110) and votes.shape == (2, 11) and rates.any()
    close64(votes, torch.stack([rates[:, 10 * k : 10 * k + 10].mean(1) for k in range(11)], 1), 1e-14)


def test_dropout_has_a_mask_for_each_step():
    """Spec 3.4: 0.7 before both linear layers, in training."""
    model, seen = small("pfa_fmnist", dropout=0.7), []
    model.dropout.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    model(example("pfa_fmnist"))
    assert len(seen) == 2 and models.create("pfa_fmnist", width=0.0625).dropout.p == 0.7
    for given, out in seen:
        kept = (out[given > 0] > 0).double().mean()
        assert 0.2 < kept < 0.4
    given, out = seen[0]
    both = (given[0] > 0) & (given[1] > 0)  # what fires in two steps is not dropped in both or in neither
    assert both.any() and ((out[0] > 0) != (out[1] > 0))[both].any()
    model.eval()(example("pfa_fmnist"))
    assert all(torch.equal(given, out) for given, out in seen[2:])


def test_width_and_sizes():
    model = made("pfa_vgg_cifar10_dvs", width=0.5, rank=3)
    assert model.plan.channels == (32, 64, 128, 128, 256, 256, 256, 256)
    assert made("pfa_vgg_dvs_gesture", size=(64, 96)).classifier.current.in_features == 512 * 4 * 6
    assert (
        made("pfa_fmnist", width=0.25).plan.channels == 32 and made("pfa_fmnist", hidden=64).plan.hidden == 64
    )
    plan = made("pfa_ms_resnet18", width=0.5).plan
    assert (plan.stem_channels, *plan.channels) == (32, 64, 128, 256)


def test_watch_names_the_neurons():
    """In the order in which they run; with a maximum pool a neuron stands by itself."""

    def names(name, **keywords):
        model = small(name, **keywords)
        with torch.no_grad(), layers.watch(model) as seen:
            model(example(name))
        return list(seen)

    stages = [f"stages.{i}.{part}" for i in range(4) for part in ("first", "second")]
    assert names("pfa_vgg_dvs_gesture") == [*stages, "classifier"]
    assert names("pfa_fmnist") == ["stem_neuron", "features", "hidden", "classifier"]
    assert names("fmnist_baseline") == names("pfa_fmnist")
    seen = names("pfa_ms_resnet18", downsample="max")
    assert len(seen) == 17 and "stages.1.0.first.neuron" in seen and "stages.1.1.first" in seen


@pytest.mark.parametrize("membrane_dtype", [None, torch.float32])
def test_bfloat16(backend, membrane_dtype):
    """Convolutions in bfloat16 by autocast; the residual stream as asked for."""
    model = small("pfa_ms_resnet18", membrane_dtype=membrane_dtype, backend=backend).float()
    seen = []
    for stage in model.stages:
        for block in stage:
            block.register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(example("pfa_ms_resnet18").float())
    assert all(spikes.dtype == torch.bfloat16 for _, spikes in seen)
    assert all(membrane.dtype == (membrane_dtype or torch.bfloat16) for membrane, _ in seen[:-1])
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["pfa_vgg_dvs_gesture", "pfa_fmnist", "fmnist_baseline"])
def test_autocast(backend, name):
    model = small(name, backend=backend).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(example(name).float())
    out.float().square().sum().backward()
    assert out.std() > 0 and all(p.grad.isfinite().all() for p in model.parameters())


def test_compile_fullgraph(fused):
    torch.manual_seed(2)
    sizes = {"blocks": (1,), "first_stride": 2, "stem_channels": 4, "channels": (8,), "rank": 2, "steps": 3}
    model = lively(MSResNet(replace(PLAN, downsample="max", **sizes), "fused"))
    x, results = torch.randn(2, 3, 8, 8), []
    for f in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = f(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for eager, compiled in zip(*results, strict=True):
        same_bits(compiled, eager)


# ---- misuse
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keywords", "sentence"),
    [
        ("pfa_vgg_cifar10_dvs", {"attention": "CSA"}, "attention must be None or one of PFA, got 'CSA'"),
        ("pfa_vgg_cifar10_dvs", {"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ("pfa_vgg_cifar10_dvs", {"rank": 2.5}, "rank must be an integer of at least 1, got 2.5"),
        ("pfa_vgg_cifar10_dvs", {"rank": 65}, "rank must be from 1 to 64, got 65"),
        ("pfa_vgg_ncaltech101", {"num_classes": 0}, "classes must be an integer of at least 1, got 0"),
        ("pfa_vgg_ncaltech101", {"width": -1.0}, "width must be positive, got -1.0"),
        (
            "pfa_vgg_ncaltech101",
            {"channels": (8, 8)},
            r"channels must be 8 widths of at least 1, got \(8, 8\)",
        ),
        ("pfa_vgg_ncaltech101", {"scale": "max"}, "scale must be one of mean, sum, got 'max'"),
        ("pfa_vgg_ncaltech101", {"fusion": "or"}, "fusion must be one of multiply, add, residual, got 'or'"),
        ("pfa_vgg_dvs_gesture", {"size": 120}, r"size must be a multiple of 16, .* \(H, W\) .*; got 120"),
        ("pfa_vgg_dvs_gesture", {"size": (128, 0)}, r"size must be a multiple of 16, .*; got \(128, 0\)"),
        ("pfa_vgg_dvs_gesture", {"size": "128"}, "size must be a multiple of 16, .*; got '128'"),
        ("pfa_vgg_dvs_gesture", {"size": True}, "size must be a multiple of 16, .*; got True"),
        ("fmnist_baseline", {"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ("fmnist_baseline", {"hidden": 2.5}, "hidden must be an integer of at least 1, got 2.5"),
        ("fmnist_baseline", {"width": 0}, "width must be positive, got 0"),
        ("pfa_fmnist", {"attention": "TA"}, "attention must be None or one of PFA, got 'TA'"),
        ("pfa_fmnist", {"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ("pfa_fmnist", {"channels": True}, "channels must be an integer of at least 1, got True"),
        ("pfa_fmnist", {"dropout": 1.5}, "dropout probability has to be between 0 and 1"),
        ("pfa_ms_resnet18", {"attention": "TCSA"}, "attention must be None or one of PFA, CSA, got 'TCSA'"),
        (
            "pfa_ms_resnet18",
            {"downsample": "average"},
            "downsample must be one of stride, max, got 'average'",
        ),
        (
            "pfa_ms_resnet18",
            {"channels": (8, 8, 0)},
            r"channels must be 3 widths of at least 1, got \(8, 8, 0\)",
        ),
        ("pfa_ms_resnet18", {"stem_channels": 0}, "stem_channels must be an integer of at least 1, got 0"),
        ("pfa_ms_resnet18", {"rank": 0}, "rank must be an integer of at least 1, got 0"),
        ("pfa_ms_resnet18", {"scale": None}, "scale must be one of mean, sum, got None"),
        ("att_ms_resnet18", {"attention": "PFA"}, "attention must be None or one of TA, CA"),
    ],
)
def test_keywords_that_make_no_network(name, keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        made(name, **keywords)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        (
            "pfa_vgg_cifar10_dvs",
            (4, 2, 3, 48, 48),
            r"frames \[T, N, 2, H, W\], got shape \(4, 2, 3, 48, 48\)",
        ),
        ("pfa_vgg_cifar10_dvs", (4, 2, 48, 48), r"frames \[T, N, 2, H, W\], got shape"),
        ("pfa_vgg_cifar10_dvs", (4, 2, 2, 0, 48), r"frames \[T, N, 2, H, W\], got shape"),
        ("pfa_vgg_cifar10_dvs", (5, 2, 2, 48, 48), "PFA was made for 4 steps, got x with 5"),
        (
            "pfa_vgg_dvs_gesture",
            (4, 2, 2, 16, 32),
            r"frames \[T, N, 2, 32, 16\], got shape \(4, 2, 2, 16, 32\)",
        ),
        ("pfa_fmnist", (4, 2, 1, 28, 28), r"images \[N, 1, 28, 28\], got shape \(4, 2, 1, 28, 28\)"),
        ("pfa_fmnist", (2, 1, 32, 32), r"images \[N, 1, 28, 28\], got shape"),
        ("fmnist_baseline", (2, 28, 28), r"images \[N, 1, 28, 28\], got shape"),
        ("pfa_ms_resnet18", (2, 1, 32, 32), r"images \[N, 3, H, W\], got shape"),
    ],
)
def test_inputs_that_do_not_fit(name, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        small(name)(torch.zeros(shape, dtype=torch.float64))
