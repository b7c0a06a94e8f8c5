"""What the published networks compute, in float64 (tests/golden/README.md), with every backend."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from close import close64
from golden import recipe

from attsnn import models
from attsnn.attention import PFA
from attsnn.models import convert

GOLDEN = Path(__file__).parent / "golden"
TASKS = {
    "DVSGestures": "ma_snn_dvs_gesture",
    "CIFAR10DVS": "ma_snn_cifar10_dvs",
    "DVSGait": "ma_snn_dvs_gait",
}
EVENTS = {
    "VGG_CIFAR": "pfa_vgg_cifar10_dvs",
    "VGG_NCAL": "pfa_vgg_ncaltech101",
    "VGG_Gesture": "pfa_vgg_dvs_gesture",
}
EMITS = {"spike": "spike", "mem": "membrane"}
FAMILIES = {
    "ma-snn": "ma_snn",
    "att-res-snn": "att_ms_resnet",
    "ms-resnet": "ms_resnet",
    "pfa": "pfa_vgg",
    "pfa-fmnist": "pfa_fmnist",
    "att-vgg": "att_vgg",
}  # its words for ours


def meta_of(name) -> dict:
    return json.loads(str(np.load(GOLDEN / f"{name}.npz")["meta"]))


FILES = sorted(p.stem for p in GOLDEN.glob("*.npz") if meta_of(p.stem)["family"] in FAMILIES)


def published_weights(meta) -> dict[str, torch.Tensor]:
    def value(key, shape):
        if key in meta.get("ones", ()):
            return np.ones(shape, np.float32)
        drawn = recipe.fill(meta["seed"], key, shape, meta.get("gain", 1), meta.get("bn_gain", 1))
        return drawn * np.float32(meta.get("scale", {}).get(key, 1))

    return {"module." + k: torch.as_tensor(np.asarray(value(k, tuple(s)))) for k, s in meta["keys"]}


def our_names(meta, family) -> dict[str, str]:
    """By the published ones: every tensor holds the number of its key."""
    numbered = {k: torch.tensor(float(i)).expand(s) for i, (k, s) in enumerate(meta["keys"])}
    renamed = convert.from_published(numbered, family).items()
    return {meta["keys"][int(number.flatten()[0])][0]: name for name, number in renamed}


def check_gradients(meta, module, family) -> None:
    """(norm, projection) of the gradient of every published parameter."""
    names, shapes = our_names(meta, family), dict(meta["keys"])
    grads = {k: p.grad for k, p in module.named_parameters()}
    assert set(meta["grads"]) == {theirs for theirs, ours in names.items() if ours in grads}
    seed = meta["seed"] if meta["family"] == "pfa-fmnist" else 7
    error = size = 0.0
    for key, (norm, projection) in meta["grads"].items():
        grad = grads[names[key]].reshape(shapes[key]).numpy()
        direction = recipe.rng_for(seed, key + "/proj").standard_normal(shapes[key])
        error += (np.linalg.norm(grad) - norm) ** 2 + ((grad * direction).sum() - projection) ** 2
        size += norm**2
    assert error**0.5 <= 1e-4 * size**0.5, f"gradients: {error**0.5:.3g} of {size**0.5:.3g}"


def event_network(meta, backend):
    return models.create(
        TASKS[meta["task"]],
        attention=None if meta["attention"] == "no" else meta["attention"],
        steps=meta["T"],
        emit=EMITS[meta["mode"]],
        channel_ratio=meta["c_ratio"],
        temporal_ratio=meta["t_ratio"],
        backend=backend,
    )


def image_network(meta, backend):
    name = FAMILIES[meta["family"]].removesuffix("resnet") + meta["model"]
    sizes = {"attention": meta["attention"]} if "attention" in meta else {}
    return models.create(name, steps=meta["T"], dropout=meta["dropout"], **sizes, backend=backend)


def pfa_network(meta, backend):
    released = {"parity": True} if meta["model"] == "VGG_Gesture" else {}
    name = EVENTS[meta["model"]]
    return models.create(name, steps=meta["T"], rank=meta["rank"], **released, backend=backend)


def fmnist_network(meta, backend):
    return models.create("pfa_fmnist", steps=meta["T"], rank=meta["rank"], dropout=0.0, backend=backend)


def vgg_network(meta, backend):
    name = meta["model"].replace("spiking_", "att_").removesuffix("_bn")
    gates = "CSA" if meta["attention"] else None
    return models.create(name, attention=gates, steps=meta["T"], dropout=meta["dropout"], backend=backend)


NETWORKS = {
    "ma-snn": event_network,
    "att-res-snn": image_network,
    "ms-resnet": image_network,
    "pfa": pfa_network,
    "pfa-fmnist": fmnist_network,
    "att-vgg": vgg_network,
}


def inputs(meta) -> torch.Tensor:
    """Events [T, N, ...], published as [B, T, ...]; images [N, C, H, W], which the network repeats."""
    if "input_rate" not in meta:
        return torch.as_tensor(recipe.normal(meta["seed"], "input", tuple(meta["input"])).astype(np.float64))
    frames = recipe.spikes(meta["seed"], "input", tuple(meta["input"]), meta["input_rate"])
    return torch.as_tensor(frames, dtype=torch.float64).transpose(0, 1)


def loss_of(meta, out) -> torch.Tensor:
    rows = torch.arange(out.shape[0])
    if meta["family"] in ("att-res-snn", "ms-resnet"):
        return F.cross_entropy(out, 7 * rows)
    if meta["family"] == "att-vgg":
        return F.cross_entropy(out, rows)
    return F.mse_loss(out, torch.eye(out.shape[1], dtype=torch.float64)[rows % out.shape[1]])


def loaded(meta, backend):
    """The network with the published weights, every norm's momentum 1."""
    family = FAMILIES[meta["family"]]
    state = convert.from_published({"net": published_weights(meta), "acc": 0.0}, family)
    model = NETWORKS[meta["family"]](meta, backend)
    model.load_state_dict(state, strict=True)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    return model.double()


@pytest.mark.parametrize("name", FILES)
def test_published_network(name, backend):
    data, meta = np.load(GOLDEN / f"{name}.npz"), meta_of(name)
    model, x = loaded(meta, backend), inputs(meta)
    ranks = sum(shape[0] for key, shape in meta["keys"] if key in meta.get("ones", ()))  # ours do without
    assert sum(p.numel() for p in model.parameters()) == meta["params"] - ranks

    out = model.train()(x)
    loss = loss_of(meta, out)
    loss.backward()
    close64(out.detach(), torch.as_tensor(data["train_output"]), 1e-6, "train_output")
    assert abs(loss.item() - meta["loss"]) < 1e-9
    check_gradients(meta, model, FAMILIES[meta["family"]])
    with torch.no_grad():
        close64(model.eval()(x), torch.as_tensor(data["eval_output"]), 1e-6, "eval_output")


@pytest.mark.parametrize("name", [name for name in FILES if "trajectory" in meta_of(name)])
def test_published_training(name, backend):
    """The losses of ten steps of plain gradient descent."""
    meta = meta_of(name)
    model, x, wanted = loaded(meta, backend).train(), inputs(meta), meta["trajectory"]
    optimizer, losses = torch.optim.SGD(model.parameters(), wanted["lr"]), []
    for _ in wanted["losses"]:
        loss = loss_of(meta, model(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert max(abs(a - b) for a, b in zip(losses, wanted["losses"], strict=True)) < 1e-9, losses


def test_published_pfa(backend):
    """The module alone: its file holds the first channels, and sums over the pixels of each."""
    data, meta = np.load(GOLDEN / "pfa_T4C16R3.npz"), meta_of("pfa_T4C16R3")
    state, keywords = convert.recognise(published_weights(meta), "pfa")
    module = PFA(**keywords, backend=backend)
    module.load_state_dict(state, strict=True)
    shape = [meta[side] for side in "TNCHW"]
    x, grad = (
        torch.as_tensor(recipe.normal(meta["seed"], k, shape).astype(np.float64)) for k in ("input", "grad")
    )
    y = module.double()(x.requires_grad_())
    y.backward(grad)
    for name, value in (("output", y.detach()), ("grad_input", x.grad)):
        close64(value[:, :, :2], torch.as_tensor(data[name]), 1e-6, name)
        close64(value.abs().sum((2, 3, 4)), torch.as_tensor(data[name + "_sum"]), 1e-6, name)
    check_gradients(meta, module, "pfa")
