"""MS-ResNet and Att-MS-ResNet: the spec's counts, a static image, pruning, precision, the converter."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from close import close64, same_bits
from test_models import stray_tensors
from test_neuron import kept_bytes
from test_seam import FORBIDDEN, OnMaps
from torch import nn

from attsnn import layers, models, neurons
from attsnn.attention import attention, winner_take_all
from attsnn.models import convert
from attsnn.models.ms_resnet import PLANS, MSResNet

# Parameters, those of the attention, state tensors; neurons and 3x3 MACs at 224 and at 288.
COUNTS = {
    "att_ms_resnet18": (11_867_960, 174_224, 152, (2_308_096, 3_815_424), (1.6763e9, 2.7710e9)),
    "att_ms_resnet34": (22_116_552, 314_656, 272, (3_562_496, 5_889_024), (3.5260e9, 5.8286e9)),
    "att_ms_resnet104": (78_369_598, 1_085_334, 797, (7_225_344, 11_943_936), (11.6184e9, 19.2058e9)),
    "ms_resnet18": (11_693_736, 0, 128, (2_308_096, 3_815_424), (1.6763e9, 2.7710e9)),
    "ms_resnet34": (21_801_896, 0, 224, (3_562_496, 5_889_024), (3.5260e9, 5.8286e9)),
    "ms_resnet104": (77_350_504, 0, 649, (7_225_344, 11_943_936), (11.6184e9, 19.2058e9)),
}
STEM = {224: 118.01e6, 288: 195.08e6}
DEEP_STEM = {224: 946.5e6}
SHORTCUT = {224: 32.11e6, 288: 53.08e6}
SMALL = {"width": 0.125, "num_classes": 10, "steps": 3}


def small(name, **keywords):
    return models.create(name, **{**SMALL, **keywords})


def few(name, **keywords):
    """The variant with one block a stage, but for two in the second."""
    sizes = {"channels": (8, 16, 32, 64), "classes": 10, "dropout": 0.0, **keywords}
    backend = sizes.pop("backend", "auto")
    return MSResNet(replace(PLANS[name], blocks=(1, 2, 1, 1), **sizes), backend)


def randomised(model):
    """No gamma at 0, no norm that is the identity."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.3)
    return model


def images(*shape, dtype=torch.float64, seed=1):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    parameters, gates, tensors, *_ = COUNTS[name]
    with torch.device("meta"):
        model = models.create(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert sum(p.numel() for k, p in model.named_parameters() if ".attention." in k) == gates
    assert len(model.state_dict()) == tensors


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("side", [224, 288])
def test_macs_and_neurons(name, side):
    """Of one step of one image, by what runs, on the meta device."""
    with torch.device("meta"):
        model = models.create(name, steps=1, backend="reference").eval()
    macs = dict.fromkeys(("stem", "block", "shortcut", "classifier"), 0)

    def count(kind):
        def hook(module, args, output):
            per_value = module.weight.shape[1:].numel()
            macs[kind] += output.numel() * per_value

        return hook

    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and ".attention." not in key:
            kind = next((k for k in ("stem", "shortcut", "classifier") if k in key.split(".")), "block")
            module.register_forward_hook(count(kind))
    with layers.watch(model) as seen, torch.no_grad():
        model(torch.empty(1, 3, side, side, device="meta"))

    at = (224, 288).index(side)
    *_, spiking, threes = COUNTS[name]
    assert sum(out.numel() for out in seen.values()) == spiking[at]
    want = {"block": threes[at], "shortcut": SHORTCUT[side], "classifier": 0.512e6}
    deep = name == "ms_resnet104"
    if not deep or side in DEEP_STEM:
        want["stem"] = (DEEP_STEM if deep else STEM)[side]
    for kind, value in want.items():
        assert abs(macs[kind] / value - 1) < 2e-4, (kind, macs[kind])


@pytest.mark.parametrize("name", PLANS)
def test_what_differs(name):
    """Stem, shortcut, initial values, dropout and steps of each variant."""
    with torch.device("meta"):
        model = models.create(name)
    small_model = small(name)
    for module in small_model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.bias == 0).all() and module.eps == 1e-5 and module.momentum == 0.1
    ours, depth = name.startswith("att_"), int(name[-3:].lstrip("t"))
    second = 0.1 if ours else 0.0
    gammas = {k: v for k, v in small_model.state_dict().items() if k.endswith("norm.weight")}
    assert len(gammas) == 1 + 2 * sum(PLANS[name].blocks) + 4
    for key, gamma in gammas.items():
        assert (gamma == torch.tensor(second if ".second." in key else 0.5)).all(), key
    assert model.dropout.p == (0.2 if ours or depth == 104 else 0.0)
    assert model.plan.steps == (1 if ours else 6) and model.classifier.bias is not None

    pools = ours or depth == 104
    for stage in model.stages:
        head, *rest = stage
        assert isinstance(head.pool, layers.AveragePool) is pools
        assert head.shortcut.current.stride == ((1, 1) if pools else (2, 2))
        assert head.first.current.stride == (2, 2) and head.shortcut.current.bias is None
        assert all(b.shortcut is None and b.first.current.stride == (1, 1) for b in rest)
    assert (model.stages[0][0].second.attention is not None) is ours
    stem = model.stem.current
    if name == "ms_resnet104":
        assert [c.stride for c in stem] == [(2, 2), (1, 1), (1, 1)] and all(c.bias is not None for c in stem)
    else:
        assert stem.kernel_size == (7, 7) and stem.bias is None


@pytest.mark.parametrize("name", ["ms_resnet18", "ms_resnet104"])
def test_gates_are_not_started_at_zero(name):
    """A ReLU follows the gates, and would pass nothing back to a norm of gamma 0."""
    plain, gated = (few(name, attention=gates) for gates in (None, "CSA"))
    second = "stages.0.0.second.norm.weight"
    assert (plain.state_dict()[second] == 0).all() and (gated.state_dict()[second] == 0.1).all()
    gated(images(2, 3, 32, 32, dtype=torch.float32)).square().sum().backward()
    assert gated.stages[1][1].second.norm.weight.grad.any()


def test_dropout_stands_before_the_classifier():
    """Spec 3.2: the mean over H, W and T, dropout, the linear layer."""
    model = randomised(few("att_ms_resnet18", dropout=1.0))
    x = images(2, 3, 64, 64, dtype=torch.float32)
    same_bits(model(x), model.classifier.bias.expand(2, -1))
    assert (model.eval()(x) != model.classifier.bias).any()
    model.train().dropout.p = 0.0
    assert (model(x) != model.classifier.bias).all()


# ---- the numbers
# ------------------------------------------------------------------------------------------


def published_forward(model, x):
    """The network as published, written out: T copies of the image, every norm over all of them."""
    plan = model.plan

    def lif(x):
        u, spikes = torch.zeros_like(x[0]), []
        for current in x:
            u = current if not spikes else 0.25 * u * (1 - spikes[-1]) + current
            spikes.append((u > 0.5).to(u.dtype))
        return torch.stack(spikes)

    def normed(norm, x):
        y = F.batch_norm(
            x.transpose(0, 1).movedim(2, 0).flatten(1).t(),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            norm.training,
            norm.momentum,
            norm.eps,
        )
        shape = (x.shape[2], x.shape[1], x.shape[0], *x.shape[3:])
        return y.t().view(shape).movedim(0, 2).transpose(0, 1)

    def each(layer, x):
        return torch.stack([layer(step) for step in x])

    membrane = normed(model.stem.norm, each(model.stem.current, torch.stack([x] * plan.steps)))
    for block in (block for stage in model.stages for block in stage):
        y = normed(block.first.norm, each(block.first.current, lif(membrane)))
        y = normed(block.second.norm, each(block.second.current, lif(y)))
        y = y if block.second.attention is None else block.second.attention(y)
        if block.shortcut is not None:
            read = each(lambda step, block=block: block.shortcut.current(block.pool(step[None])[0]), membrane)
            membrane = normed(block.shortcut.norm, read)
        membrane = membrane + y
    rates = each(lambda step: step.mean((2, 3)), lif(membrane)).mean(0)
    return model.classifier(rates)


@pytest.mark.parametrize("name", ["ms_resnet18", "ms_resnet104", "att_ms_resnet18"])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_published_composition(name, steps, backend):
    """Outputs and running statistics after a step of training, in which the image is T images; then those of
    evaluation.
    """
    x, results = images(3, 3, 32, 32), []
    for written_out in (False, True):
        torch.manual_seed(5)
        model = randomised(few(name, steps=steps, backend=backend)).double()
        forward = (lambda x, m=model: published_forward(m, x)) if written_out else model
        with torch.no_grad():
            results.append([model.train() and forward(x)])
            results[-1] += [t.clone() for k, t in model.state_dict().items() if "running" in k]
            model.eval()
            results[-1].append(forward(x))
    assert results[0][0].std() > 1e-3
    for ours, published in zip(*results, strict=True):
        close64(ours, published, 1e-10)


@pytest.mark.parametrize("name", ["ms_resnet18", "ms_resnet104", "att_ms_resnet18"])
def test_a_static_image_is_read_once(name):
    """By the stem, its norm, the first neuron and the first shortcut; by everything else T times."""
    model, read = few(name, steps=5), {}
    for key, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and ".attention." not in key:
            module.register_forward_pre_hook(lambda m, a, key=key: read.setdefault(key, []).append(len(a[0])))
    model.stem_neuron.register_forward_pre_hook(lambda m, a: read.update(neuron=len(a[0])))
    model(images(2, 3, 32, 32, dtype=torch.float32))
    assert read.pop("neuron") == 1
    for key, counts in read.items():
        once = key.startswith("stem.") or key == "stages.0.0.shortcut.current"
        assert counts == [2 if once else 10], key


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_norm_that_repeats(backend, momentum):
    """Values, gradients and running statistics are those of T copies."""
    torch.manual_seed(3)
    layer = layers.NormedLayer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=momentum), backend=backend)
    conv, norm = nn.Conv2d(2, 4, 3).double(), nn.BatchNorm2d(4, momentum=momentum).double()
    layer.double()
    conv.load_state_dict(layer.current.state_dict())
    for seed in range(2):
        x = images(1, 3, 2, 6, 6, seed=seed)
        grads = images(7, 3, 4, 4, 4, seed=9)
        ours, copies = (x.clone().requires_grad_() for _ in range(2))
        (layer(ours, repeats=7) * grads).sum().backward()
        out = norm(conv(copies.expand(7, -1, -1, -1, -1).flatten(0, 1))).unflatten(0, (7, 3))
        (out * grads).sum().backward()
        close64(layer(x, repeats=7).detach().expand_as(out), out.detach(), 1e-12)
        norm(conv(x.expand(7, -1, -1, -1, -1).flatten(0, 1)))
        close64(ours.grad, copies.grad, 1e-12)
    for name, value in norm.state_dict().items():
        close64(layer.norm.state_dict()[name].double(), value.double(), 1e-12, name)
    for (name, p), q in zip(layer.named_parameters(), [*conv.parameters(), *norm.parameters()], strict=True):
        close64(p.grad, q.grad, 1e-11, name)


@pytest.mark.parametrize("name", ["ms_resnet18", "att_ms_resnet18"])
def test_training_fused_and_reference_agree(fused, name):
    """20 optimiser steps in float64 from one seed: equal losses to 1e-9."""
    losses = []
    for backend in ("fused", "reference"):
        torch.manual_seed(3)
        model = small(name, dropout=0.0, backend=backend).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        x, target, history = images(4, 3, 32, 32), torch.arange(4), []
        for _ in range(20):
            loss = F.cross_entropy(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        losses.append(history)
    assert losses[0][-1] < losses[0][0] and len(set(losses[0])) >= 18  # it learns
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) <= 1e-9


@pytest.mark.parametrize("name", ["ms_resnet18", "att_ms_resnet18"])
def test_channels_last(fused, name):
    """The same numbers in either order, kept through the network; and no state is left in its modules."""
    x, results = images(2, 3, 64, 64), []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(2)
        model = randomised(few(name, steps=3, backend="fused")).double().to(memory_format=memory_format)
        with layers.watch(model) as seen:
            out = model(x.to(memory_format=memory_format))
        (out * images(2, 10, seed=4)).sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
        maps = seen["stages.1.0.second"].flatten(0, 1)
        assert maps.is_contiguous(memory_format=memory_format)
        assert not stray_tensors(model)
    for planes, last in zip(*results, strict=True):
        close64(last, planes, 1e-10)


@pytest.mark.parametrize("every_step", [False, True])
def test_compile_fullgraph(fused, every_step):
    torch.manual_seed(2)
    plan = replace(PLANS["att_ms_resnet18"], blocks=(2,), channels=(8,), classes=10, dropout=0.0, steps=3)
    model, x = MSResNet(plan, "fused"), images(2, 3, 32, 32, dtype=torch.float32)
    results = []
    for f in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        out = f(x, every_step=every_step)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in model.parameters())])
    for eager, compiled in zip(*results, strict=True):
        same_bits(compiled, eager)


def spikes_of(model, x):
    """The last neurons', [T, N, C, H, W], by the network's parts."""
    membrane = model.stem(x[None], repeats=model.plan.steps)
    spikes = model.stem_neuron(membrane, steps=model.plan.steps)
    for block in (block for stage in model.stages for block in stage):
        membrane, spikes = block(membrane, spikes)
    return spikes


@pytest.mark.parametrize("name", ["ms_resnet18", "ms_resnet104", "att_ms_resnet18"])
def test_scores_of_every_step(backend, name):
    """Values and gradients as by hand, in training; their mean is what the network returns."""
    x, results = images(2, 3, 64, 64), []  # whose last maps are 2 x 2

    def by_hand(model):
        return torch.stack([model.classifier(step.mean((2, 3))) for step in spikes_of(model, x)])

    for f in (lambda m: m(x, every_step=True), by_hand):
        torch.manual_seed(5)
        model = randomised(few(name, steps=4, backend=backend)).double()
        scores = f(model)
        (scores * images(4, 2, 10, seed=2)).sum().backward()
        results.append([scores.detach(), *(p.grad for p in model.parameters())])
    assert (results[0][0][1:] != results[0][0][:-1]).any((1, 2)).all()  # each step its own
    for ours, theirs in zip(*results, strict=True):
        close64(ours, theirs, 1e-12)
    for mode in (True, False):
        model.train(mode)
        close64(model(x, every_step=True).mean(0), model(x), 1e-12)


def test_dropout_of_every_step():
    """A mask for each; but one for all, with the same draws as ever, where the scores are averaged."""
    model, seen = randomised(few("att_ms_resnet18", steps=4, dropout=0.5)).double(), []
    x = images(2, 3, 32, 32)
    torch.manual_seed(1)
    out = model(x)
    drawn = torch.get_rng_state()
    torch.manual_seed(1)
    same_bits(out, model.classifier(F.dropout(spikes_of(model, x).mean((0, 3, 4)))))
    assert torch.equal(torch.get_rng_state(), drawn)

    model.dropout.register_forward_hook(lambda m, args, out: seen.append((*args, out)))
    scores = model(x, every_step=True)
    ((rates, dropped),) = seen
    assert rates.shape == (4, 2, 64) and ((dropped == 0) | (dropped == 2 * rates)).all()
    both = (rates[:-1] > 0) & (rates[1:] > 0)
    assert ((dropped[:-1] > 0) != (dropped[1:] > 0))[both].any()
    close64(scores, torch.stack([model.classifier(step) for step in dropped]), 1e-14)


# ---- what it costs
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ms_resnet18", "ms_resnet104", "att_ms_resnet18"])
def test_no_pass_over_the_maps_but_the_ops(fused, name):
    """Forward and backward. Outside of the ops stands the read-out's mean."""
    seen = {}
    for backend in ("fused", "reference"):
        model = few(name, steps=5, backend=backend)
        with OnMaps(5, 3) as mode:
            model(images(3, 3, 64, 64, dtype=torch.float32)).square().sum().backward()
        seen[backend] = mode.seen
    passes = {"lif_forward", "lif_backward", "seam_statistics", "lif_seam_forward", "lif_seam_backward"}
    assert passes | {"seam_gradient"} <= seen["fused"]
    assert ("average_pool" in seen["fused"]) == (name != "ms_resnet18")
    found = seen["fused"] & (FORBIDDEN | {"add", "clone", "copy_", "cat"})
    assert not found, found
    assert len(seen["reference"] & FORBIDDEN) >= 5  # the check sees what it forbids


@pytest.mark.parametrize("name", ["ms_resnet18", "att_ms_resnet18"])
def test_bytes_kept(fused, name):
    """For backward, of maps: every convolution's output z and input spikes, the membranes that a shortcut's
    convolution reads, two bits a value of neurons with a shortcut; nothing else of their size.
    """
    steps, samples = 4, 2
    model = small(name, steps=steps, width=0.25, backend="fused")
    x = images(samples, 3, 64, 64, dtype=torch.float32)
    allowed = x.numel() * 4 + sum(p.numel() * 4 for p in model.parameters())

    def z(module, args, out):
        nonlocal allowed
        allowed += out.numel() * 4

    def neuron(module, args, out):
        nonlocal allowed
        out, *membrane = out if isinstance(out, tuple) else (out,)
        allowed += out.numel() * 4
        if not isinstance(module, layers.SpikingLayer) or args[1:]:
            allowed += out.numel() // 4

    def shortcut(module, args, out):
        nonlocal allowed
        membrane, _ = args
        if module.shortcut is not None:
            allowed += membrane.numel() * (1 if model.plan.shortcut == "pool" else 4)

    # What a layer reads has no hooks, for it would be called then.
    seams = [module for module in model.modules() if isinstance(module, layers.SpikingLayer)]
    parts = [part for seam in seams for part in (seam.neuron, seam.attention) if part is not None]
    read = {inner for part in parts for inner in part.modules()}
    for module in set(model.modules()) - read:
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(z)
        elif isinstance(module, layers.SpikingLayer | neurons.LIF):
            module.register_forward_hook(neuron)
        elif type(module).__name__ == "Block":
            module.register_forward_hook(shortcut)
    kept = kept_bytes(lambda: model(x).sum())
    small_tensors = 0.04 * allowed  # by plane and by pixel: descriptors, gates, places of maxima
    assert allowed < kept < allowed + small_tensors, (kept, allowed)


# ---- precision, folding, many processes
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("membrane_dtype", [None, torch.float32])
@pytest.mark.parametrize("cast", ["autocast", "module"])
def test_bfloat16(backend, membrane_dtype, cast):
    """Convolutions in bfloat16, by autocast or with bfloat16 weights; the residual stream as asked for."""
    wanted = membrane_dtype or torch.bfloat16
    model = few("att_ms_resnet18", steps=3, membrane_dtype=membrane_dtype, backend=backend)
    model = model if cast == "autocast" else model.bfloat16()
    x = images(2, 3, 32, 32, dtype=torch.float32 if cast == "autocast" else torch.bfloat16)
    blocks, seen = [b for stage in model.stages for b in stage], []
    for block in blocks:
        block.register_forward_hook(lambda m, args, out: seen.append((*args, *out)))
    with torch.autocast("cpu", torch.bfloat16, enabled=cast == "autocast"):
        out = model(x)
    assert len(seen) == 5
    for i, (membrane, spikes, after, emitted) in enumerate(seen):
        assert membrane.dtype == wanted and emitted.dtype == torch.bfloat16
        assert spikes.unique().tolist() in ([0.0, 1.0], [0.0], [1.0])
        assert after is None if i == 4 else after.dtype == wanted
    out.float().square().sum().backward()
    assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in model.parameters())
    assert model.stages[1][0].shortcut.current.weight.grad.any()


def test_a_wide_residual_stream_is_not_rounded(backend):
    """Many small sums onto a large membrane vanish in bfloat16 and add up in float32."""
    x = 64 + torch.zeros(1, 1, 2, 3, 3)
    for dtype, want in ((None, 64.0), (torch.float32, 65.25)):
        conv = nn.Conv2d(2, 2, 1, bias=False).bfloat16()
        nn.init.constant_(conv.weight, 0.0625)
        neuron = neurons.ms_resnet(backend=backend)
        layer = layers.SpikingLayer(conv, neuron, membrane=True, membrane_dtype=dtype)
        membrane = x if dtype else x.bfloat16()
        for _ in range(10):
            spikes, membrane = layer(torch.ones(1, 1, 2, 3, 3, dtype=torch.bfloat16), membrane)
        assert spikes.dtype == torch.bfloat16 and (membrane == want).all()


@pytest.mark.parametrize("name", ["ms_resnet18", "ms_resnet104", "att_ms_resnet18"])
def test_folded_norms(name):
    model = randomised(few(name, steps=3)).double()
    x = images(2, 3, 64, 64)
    folded = layers.fold(model)
    assert model.training and not folded.training
    assert not any("norm" in key for key in folded.state_dict())
    close64(folded(x), model.eval()(x), 1e-12)


def test_watch_names_the_neurons():
    """In order; a block's second layer holds the next block's first neuron, or the read-out's."""
    model = small("ms_resnet18")
    with layers.watch(model) as seen, torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
    blocks = [f"stages.{i}.{j}.{part}" for i in range(4) for j in range(2) for part in ("first", "second")]
    assert list(seen) == ["stem_neuron", *blocks]
    assert seen["stem_neuron"].shape == (3, 2, 8, 16, 16) and seen[blocks[-1]].shape == (3, 2, 64, 1, 1)


def test_synchronised_norms_are_norms():
    """Converted, in one process: the same bits, every norm among them."""
    torch.manual_seed(1)
    model = randomised(small("att_ms_resnet18", dropout=0.0))
    x = images(2, 3, 64, 64, dtype=torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    out = model(x)
    model.load_state_dict(before)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 21 and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    same_bits(converted(x), out)


SHARES = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from attsnn import layers
rank, backend, rendezvous = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
torch.manual_seed(0)
layer = layers.NormedLayer(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), backend=backend).double()
layer = nn.SyncBatchNorm.convert_sync_batchnorm(layer)
whole = torch.randn(1, 4, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
out = layer(whole[:, :3] if rank == 0 else whole[:, 3:], repeats=6)
torch.save([out.detach(), layer.norm.running_var, layer.state_dict(), whole], f"{rendezvous}.{rank}.pt")
dist.destroy_process_group()
os._exit(0)  # a late thread of gloo aborts an interpreter that is ending (torch 2.13)
"""


def test_repeats_over_two_processes(backend, tmp_path):
    """Unequal shares of a static image's batch: the variance counts all of them, T times."""
    command = [sys.executable, "-c", SHARES]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    rendezvous = tmp_path / "rendezvous"
    started = [
        subprocess.Popen([*command, str(rank), backend, rendezvous], env=environment) for rank in (0, 1)
    ]
    assert [process.wait(120) for process in started] == [0, 0]
    (first, var, state, whole), (second, other, *_) = (torch.load(f"{rendezvous}.{r}.pt") for r in (0, 1))
    conv, norm = nn.Conv2d(2, 3, 3).double(), nn.BatchNorm2d(3).double()
    conv.load_state_dict({k.removeprefix("current."): v for k, v in state.items() if "current" in k})
    with torch.no_grad():
        out = norm(conv(whole.expand(6, -1, -1, -1, -1).flatten(0, 1))).unflatten(0, (6, 4))
    close64(torch.cat([first, second], 1).expand_as(out), out, 1e-12)
    for variance in (var, other):
        close64(variance, norm.running_var, 1e-12)


# ---- pruning
# ------------------------------------------------------------------------------------------


def pruned_by_hand(x, gates, name, keep_steps, keep_channels, reserve):
    """Spec 2.3, sample by sample, on [N, T, C, H, W]."""

    def mlp(part, d):
        return part.expand.weight @ torch.relu(part.reduce.weight @ d)

    def winners(score, keep):
        order = sorted(range(len(score)), key=lambda i: (-score[i].item(), i))[: math.ceil(keep * len(score))]
        return torch.tensor([float(i in order) for i in range(len(score))], dtype=score.dtype)

    results = []
    for sample in x.transpose(0, 1):  # [T, C, H, W]
        y, result = sample, sample
        if "T" in name:
            by_step = sample.flatten(1)
            score = torch.sigmoid(mlp(gates.temporal, by_step.mean(1)) + mlp(gates.temporal, by_step.amax(1)))
            mask = winners(score, keep_steps)
            y = y * score[:, None, None, None]
            result = result * (mask * score * mask if reserve else mask)[:, None, None, None]
        if "C" in name:
            by_channel = y.transpose(0, 1).flatten(1)
            score = torch.sigmoid(
                mlp(gates.channel, by_channel.mean(1)) + mlp(gates.channel, by_channel.amax(1))
            )
            mask = winners(score, keep_channels)
            result = result * (mask * score * mask if reserve else mask)[:, None, None]
        results.append(result)
    return torch.stack(results, 1)


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("name", ["TA", "CA", "TCA"])
@pytest.mark.parametrize(("steps", "samples"), [(4, 3), (4, 1), (1, 3), (1, 1)])
def test_pruning(name, reserve, steps, samples):
    """Values and gradients against the definition; also for T = 1 and N = 1, where published code fails."""
    shares = {"keep_steps": 0.6 if "T" in name else None, "keep_channels": 0.3 if "C" in name else None}
    sizes = {"channels": 6, "steps": steps, "channel_ratio": 2, "temporal_ratio": 1}
    gates = attention(name, **sizes, **shares, reserve_coefficient=reserve).double()
    for parameter in gates.parameters():
        nn.init.normal_(parameter)
    x, grads = images(steps, samples, 6, 3, 3), []
    for f in (gates, lambda x: pruned_by_hand(x, gates, name, *shares.values(), reserve)):
        gates.zero_grad()
        leaf = x.clone().requires_grad_()
        out = f(leaf)
        (out * images(*out.shape, seed=4)).sum().backward()
        grads.append([out.detach(), leaf.grad, *(p.grad for p in gates.parameters() if reserve)])
        assert reserve or all(p.grad is None for p in gates.parameters())  # a mask has no gradient
    for ours, by_hand in zip(*grads, strict=True):
        close64(ours, by_hand, 1e-12)
    passed = grads[0][0].flatten(3).any(3)  # [T, N, C]
    assert (passed.any(2).sum(0) == (math.ceil(0.6 * steps) if "T" in name else steps)).all()
    assert (passed.any(0).sum(1) == (2 if "C" in name else 6)).all()
    assert grads[0][0].min() < 0  # no ReLU


def test_winners():
    score = torch.tensor([[0.3, 0.9, 0.3, 0.1], [0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    assert winner_take_all(score, 0.5, 1).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0]]  # the first of equal ones
    assert winner_take_all(score, 0.26, 1).sum(1).tolist() == [2, 2]
    assert winner_take_all(torch.rand(1, 100), 0.07, 1).sum() == 7
    assert not winner_take_all(score, 0.5, 1).requires_grad


@pytest.mark.parametrize(
    ("gates", "keep"),
    [
        ("CA", {"keep_channels": 0.5}),
        ("TA", {"keep_steps": 0.5}),
        ("TCA", {"keep_steps": 0.5, "keep_channels": 0.5}),
    ],
)
def test_a_pruned_network(backend, gates, keep):
    """Norm, pruning, sum and neuron of a block as by hand; the network trains, one image at a time."""
    model = randomised(few("att_ms_resnet18", attention=gates, steps=4, backend=backend, **keep)).double()
    layer = model.stages[0][0].second.eval()
    s, shortcut = (images(4, 2, 8, 4, 4) > 0.5).double(), images(4, 2, 8, 4, 4, seed=2)
    spikes, membrane = layer(s, shortcut)
    x = layer.norm(layer.current(s.flatten(0, 1))).unflatten(0, (4, 2))
    x = shortcut + layer.attention(x)
    close64(membrane.detach(), x.detach(), 1e-12)
    same_bits(spikes, neurons.ms_resnet()(x))
    model.train()(images(1, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.stages[1][0].second.norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"keep_channels": 0.5}, "needs attention TA, CA, TCA, got 'CSA'"),
        ({"attention": None, "keep_steps": 0.5}, "needs attention TA, CA, TCA, got None"),
        ({"attention": "CA", "keep_steps": 0.5}, "keep_steps: attention CA does not score the steps"),
        ({"attention": "TA", "keep_channels": 0.5}, "attention TA does not score the channels"),
        ({"attention": "CA", "keep_channels": 0.0}, "keep_channels must be a share above 0"),
        ({"attention": "CAS"}, "attention must be None or one of TA, CA"),
        ({"steps": 0}, "steps must be an integer of at least 1"),
        ({"num_classes": 0}, "classes must be an integer of at least 1"),
        ({"channels": (8, 8)}, "channels must be 4 widths"),
        ({"width": 0}, "width must be positive"),
        ({"membrane_dtype": torch.int32}, "membrane_dtype must be None or a floating-point type"),
        ({"dropout": 2.0}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_misuse(keywords, sentence):
    with pytest.raises(ValueError, match=sentence):
        small("att_ms_resnet18", **keywords)


def test_images_that_do_not_fit():
    model = small("att_ms_resnet18")
    for shape in ((3, 2, 3, 32, 32), (2, 1, 32, 32)):
        with pytest.raises(ValueError, match=r"x must be images \[N, 3, H, W\]"):
            model(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"multiples of 32.* got shape \(2, 3, 32, 48\)"):
        model(torch.zeros(2, 3, 32, 48))
    assert small("ms_resnet18")(torch.zeros(2, 3, 40, 56)).shape == (2, 10)  # strides take any size


# ---- published checkpoints
# ------------------------------------------------------------------------------------------


def published(model):
    """Our weights under the published names: the converter's inverse, written out by hand."""
    pools = model.plan.shortcut == "pool"
    deep = isinstance(model.stem.current, nn.Sequential)
    names = {"first.current": "1", "first.norm": "2.bn", "second.current": "4", "second.norm": "5.bn"}
    names |= {
        "second.attention.temporal.reduce": "6.attention.ta.sharedMLP.0",
        "second.attention.temporal.expand": "6.attention.ta.sharedMLP.2",
        "second.attention.channel.reduce": "6.attention.ca.sharedMLP.0",
        "second.attention.channel.expand": "6.attention.ca.sharedMLP.2",
        "second.attention.spatial.conv": "6.attention.sa.conv",
    }
    out = {}
    for key, value in model.state_dict().items():
        part, leaf = key.rsplit(".", 1)
        if part == "classifier":
            name = "fc"
        elif part.startswith("stem.current"):
            name = "conv1" + part.removeprefix("stem.current") if deep else "conv1.0"
        elif part == "stem.norm":
            name = "conv1.3.bn" if deep else "conv1.1.bn"
        else:
            _, stage, block, part = part.split(".", 3)
            if part.startswith("shortcut"):
                inside = (
                    f"shortcut.{int(pools)}" if part == "shortcut.current" else f"shortcut.{1 + pools}.bn"
                )
            else:
                inside = f"residual_function.{names[part]}"
            name = f"conv{int(stage) + 2}_x.{block}.{inside}"
            value = value[..., None, None, None] if "sharedMLP" in name else value
        out[f"module.{name}.{leaf}"] = value
    return out


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("gates", ["CSA", "CA", "TCA", None])
def test_published_weights_round_trip(name, gates):
    """Every variant, depth and attention found in the file."""
    if name.startswith("ms_") and gates is not None:
        return
    family = name.rstrip("0123456789")
    with torch.device("meta"):
        model = small(name, attention=gates)
        theirs = published(model)
        assert len(theirs) == len(model.state_dict())
        state = convert.from_published({"model": theirs, "epoch": 3}, family)
        kwargs = convert.infer_ms_resnet(state, family)
        assert kwargs["name"] == name and kwargs["attention"] == gates and kwargs["num_classes"] == 10
        other = models.create(**kwargs)
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.state_dict().items()}
    assert list(state) == list(model.state_dict()) and kwargs["channels"] == model.plan.channels
    assert gates != "TCA" or kwargs["steps"] == 3


def test_published_file_round_trip(tmp_path):
    """A checkpoint as published -> command line -> safetensors -> strict load, the same network."""
    from safetensors.torch import load_file

    name, family = "att_ms_resnet18", "att_ms_resnet"
    model = randomised(small(name))
    torch.save(published(model), tmp_path / "net.pth")
    command = [sys.executable, "-m", "attsnn.models.convert", family, tmp_path / "net.pth"]
    done = subprocess.run([*command, tmp_path / "net.safetensors"], capture_output=True, text=True)
    assert done.returncode == 0 and name in done.stdout, done.stderr
    _, kwargs = convert.load_published(tmp_path / "net.pth", family)
    other = models.create(**kwargs, steps=3).eval()
    other.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    x = images(2, 3, 32, 32, dtype=torch.float32)
    same_bits(other(x), model.eval()(x))


def test_converter_misuse(tmp_path):
    with torch.device("meta"):
        ours, theirs = (published(small(n)) for n in ("att_ms_resnet18", "ms_resnet18"))
        plain = published(small("att_ms_resnet18", attention=None))
        deep = published(small("ms_resnet104"))
    for state, family, sentence in (
        (ours, "ms_resnet", "is not a key of a published ms_resnet network"),
        (theirs, "att_ms_resnet", "is not a key of a published att_ms_resnet network"),
        (deep, "att_ms_resnet", "is not a key of a published att_ms_resnet network"),
        (plain, "ms_resnet", "shortcuts that pool first: the published att_ms_resnet"),
        ({"conv2_x.0.residual_function.9.weight": torch.ones(1)}, "ms_resnet", "is not a key of a published"),
        ({"conv6_x.0.shortcut.0.weight": torch.ones(1)}, "ms_resnet", "is not a key of a published"),
        ({"fc.weight": [1.0]}, "ms_resnet", "holds list, not a tensor"),
    ):
        with pytest.raises(ValueError, match=sentence):
            convert.from_published(state, family)
    state = {k: torch.zeros(v.shape) for k, v in theirs.items()}
    short = {k: v for k, v in state.items() if "conv5_x.1" not in k}
    headless = {k: v for k, v in state.items() if ".fc." not in k}
    for part, sentence in (
        (short, r"no ms_resnet has \(2, 2, 2, 1\) blocks by stage; there are \(2, 2, 2, 2\) of ms_resnet18"),
        (headless, "an incomplete ms_resnet network, 'classifier.weight' is missing"),
    ):
        torch.save(part, tmp_path / "part.pth")
        with pytest.raises(ValueError, match=sentence):
            convert.load_published(tmp_path / "part.pth", "ms_resnet")
