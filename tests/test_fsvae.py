"""The fully spiking VAE: as published, to the bits; step by step as all at once; what training changes."""

import copy
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import close64
from golden import recipe

from attsnn import layers, models, neurons, ops
from attsnn.models import convert
from attsnn.models.fsvae import VAEOutput
from bench.published_vae import PublishedVAE, loss_of

GOLDEN = Path(__file__).parent / "golden" / "FSVAE_c3.npz"
SMALL = {"size": 16, "steps": 8, "latent": 6, "k": 5, "widths": (4, 6), "hidden": (8, 10)}


def published(meta) -> dict[str, torch.Tensor]:
    """The state dict of a golden file, its constants too."""

    def value(key, shape):
        if key.endswith("coef"):
            return 0.8 ** np.arange(shape[-1] - 1, -1, -1.0).reshape(shape)
        if key.endswith("initial_input"):
            return np.zeros(shape)
        drawn = recipe.fill(meta["seed"], key, shape, meta.get("gain", 1), meta.get("bn_gain", 1))
        return drawn * np.float32(meta.get("scale", {}).get(key, 1))

    return {k: torch.as_tensor(np.asarray(value(k, tuple(s)))) for k, s in meta["keys"]}


def test_published_network(backend):
    """Latent, prior and posterior exactly; with the running statistics, then with the batch's."""
    data = np.load(GOLDEN)
    meta = json.loads(str(data["meta"]))
    state, keywords = convert.recognise(published(meta), "fsvae")
    assert keywords == {
        "name": "fsvae", "in_channels": 3, "size": 32, "steps": 16, "latent": 128, "k": 20,
        "widths": (32, 64, 128, 256), "hidden": (256, 512), "pfa": "published", "rank": 64,
    }  # fmt: skip
    model = models.create(**keywords, backend=backend)
    model.load_state_dict(state, strict=True)
    model.double()
    assert sum(p.numel() for p in model.parameters()) == meta["params"]
    images = torch.as_tensor(recipe.normal(meta["seed"], "input", (2, 3, 32, 32))).double().clamp(-1, 1)
    z = torch.as_tensor(recipe.spikes(meta["seed"], "z", (2, 128, 16), 0.3)).double().permute(2, 0, 1)
    for mode in ("eval", "train"):
        model.train(mode == "train")
        with torch.no_grad():
            latent = model.encode(images)
            found = {
                "recon": model.decode(z),
                "prior_mean": model.prior_bits(z).mean(-1).permute(1, 2, 0),
                "posterior_mean": model.posterior_bits(latent, z).mean(-1).permute(1, 2, 0),
                "latent": latent.permute(1, 2, 0),
            }
        for name, value in found.items():
            close64(value, torch.as_tensor(data[f"{mode}_{name}"]), 1e-13, f"{mode} {name}")


@pytest.mark.parametrize(
    ("name", "keywords", "count"),
    [
        ("fsvae", {}, 4_053_601),
        ("fsvae", {"in_channels": 3}, 4_054_755),
        ("fsvae", {"in_channels": 3, "pfa": True}, 4_065_379),
        ("fsvae_large", {}, 6_681_571),
    ],
)
def test_parameters(name, keywords, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in models.create(name, **keywords).parameters()) == count


def vae(backend="reference", name="fsvae", **changes):
    torch.manual_seed(3)
    return models.create(name, **{**SMALL, **changes}, backend=backend).double()


def pictures(n: int = 5, channels: int = 1, size: int = 16) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.rand(n, channels, size, size, generator=draw, dtype=torch.float64) * 2 - 1


def calibrated(backend="reference", **changes):
    """In evaluation, its running statistics those of a batch: else nothing fires."""
    model = vae(backend, **changes)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    images = pictures(32, model.plan.in_channels, model.plan.size)
    for _ in range(2):
        model.train()(images)
    return model.eval()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_step_at_a_time_draws_what_all_at_once_does(backend):
    """Prior and posterior in evaluation, to the bit; as published each prefix is computed anew."""
    model, n = calibrated(backend), 7
    plan, draw = model.plan, seeded(11)
    with torch.no_grad():
        z = torch.zeros(0, n, plan.latent, dtype=torch.float64)
        for _ in range(plan.steps):
            padded = torch.cat([z, z.new_zeros(1, n, plan.latent)])
            bits = model.prior_bits(padded)[-1]
            j = torch.randint(0, plan.k, (n * plan.latent,), generator=draw).view(n, plan.latent, 1)
            z = torch.cat([z, bits.gather(-1, j)[None, ..., 0]])
        assert torch.equal(model.sample_z(n, seeded(11)), z) and 0.05 < z.mean() < 0.95
        assert torch.equal(model.sample(n, seeded(11)), model.decode(z))

        images, draw = pictures(n), seeded(12)
        latent, z, indices = model.encode(images), torch.zeros(0, n, plan.latent).double(), []
        for t in range(plan.steps):
            padded = torch.cat([z, z.new_zeros(1, n, plan.latent)])
            bits = model.posterior_bits(latent[: t + 1], padded)[-1]
            indices.append(torch.randint(0, plan.k, (n * plan.latent,), generator=draw).view(n, -1, 1))
            z = torch.cat([z, bits.gather(-1, indices[-1])[None, ..., 0]])
        out = model(images, generator=seeded(12))
        assert torch.equal(out.z, z) and 0.05 < z.mean() < 0.95
        assert torch.equal(out.posterior, model.posterior_bits(latent, z))
        assert torch.equal(out.prior, model.prior_bits(z))
        assert torch.equal(out.images, model.decode(z))


def test_draws_are_those_of_the_generator_alone():
    model = calibrated()
    images = pictures()
    with torch.no_grad():
        first = model(images, generator=seeded(1))
        torch.rand(3), random.random()
        again, other = model(images, generator=seeded(1)), model(images, generator=seeded(2))
        torch.manual_seed(1)
        default = model(images)
    assert all(map(torch.equal, first, again)) and all(map(torch.equal, first, default))
    assert not torch.equal(first.z, other.z)


def updates(model) -> dict[str, set[int]]:
    """How often each part's running statistics were updated."""
    found = {}
    for name, buffer in model.named_buffers():
        if name.endswith("num_batches_tracked"):
            found.setdefault(name.split(".")[0], set()).add(int(buffer))
    return found


@pytest.mark.parametrize("prefix", ["exact", "running"])
def test_running_statistics_of_a_training_step(prefix):
    """As published those of the posterior take each prefix, those of the prior each scheduled one."""
    model = vae(prefix=prefix).train()
    model(pictures(), scheduled=1.0)  # steps 5 and 6 of 0 ... 6 are drawn from the prior
    passes = {"posterior": model.plan.steps, "prior": 3} if prefix == "exact" else {}
    for part, counts in updates(model).items():
        assert counts == {passes.get(part, 1)}, part
    model.eval()(pictures(), scheduled=1.0)
    assert updates(model)["encoder"] == {1}


def test_prefixes_in_training_have_the_statistics_that_their_name_says(monkeypatch):
    """The first draw of "exact" is that of a pass with the batch's statistics of one step."""
    model, images = vae().train(), pictures()
    twin = copy.deepcopy(model)
    seen = []
    bits = type(model).posterior_bits
    monkeypatch.setattr(type(model), "posterior_bits", lambda self, e, z: seen.append(z) or bits(self, e, z))
    model(images, generator=seeded(4))
    latent = twin.encode(images)
    with torch.no_grad():
        first = twin.posterior_bits(latent[:1].detach(), torch.zeros(1, 5, 6).double())[-1]
    j = torch.randint(0, 5, (30,), generator=seeded(4)).view(5, 6, 1)
    assert torch.equal(seen[0][0], first.gather(-1, j)[..., 0]) and seen[0][0].any()


def test_scheduled_sampling_feeds_the_prior_its_own_rates(monkeypatch):
    """From step 5 on, in training alone; what it has not drawn is the posterior's."""
    model, images, seen = vae().train(), pictures(), []
    bits = type(model).prior_bits
    monkeypatch.setattr(type(model), "prior_bits", lambda self, z: seen.append(z) or bits(self, z))
    out = model(images, scheduled=1.0, generator=seeded(2))
    (given,) = seen
    assert torch.equal(given[:5], out.z[:5]) and not torch.equal(given[5:7], out.z[5:7])
    assert set(given.unique().tolist()) <= {0.0, 1.0} and not given.requires_grad
    seen.clear()
    out = model(images, scheduled=0.0, generator=seeded(2))
    assert torch.equal(seen[0], out.z)
    seen.clear()
    out = model.eval()(images, scheduled=1.0, generator=seeded(2))
    assert torch.equal(seen[0], out.z)


@pytest.mark.parametrize("pfa", [False, True, "published"])
@pytest.mark.parametrize(("channels", "size", "name"), [(1, 16, "fsvae"), (3, 32, "fsvae_large")])
def test_a_still_image_is_that_image_at_every_step(backend, pfa, channels, size, name):
    """Values, gradients and running statistics; a PFA serves every number of channels and every size."""
    changes = {"in_channels": channels, "size": size, "pfa": pfa, "rank": 3, "widths": (4, 6, 8)}
    once, whole = (vae(backend, name, **changes).train() for _ in range(2))
    images = pictures(3, channels, size)
    latent = once.encode(images)
    x = images.expand(8, *images.shape).contiguous()
    x = x if whole.attention is None else whole.attention(x)
    wanted = whole.before_latent(whole.encoder(x).flatten(2))
    close64(latent, wanted, 1e-12)
    grad = torch.randn(latent.shape, generator=seeded(1), dtype=torch.float64)
    for out in (latent, wanted):
        out.backward(grad)
    for (key, ours), plain in zip(once.named_parameters(), whole.parameters(), strict=True):
        assert (ours.grad is None) == (plain.grad is None), key
        if ours.grad is not None:
            close64(ours.grad, plain.grad, 1e-9, key)
    for (key, ours), plain in zip(once.named_buffers(), whole.buffers(), strict=True):
        close64(ours.double(), plain.double(), 1e-12, key)


def test_the_image_is_read_from_a_membrane(backend):
    """The closing convolution of every step, then tanh of a membrane with decay 0.8 that does not fire."""
    model = calibrated(backend)
    z = (torch.rand(8, 3, 6, generator=seeded(9)) < 0.4).double()
    with torch.no_grad():
        x = model.decoder(model.decoder_input(z).unflatten(2, (6, 4, 4)))
        membrane = torch.zeros(3, 1, 16, 16, dtype=torch.float64)
        for step in x:
            membrane = 0.8 * membrane + model.final(step)
        close64(model.decode(z), membrane.tanh(), 1e-13)


def test_losses():
    """MMD by the filter's recursion, KLD by hand; gradients reach both sides, images the first term alone."""
    draw = seeded(1)
    q, p = (torch.rand(4, 3, 2, 5, generator=draw, dtype=torch.float64).requires_grad_() for _ in range(2))
    images, target = pictures(3).requires_grad_(), pictures(3) * 0.5
    out = VAEOutput(images, q, p, q[..., 0])
    reconstruction, mmd = models.fsvae.loss(out, target)
    assert torch.allclose(reconstruction, (images - target).square().mean(), rtol=1e-14)
    s, squares = torch.zeros(3, 2).double(), []
    for step in (q - p).mean(-1):
        s = s + (step - s) / 2
        squares.append(s.square())
    assert torch.allclose(mmd, torch.stack(squares).mean(), rtol=1e-13)
    a, b = q.mean(-1), p.mean(-1)
    terms = a * ((a + 0.01) / (b + 0.01)).log() + (1 - a) * ((1 - a + 0.01) / (1 - b + 0.01)).log()
    kld = models.fsvae.loss(out, target, "kld")[1]
    assert torch.allclose(kld, terms.sum(2).sum(0).mean(), rtol=1e-13) and kld > 0
    grads = torch.autograd.grad(mmd, (q, p, images), allow_unused=True)
    assert grads[0].any() and grads[1].any() and grads[2] is None


def test_gradients_go_where_published_ones_do(backend):
    """The prior's from the distance alone; the encoder's from both."""
    model = vae(backend).train()
    out = model(pictures(), generator=seeded(3))
    reconstruction, distance = models.fsvae.loss(out, pictures())
    reconstruction.backward(retain_graph=True)
    assert all(p.grad is None for p in model.prior.parameters())
    assert model.encoder[0].current.weight.grad.any() and model.posterior[0].current.weight.grad.any()
    model.zero_grad()
    distance.backward()
    assert model.prior[0].current.weight.grad.any() and model.encoder[0].current.weight.grad.any()
    assert all(p.grad is None for p in model.decoder.parameters())


def test_backends_train_alike():
    """Losses of a few steps of AdamW in float64."""
    histories = []
    for backend in ("reference", "fused"):
        if backend == "fused" and not ops.use_fused("auto", "cpu"):
            pytest.skip("the kernels are not built")
        model, losses = vae(backend, pfa=True, rank=2).train(), []
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
        for step in range(6):
            out = model(pictures(), scheduled=0.3, generator=seeded(step))
            loss = sum(models.fsvae.loss(out, pictures()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        histories.append(losses)
    close64(*(torch.tensor(h, dtype=torch.float64) for h in histories), 1e-9)
    assert histories[0][-1] < histories[0][0]


@pytest.mark.parametrize("scheduled", [0.0, 1.0])
def test_the_published_structure_computes_the_same(backend, scheduled):
    """Time last, 3-D convolutions, a loop of neurons, each prefix anew (bench/published_vae.py): a training
    step, its gradients and all running statistics.
    """
    ours, theirs = vae(backend).train(), vae("reference").train()
    images = pictures()
    out = ours(images, scheduled=scheduled, generator=seeded(6))
    wanted = PublishedVAE(theirs).forward(images, scheduled, seeded(6))
    close64(out.images, wanted.images, 1e-12)
    assert all(map(torch.equal, out[1:], wanted[1:])) and 0.05 < out.z.mean() < 0.95
    sum(models.fsvae.loss(out, images)).backward()
    loss_of(wanted, images).backward()
    for (key, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        close64(a.grad, b.grad, 1e-9, key)
    for (key, a), b in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        close64(a.double(), b.double(), 1e-12, key)


def test_a_norm_that_knows_the_threshold(backend):
    """tdBN: its weight is learned as it is, and used times alpha and the threshold; so in a folded copy."""
    torch.manual_seed(1)
    layer = layers.SpikingLayer(
        torch.nn.Conv2d(2, 3, 3, padding=1),
        neurons.fsvae(backend=backend),
        norm=torch.nn.BatchNorm2d(3),
        norm_scale=0.4,
    ).double()
    x = torch.randn(4, 2, 2, 5, 5, dtype=torch.float64)
    z = layers.over_time(layer.current, x)
    mean, var = z.mean((0, 1, 3, 4)), z.var((0, 1, 3, 4), unbiased=False)
    y = 0.4 * (z - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    out = layer.train()(x)
    assert torch.equal(out, layer.neuron(y)) and out.any() and "norm_scale=0.4" in repr(layer)
    out.sum().backward()
    assert layer.norm.weight.grad.shape == (3,)
    layer.norm.momentum = 1.0
    with torch.no_grad():
        layer(x)
        layer.eval()
        folded = layers.fold(torch.nn.Sequential(layer))
        assert folded[0].norm is None
        given = layer.norm.weight[:, None, None] * 0.4 * (z - layer.norm.running_mean[:, None, None])
        given = given / (layer.norm.running_var[:, None, None] + 1e-5).sqrt()
        close64(layers.over_time(folded[0].current, x), given, 1e-13)


def test_a_layer_streams(backend):
    """`step` by `step` as the sequence in evaluation; in training it leaves the statistics as they are."""
    torch.manual_seed(1)
    layer = layers.SpikingLayer(
        torch.nn.Linear(4, 6), neurons.fsvae(backend=backend), norm=torch.nn.BatchNorm1d(6), norm_scale=0.4
    ).double()
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    layer.train()(x)
    before = copy.deepcopy(layer.state_dict())
    v, emitted = None, []
    for step in x:
        out, v = layer.step(step, v)
        emitted.append(out)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(torch.stack(emitted), layer.eval()(x)) and out.any()
    pooled = layers.SpikingLayer(None, neurons.leaky(backend=backend), norm=torch.nn.BatchNorm2d(2), pool=2)
    maps = 3 * torch.rand(1, 2, 2, 4, 4)
    still = pooled.eval()(maps, steps=3)
    assert torch.equal(still, pooled(maps.expand(3, -1, -1, -1, -1))) and still.any()
    assert torch.equal(still[0], pooled.step(maps[0])[0])
    residual = layers.SpikingLayer(None, neurons.leaky(), membrane=True)
    for act in (lambda: residual.step(maps[0]), lambda: residual(maps, steps=3)):
        with pytest.raises(ValueError, match="is for a layer without attention, shortcut and membrane"):
            act()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"size": 18}, "size must be a multiple of 4, to halve it so often; got 18"),
        ({"widths": (4, 0)}, r"widths must be 2 widths of at least 1, got \(4, 0\)"),
        ({"hidden": (4,)}, r"hidden must be 2 widths of at least 1, got \(4,\)"),
        ({"pfa": "ours"}, "pfa must be False, True or \"published\", got 'ours'"),
        ({"prefix": "cumulative"}, 'prefix must be "exact" or "running", got \'cumulative\''),
        ({"k": 0}, "k must be"),
    ],
)
def test_misuse(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        vae(**changes)


def test_misuse_of_a_network():
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 16, 16\], got \(2, 3, 16, 16\)"):
        vae()(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=r"sample\(\) wants evaluation mode"):
        vae().train().sample(3)


def test_conversion(tmp_path):
    """File to file, and into the network that it means; what is none of theirs is refused by name."""
    meta = json.loads(str(np.load(GOLDEN)["meta"]))
    theirs = {k: v.float() for k, v in published(meta).items()}
    torch.save(theirs, tmp_path / "best.pth")
    convert.main("fsvae", tmp_path / "best.pth", tmp_path / "ours.safetensors")
    state, keywords = convert.load_any(tmp_path / "ours.safetensors", ["fsvae"])
    models.create(**keywords).load_state_dict(state, strict=True)
    plain = {k: v for k, v in theirs.items() if not k.startswith("PFA")}
    assert "pfa" not in convert.recognise(plain, "fsvae")[1]
    for key in ("decoder.0.weight", "prior.layers.1.bn.running_mean", "membrane_output_layer.coef"):
        with pytest.raises(ValueError, match="an incomplete fsvae network"):
            convert.recognise({k: v for k, v in theirs.items() if k != key}, "fsvae")
    for key in ("encoder.0.conv.weight", "encoder.0.running_mean", "PFA.weight", "fc.weight"):
        with pytest.raises(ValueError, match=f"{key!r} is not a key of a published fsvae network"):
            convert.from_published({**theirs, key: torch.zeros(3)}, "fsvae")
    with pytest.raises(ValueError, match="'encoder.1.current.weight' is"):
        convert.recognise({**theirs, "encoder.1.weight": torch.zeros(64, 31, 3, 3, 1)}, "fsvae")


def test_reconstructions_are_images_within_the_range():
    model = calibrated()
    out = model(pictures())
    assert out.images.shape == (5, 1, 16, 16) and out.images.abs().max() <= 1
    assert F.mse_loss(out.images, pictures()) > 0


def test_the_published_autoencoder(tmp_path):
    """Its names are ours: a file of the released network gives its features."""
    net = models.create("fsvae_autoencoder", widths=(4, 6), latent=3, size=16)
    keys = set(models.create("fsvae_autoencoder").state_dict())
    assert {
        "encoder.3.1.running_var",
        "latent_layer.weight",
        "decoder.2.0.bias",
        "final_layer.3.bias",
    } <= keys
    torch.save(net.state_dict(), tmp_path / "mnist_64.pth")
    convert.main("fsvae_autoencoder", tmp_path / "mnist_64.pth", tmp_path / "ours.safetensors")
    state, keywords = convert.load_any(tmp_path / "ours.safetensors", ["fsvae_autoencoder"])
    assert keywords == {
        "name": "fsvae_autoencoder", "in_channels": 1, "size": 16, "widths": (4, 6), "latent": 3
    }  # fmt: skip
    again = models.create(**keywords)
    again.load_state_dict(state, strict=True)
    images = pictures().float()
    assert torch.equal(again.eval().encode(images), net.eval().encode(images))
    assert again(images).shape == images.shape and again(images).abs().max() <= 1
    with pytest.raises(
        ValueError, match="'encoder.0.2.weight' is not a key of a published fsvae_autoencoder"
    ):
        convert.from_published({**state, "encoder.0.2.weight": torch.zeros(1)}, "fsvae_autoencoder")
