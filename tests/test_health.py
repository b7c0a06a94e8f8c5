"""Running statistics that settle, and what a network's health says."""

import copy
import json

import pytest
import test_engine
import torch
from test_train_imagenet import SMALL, imagenet, rows
from torch import nn
from torch.nn.modules import module as every_module
from trainers import flags

from attsnn import engine, layers, models, neurons
from attsnn.profile import health, profile, rates, scores, sentences


def whole(layer, batches):
    """Mean and variance over all values of the layer's currents, in float64."""
    currents = torch.cat([layer.current(x.flatten(0, 1)).double() for x in batches])
    return currents.mean((0, 2, 3)), currents.transpose(0, 1).flatten(1).var(1)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_settle(backend, momentum):
    """All values weigh the same, also those of the smaller batch; not the mean of variances."""
    norm = nn.BatchNorm2d(6, momentum=momentum)
    layer = layers.SpikingLayer(nn.Conv2d(2, 6, 3), neurons.leaky(backend=backend), norm=norm, pool=2)
    net = nn.Sequential(layer, nn.Flatten(2), nn.Dropout(0.5)).double()
    batches = [torch.randn(3, n, 2, 10, 10, dtype=torch.float64) * (n + 1) + n for n in (4, 1, 2)]
    with torch.no_grad():
        mean, variance = whole(layer, batches)
        apart = torch.stack([whole(layer, [x])[1] for x in batches]).mean(0)
    weights = copy.deepcopy(net.state_dict())
    assert layers.settle(net, batches) is net
    assert torch.allclose(norm.running_mean, mean, rtol=1e-12)
    assert torch.allclose(norm.running_var, variance, rtol=1e-12)
    assert not torch.allclose(norm.running_var, apart, rtol=0.1)
    assert net.training and norm.training and norm.num_batches_tracked == 0
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"0.norm.running_mean", "0.norm.running_var"}
    assert not any(v for k, v in vars(every_module).items() if k.startswith("_global_forward"))


def test_settle_norms_that_are_called():
    """PyTorch's own, one with a hook, in front of a linear layer, and over steps that are alike."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.plain = nn.BatchNorm2d(3)
            self.hooked = layers.SpikingLayer(nn.Conv2d(3, 4, 1), neurons.leaky(), norm=nn.BatchNorm2d(4))
            self.last = layers.SpikingLayer(nn.Linear(4, 5), neurons.leaky(), norm=nn.BatchNorm1d(5))
            self.hooked.norm.register_forward_hook(lambda *_: None)

        def forward(self, x):
            x = self.hooked(self.plain(x.flatten(0, 1)).view(x.shape))
            self.features = x.mean((3, 4)).detach()
            return self.last(self.features)

    net = Net().double().eval()
    batches = [(torch.randn(2, n, 3, 5, 5, dtype=torch.float64), "label") for n in (3, 5)]
    seen = []
    layers.settle(net, batches, lambda model, batch: (model(batch[0]), seen.append(model.features)))
    x = torch.cat([batch[0].flatten(0, 1) for batch in batches]).transpose(0, 1).flatten(1)
    assert torch.allclose(net.plain.running_mean, x.mean(1)) and torch.allclose(
        net.plain.running_var, x.var(1)
    )
    features = torch.cat([net.last.current(f.flatten(0, 1)) for f in seen])
    assert torch.allclose(net.last.norm.running_var, features.var(0))
    assert net.plain.num_batches_tracked == 0 and not net.plain.training
    assert net.hooked.norm.running_mean.abs().sum() > 0

    static = models.create("ms_resnet18", width=0.125, steps=4)
    image = torch.rand(3, 3, 32, 32)
    layers.settle(static, [image])
    z = static.stem.current(image).detach().double().transpose(0, 1).flatten(1)
    assert torch.allclose(static.stem.norm.running_mean.double(), z.mean(1), atol=1e-6)
    n = z.shape[1]  # a value counts four times
    want = z.var(1, correction=0) * (4 * n / (4 * n - 1))
    assert torch.allclose(static.stem.norm.running_var.double(), want, rtol=1e-5)


def test_settle_fails_without_a_trace():
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU())
    before = copy.deepcopy(net.state_dict())

    def batches():
        yield torch.randn(4, 2)
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk"):
        layers.settle(net, batches())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    with pytest.raises(ValueError, match="settle: no batch was given"):
        layers.settle(net, [])
    with pytest.raises(ValueError, match=r"settle\(\) sees nothing of what torch.compile runs"):
        layers.settle(torch.compile(net), [torch.randn(4, 2)])


def test_settle_makes_a_silent_network_fire():
    """The story of the first epoch: in training everything fires, in evaluation nothing."""
    torch.manual_seed(0)
    net, images = models.create("ms_resnet18", width=0.25, steps=2), torch.rand(16, 3, 32, 32)

    def fired():
        with torch.no_grad(), layers.watch(net.eval()) as seen:
            net(images)
        return [name for name, emitted in seen.items() if emitted.any()]

    silent = fired()
    layers.settle(net, images.split(4))
    assert len(silent) < 4 and len(fired()) == 17


# ---- health
# ------------------------------------------------------------------------------------------


def gesture(**how):
    how = {"width": 0.125, "size": 16, "steps": 4, "temporal_ratio": 2, **how}
    return models.create("ma_snn_dvs_gesture", **how)


def of(kind, found):
    return next((finding for finding in found.findings if finding.kind == kind), None)


def test_rates_and_scores(backend):
    """By name, those of `watch` and of `run`; of a network of several calls and of steps."""
    net, x = gesture(backend=backend), 2 * torch.rand(4, 3, 2, 16, 16)
    with torch.no_grad(), models.watch(net) as seen, rates(net) as found, scores(net) as gates:
        net(x)
    assert found == {name: pytest.approx((e != 0).double().mean().item()) for name, e in seen.items()}
    layer = net.features[0]
    expected = layer.run(x).scores  # of other statistics by then, but for the first layer's input
    assert gates["features.0"].keys() == {"TA", "CA", "SA"} and gates["classifier.1"].keys() == {"TA"}
    assert gates["features.0"]["TA"].shape == (4, 3) == expected.temporal.shape
    assert torch.allclose(gates["features.0"]["CA"], expected.channel, atol=1e-6)
    assert torch.allclose(gates["features.0"]["SA"], expected.spatial, atol=1e-6)

    composed = gesture(backend=backend)
    composed.load_state_dict(net.state_dict())
    composed.features[0].attention.register_forward_hook(lambda *_: None)
    with torch.no_grad(), scores(composed) as called:
        composed(x)
    assert torch.allclose(called["features.0"]["SA"], expected.spatial, atol=1e-5)

    pfa = models.create("pfa_vgg_cifar10_dvs", width=0.125, steps=3, rank=2, backend=backend)
    with torch.no_grad(), scores(pfa) as factors:
        pfa(torch.rand(3, 2, 2, 48, 48))
    assert list(factors) == ["attention", *(f"stages.{i}.attention" for i in range(4))]
    assert factors["attention"]["PFA"].spatial.shape == (2, 2, 48, 48)

    vae = models.create(
        "fsvae", size=16, widths=(4, 6), hidden=(8, 8), latent=5, k=3, steps=4, backend=backend
    )
    with torch.no_grad(), rates(vae.eval()) as found:
        vae.sample(3)
    assert list(found)[:3] == ["prior.0", "prior.1", "prior.2"]


@pytest.mark.parametrize(
    ("training", "evaluation", "kind", "said"),
    [
        ({"a": 0.2, "b": 0.1}, {"a": 0.0, "b": 0.1}, "silent",
         "1 of 2 layers (a) fire in training and not in evaluation: the norms' running statistics are not"),
        ({"a": 0.2, "b": 0.0}, {"a": 0.0, "b": 0.0}, "silent",
         "2 of 2 layers (a, b) are silent in evaluation, and 1 of them in training too"),
        ({"a": 0.2, "b": 0.5}, {"a": 0.0, "b": 0.1}, "silent", "fire in training and not in evaluation"),
        ({"a": 0.9}, {"a": 0.99}, "always", "1 of 1 layers (a) fire at every step"),
        ({"a": 0.3, "b": 0.1}, {"a": 0.05, "b": 0.1}, "apart",
         "1 of 2 layers (a) fire otherwise in evaluation than in training, a at 5.00% and 30.00%"),
    ],
)  # fmt: skip
def test_what_rates_say(training, evaluation, kind, said):
    assert said in sentences(training, evaluation)[kind]
    assert len(sentences(training, evaluation)) == 1
    assert not sentences({"a": 0.2, "b": 2e-4}, {"a": 0.1, "b": 9e-4})  # of few spikes a factor says nothing


def test_a_healthy_network_and_what_is_as_before():
    torch.manual_seed(0)
    net, data = gesture(), [(2 * torch.rand(4, 6, 2, 16, 16), torch.arange(6)) for _ in range(2)]
    layers.settle(net, data)
    net.features[0].norm.eval()
    net(data[0][0]).sum().backward()
    before = (
        copy.deepcopy(net.state_dict()),
        [p.grad.clone() for p in net.parameters()],
        torch.get_rng_state(),
    )
    modes = [module.training for module in net.modules()]
    found = health(net, data)
    assert found.well and found.batches == 2 and "nothing found" in str(found)
    assert all(torch.equal(value, before[0][name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
    assert modes == [module.training for module in net.modules()]
    with pytest.raises(ValueError, match="no batch"):
        health(net, [])


def test_what_is_ill():
    torch.manual_seed(0)
    x = 2 * torch.rand(4, 6, 2, 16, 16)

    fresh = gesture()  # the running statistics are those of nothing
    found = health(fresh, x)
    assert of("silent", found) and "--settle 20" in str(found)

    stuck = layers.settle(gesture(), [x])
    nn.init.constant_(stuck.features[1].attention.spatial.conv.weight, -200.0)
    nn.init.constant_(stuck.features[2].attention.channel.expand.weight, 0.0)
    found = health(stuck, x)
    assert of("gate", found).layers == ("features.1: SA",) and "stuck at 0" in str(found)

    deaf = layers.settle(gesture(attention=None), [x])
    deaf.features[1].neuron = neurons.ma_snn(threshold=1e4)
    found = health(deaf, x)
    assert set(of("gradient", found).layers) >= {"features.0", "features.1"}
    assert "features.1" in of("silent", found).layers and "in training too" in str(found)

    broken = layers.settle(gesture(), [x])
    with torch.no_grad():
        broken.features[2].current.weight[0, 0, 0, 0] = float("nan")
    found = health(broken, x)
    assert of("not finite", found).layers == ("features.2.current.weight",)

    loud = nn.Sequential(layers.SpikingLayer(nn.Linear(3, 4), neurons.leaky(threshold=-9.0, v_reset=0.0)))
    assert of("always", health(loud, torch.rand(5, 2, 3))).layers == ("0",)

    vae = models.create("fsvae", size=16, widths=(4, 6), hidden=(8, 8), latent=5, k=3, steps=4)
    with pytest.raises(TypeError, match=r"the model returns VAEOutput.*give loss="):
        health(vae, torch.rand(2, 1, 16, 16))
    images = torch.rand(2, 1, 16, 16)
    found = health(vae, images, lambda m, b: models.fsvae.loss(m(b), b))
    assert len(found.evaluation) == 12


# ---- in a training
# ------------------------------------------------------------------------------------------


def see(**given) -> engine.Inside:
    return engine.Inside(rates, sentences, layers.settle, profile, scores)._replace(**given)


def spiking() -> nn.Module:
    """For test_engine's signals [T, N, 6] of four classes."""
    torch.manual_seed(0)
    first = layers.SpikingLayer(nn.Linear(6, 12), neurons.leaky(), norm=nn.BatchNorm1d(12))
    last = layers.SpikingLayer(nn.Linear(12, 4), neurons.leaky(), norm=nn.BatchNorm1d(4))
    return nn.Sequential(first, nn.Dropout(0.3), last, layers.Rate())


@pytest.mark.parametrize("step", [4, 9, 13])
def test_settled_statistics_resume_to_the_same_bits(tmp_path, step):
    """Stopped within an epoch, at its end, and in the next; rates, health and statistics are as if never."""
    how = {"inside": see(), "settle": 3}
    whole, whole_run = test_engine.train(tmp_path / "whole", model=spiking(), **how)
    with pytest.raises(engine.StoppedError):
        loss = test_engine.stopping_at(step)
        test_engine.train(tmp_path / "run", model=spiking(), loss=loss, **how)
    model, run = test_engine.train(tmp_path / "run", model=spiking(), resume="auto", **how)
    assert test_engine.equal(whole, model)
    kept = ("epoch", "test_loss", "test_accuracy", "health")
    assert [[row.get(k) for k in kept] for row in run.rows()] == [
        [row.get(k) for k in kept] for row in whole_run.rows()
    ]
    fresh = copy.deepcopy(model)
    batches = engine.Batches(test_engine.Recordings(), 8, 3, key=lambda i, s: (i, s))
    layers.settle(fresh, [batch for _, batch in batches.epoch(1, 0, 3)], lambda m, b: m(b[0].transpose(0, 1)))
    assert test_engine.equal(fresh, model)


def test_settling_changes_no_weight(tmp_path):
    """Only what evaluation reads; averaged weights have statistics of their own."""
    plain, _ = test_engine.train(tmp_path / "plain", model=spiking())
    settled = spiking()
    update = engine.Update(ema=engine.ema_of(settled, 0.5))
    test_engine.train(tmp_path / "settled", model=settled, inside=see(), settle=2, update=update)
    for (name, a), b in zip(plain.named_parameters(), settled.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(plain[0].norm.running_var, settled[0].norm.running_var)
    assert not torch.equal(update.ema.module[0].norm.running_mean, settled[0].norm.running_mean)
    with pytest.raises(ValueError, match="settle: give `inside`"):
        test_engine.train(tmp_path / "blind", model=spiking(), settle=2)


def test_sentences_are_printed_once_and_recorded(tmp_path, capsys):
    """While it lasts a finding is said once; said again when it comes back."""
    told = iter([{"silent": "A."}, {"silent": "A.", "apart": "B."}, {}, {"silent": "A."}])
    inside = see(sentences=lambda training, evaluation: next(told))
    _, run = test_engine.train(tmp_path / "run", model=spiking(), inside=inside, epochs=4)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("health: ")]
    assert lines == ["health: A.", "health: B.", "health: A."]
    assert [row.get("health") for row in run.rows()] == ["A.", "A. B.", None, "A."]


def test_the_trainer_says_that_nothing_fires(tmp_path, without_curves):
    """The first epochs of a small run, and with --settle; what is kept of the chosen checkpoint."""
    words = ["--synthetic", 40, "--epochs", 2, "--batch", 8, *flags(**SMALL)]
    done = imagenet(*words, "--name", "plain", where=tmp_path)
    assert done.code == 0 and "fire in training and not in evaluation" in done.out
    silent = rows(tmp_path / "runs" / "plain")
    assert "--settle 20" in silent[0]["health"]
    done = imagenet(*words, "--name", "settled", "--settle", 4, where=tmp_path)
    assert done.code == 0 and "not in evaluation" not in done.out
    found = json.loads((tmp_path / "runs" / "settled" / "profile.json").read_text())
    assert found["nasar"] > 0.05 and found["total"]["energy"]["papers"] > 0
    assert "r_EE against the non-spiking twin" in done.out
    done = imagenet(*words, "--name", "compiled", "--settle", 4, "--compile", where=tmp_path)
    assert done.code == 2 and "--settle does not go with --compile" in done.err
    checkpoint = tmp_path / "runs" / "settled"
    done = imagenet("--eval", "--checkpoint", checkpoint, "--settle", 4, where=tmp_path)
    assert done.code == 2 and "--settle does not go with --eval: it is for training" in done.err
    done = imagenet("--eval", "--checkpoint", checkpoint, *flags(**SMALL), where=tmp_path)
    assert done.code == 0 and "NASAR" in done.err
