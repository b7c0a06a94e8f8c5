"""Att-VGG: the spec's counts, the published composition written out, training, misuse."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from close import close64, same_bits
from test_models import stray_tensors
from test_pfa_models import each, leaky, lively, made, normed, parameters
from torch import nn

from attsnn import layers, models, neurons
from attsnn.models.att_vgg import PLANS, AttVGG

COUNTS = {  # parameters without attention, those of CSA, convolutions, side of the last maps
    "att_vgg7": (35_155_658, 44_122, 5, 16),
    "att_vgg11": (42_791_690, 150_160, 8, 16),
    "att_vgg13": (42_976_586, 152_756, 10, 16),
    "att_vgg16": (48_288_842, 226_538, 13, 16),
    "att_vgg19": (53_601_098, 300_320, 16, 1),
}
SMALL = {"width": 0.0625, "channel_ratio": 2, "dropout": 0.0}


def small(name="att_vgg7", **keywords):
    torch.manual_seed(5)
    return lively(models.create(name, **{**SMALL, **keywords})).double()


def images(samples=2, seed=1):
    return torch.randn(samples, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    """Spec 3.4; a hundred classes have 92,250 more."""
    plain, gates, convolutions, _ = COUNTS[name]
    assert parameters(made(name, attention=None)) == plain
    assert parameters(made(name)) == plain + gates
    assert parameters(made(name, num_classes=100)) == plain + gates + 92_250
    kinds = [m for m in made(name, attention=None).modules() if isinstance(m, nn.Conv2d)]
    assert len(kinds) == convolutions and all(conv.bias is not None for conv in kinds)


def test_what_is_published():
    """Spec 1.3 and 3.4: the neuron, the initial values, one step, half of the rates dropped."""
    model = models.create("att_vgg7", width=0.5)
    for module in model.modules():
        if isinstance(module, neurons.LIF):
            constants = module.constants()
            assert (constants["leak"], constants["gain"], constants["threshold"]) == (0.5, 0.5, 1.0)
            assert constants["v_reset"] == 0.0 and not module.strict and module.detach_reset
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            fan_out = 9 * module.out_channels
            assert abs(module.weight.std() / (2 / fan_out) ** 0.5 - 1) < 0.1 and not module.bias.any()
        elif isinstance(module, nn.Linear) and module.bias is not None:
            assert abs(module.weight.std() / 0.01 - 1) < 0.1 and not module.bias.any()
    assert model.dropout.p == 0.5 and model.plan.steps == 1
    gates = model.features[3].current.attention
    assert gates.channel.reduce.weight.shape == (128 // 16, 128) and gates.spatial.conv.kernel_size == (3, 3)


def published_scores(model, x):
    """T copies of the image through convolution, attention, norm and neuron; T linear layers."""
    plan = model.plan
    found, x = (
        iter([model.stem, *(m for m in model.features if hasattr(m, "norm"))]),
        torch.stack([x] * plan.steps),
    )
    for i in range(len(plan.channels)):
        layer = next(found)
        if plan.attention is None:
            x = each(layer.current, x)
        else:
            x = layer.current.attention(each(layer.current.conv, x))
        x = leaky(normed(layer.norm, x), detach=True)
        if i in plan.pools:
            x = each(lambda step: F.max_pool2d(step, 2), x)
    x = each(lambda step: F.adaptive_avg_pool2d(step, 8).flatten(1), x)
    x = leaky(each(model.hidden.current, x), detach=True)
    return each(model.classifier, x)


def published_forward(model, x):
    return published_scores(model, x).mean(0)


@pytest.mark.parametrize(
    ("name", "attention", "steps"),
    [
        ("att_vgg7", "CSA", 1),
        ("att_vgg7", "CSA", 3),
        ("att_vgg7", None, 3),
        ("att_vgg11", None, 2),
        ("att_vgg19", "CSA", 4),
    ],
)
def test_the_composition_written_out(backend, name, attention, steps):
    """Output, every gradient and the running statistics of a step of training; then those of evaluation."""
    x, results = images(), []
    for run in (nn.Module.__call__, published_forward):
        model = small(name, attention=attention, steps=steps, backend=backend).train()
        out = run(model, x)
        (out * torch.linspace(-1, 1, 20, dtype=out.dtype).view(2, 10)).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
        results[-1] += [t.clone() for key, t in model.state_dict().items() if "running" in key]
        with torch.no_grad():
            results[-1].append(run(model.eval(), x))
    (out, *_), _ = results
    assert (out[0] - out[1]).abs().max() > 1e-4  # what the neurons emit arrives
    for ours, published in zip(*results, strict=True):
        close64(ours, published, 1e-10)


@pytest.mark.parametrize(("attention", "steps"), [("CSA", 3), (None, 4)])
def test_scores_of_every_step(backend, attention, steps):
    """Values and gradients as by hand, in training; their mean is what the network returns."""
    x, results = images(), []
    for f in (lambda m: m(x, every_step=True), lambda m: published_scores(m, x)):
        model = small(attention=attention, steps=steps, backend=backend)
        scores = f(model)
        weights = torch.randn(steps, 2, 10, dtype=x.dtype, generator=torch.Generator().manual_seed(2))
        (scores * weights).sum().backward()
        results.append([scores.detach(), *(p.grad for p in model.parameters())])
    assert (results[0][0][1:] != results[0][0][:-1]).any((1, 2)).all()  # each step its own
    for ours, by_hand in zip(*results, strict=True):
        close64(ours, by_hand, 1e-10)
    for mode in (True, False):
        model.train(mode)
        close64(model(x, every_step=True).mean(0), model(x), 1e-12)


def test_compile_fullgraph(fused):
    plan = replace(PLANS["att_vgg7"], channels=(4, 4), hidden=8, channel_ratio=2, dropout=0.0, steps=3)
    model, results = lively(AttVGG(plan, "fused")).double(), []
    for f in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = f(images(), every_step=True)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for eager, compiled in zip(*results, strict=True):
        same_bits(compiled, eager)


@pytest.mark.parametrize("attention", ["CSA", None])
def test_training_fused_and_reference_agree(fused, attention):
    """20 optimiser steps in float64 from one seed: equal losses to 1e-9."""
    losses = []
    for backend in ("fused", "reference"):
        model = small(steps=2, attention=attention, backend=backend)
        optimizer, history = torch.optim.Adam(model.parameters(), 1e-3), []
        for _ in range(20):
            loss = F.cross_entropy(model(images(4)), torch.arange(4))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    assert losses[0][-1] < losses[0][0] and len(set(losses[0])) >= 18  # it learns
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-9


@pytest.mark.parametrize("attention", ["CSA", None])
def test_a_static_image_is_read_once(attention):
    """By the first convolution, its attention and norm, and the first neuron; by everything else T times."""
    model, read = small(steps=5, attention=attention), {}
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".spatial." not in key:
            module.register_forward_pre_hook(lambda m, a, key=key: read.setdefault(key, []).append(len(a[0])))
        if key.endswith(".attention"):
            module.register_forward_pre_hook(lambda m, a, key=key: read.setdefault(key, []).append(len(a[0])))
    model.stem_neuron.register_forward_pre_hook(lambda m, a: read.update(neuron=len(a[0])))
    model(images(3))
    assert read.pop("neuron") == 1
    for key, counts in read.items():
        samples = 1 if key.endswith(".attention") else 3
        assert counts == [samples * (1 if key.startswith("stem.") else 5)], key


def test_dropout_has_one_mask_for_all_steps():
    """Of the rates, which is the same: what is dropped is dropped at every step."""
    model, seen = small(steps=4, dropout=0.5), []
    model.dropout.register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    out = model(images())
    ((rates, dropped),) = seen
    assert rates.shape == (2, 64) and ((dropped == 0) | (dropped == 2 * rates)).all()
    assert 0 < ((dropped == 0) & (rates > 0)).sum() < (rates > 0).sum()
    close64(out, model.classifier(dropped), 1e-14)


def test_every_step_has_its_own_dropout():
    model, seen = small(steps=4, dropout=0.5), []
    model.dropout.register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    scores = model(images(), every_step=True)
    ((spikes, dropped),) = seen
    assert spikes.shape == (4, 2, 64) and ((dropped == 0) | (dropped == 2 * spikes)).all()
    both = (spikes[:-1] > 0) & (spikes[1:] > 0)
    assert ((dropped[:-1] > 0) != (dropped[1:] > 0))[both].any()
    close64(scores, each(model.classifier, dropped), 1e-14)


def test_folded_norms():
    """Where the norm stands behind its convolution; behind gates it cannot be folded, and says so."""
    model, x = small(steps=2, attention=None), images()
    with torch.no_grad():
        model(x)
        folded = layers.fold(model)
        close64(folded(x), model.eval()(x), 1e-12)
    assert not any("norm" in key for key in folded.state_dict())
    with pytest.raises(
        ValueError, match="norm follows Gated; it can only be folded into Linear, Conv1d, Conv2d"
    ):
        layers.fold(small())


def test_state_dict_and_state(tmp_path):
    model, x = small("att_vgg11").float(), images().float()
    model(x).square().sum().backward()
    assert not stray_tensors(model) and all(p.grad.isfinite().all() for p in model.parameters())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = models.create("att_vgg11", **SMALL).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    same_bits(other(x), model.eval()(x))


@pytest.mark.parametrize("name", COUNTS)
def test_neurons(name):
    """One a convolution, and the hidden ones, at every step; the last maps' sides."""
    *_, convolutions, side = COUNTS[name]
    model = small(name, steps=2)
    with torch.no_grad(), layers.watch(model) as seen:
        model(images())
    assert list(seen)[0] == "stem_neuron" and list(seen)[-1] == "hidden" and len(seen) == convolutions + 1
    assert all(emitted.shape[:2] == (2, 2) for emitted in seen.values())
    assert model.features(torch.zeros(2, 2, 4, 32, 32, dtype=torch.float64)).shape[-1] == side


def test_autocast(backend):
    model = small(steps=2, backend=backend).float()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(images().float())
    out.float().square().sum().backward()
    assert out.std() > 0 and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"attention": "TCSA"}, "attention must be None or one of CSA, got 'TCSA'"),
        ({"steps": True}, "steps must be an integer of at least 1, got True"),
        ({"num_classes": 0}, "classes must be an integer of at least 1, got 0"),
        ({"hidden": -1}, "hidden must be an integer of at least 1, got -1"),
        ({"channels": (8, 8, 8)}, r"channels must be 5 widths of at least 1, got \(8, 8, 8\)"),
        ({"width": 0}, "width must be positive, got 0"),
        ({"channels": (8,) * 5}, "channel_ratio=16 leaves no hidden unit for 8 channels"),
        ({"dropout": 2.0}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_keywords_that_make_no_network(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        made("att_vgg7", **keywords)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (3, 32, 32), (2, 2, 3, 32, 32)])
def test_images_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"images \[N, 3, 32, 32\], got shape \("):
        small()(torch.zeros(shape, dtype=torch.float64))


def test_depths():
    assert list(PLANS) == list(COUNTS)
