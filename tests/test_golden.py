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
from attsnn.models import convert

GOLDEN = Path(__file__).parent / "golden"
TASKS = {
    "DVSGestures": "ma_snn_dvs_gesture",
    "CIFAR10DVS": "ma_snn_cifar10_dvs",
    "DVSGait": "ma_snn_dvs_gait",
}
EMITS = {"spike": "spike", "mem": "membrane"}
FAMILIES = {
    "ma-snn": "ma_snn",
    "att-res-snn": "att_ms_resnet",
    "ms-resnet": "ms_resnet",
}  # its words for ours
FILES = sorted(
    p.stem for p in GOLDEN.glob("*.npz") if json.loads(str(np.load(p)["meta"]))["family"] in FAMILIES
)


def published_weights(meta) -> dict[str, torch.Tensor]:
    def value(key, shape):
        if key in meta.get("ones", ()):
            return np.ones(shape, np.float32)
        drawn = recipe.fill(meta["seed"], key, shape, meta.get("gain", 1), meta.get("bn_gain", 1))
        return drawn * np.float32(meta.get("scale", {}).get(key, 1))

    return {"module." + k: torch.as_tensor(np.asarray(value(k, tuple(s)))) for k, s in meta["keys"]}


def gradient_errors(meta, model) -> tuple[float, float]:
    """Squared errors and squares of (norm, projection) of the gradient of every published parameter."""
    grads = {k: p.grad for k, p in model.named_parameters()}
    error = size = 0.0
    for key, (norm, projection) in meta["grads"].items():
        shape = {k: tuple(s) for k, s in meta["keys"]}[key]
        (ours,) = convert.from_published({key: torch.zeros(shape)}, FAMILIES[meta["family"]])
        grad = grads[ours].reshape(shape).numpy()
        direction = recipe.rng_for(7, key + "/proj").standard_normal(shape)
        error += (np.linalg.norm(grad) - norm) ** 2 + ((grad * direction).sum() - projection) ** 2
        size += norm**2
    return error, size


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


def inputs(meta) -> torch.Tensor:
    """Events [T, N, ...], published as [B, T, ...]; images [N, C, H, W], which the network repeats."""
    if meta["family"] != "ma-snn":
        return torch.as_tensor(recipe.normal(meta["seed"], "input", tuple(meta["input"])).astype(np.float64))
    frames = recipe.spikes(meta["seed"], "input", tuple(meta["input"]), meta["input_rate"])
    return torch.as_tensor(frames, dtype=torch.float64).transpose(0, 1)


def loss_of(meta, out) -> torch.Tensor:
    rows = torch.arange(out.shape[0])
    if meta["family"] != "ma-snn":
        return F.cross_entropy(out, 7 * rows)
    return F.mse_loss(out, torch.eye(out.shape[1], dtype=torch.float64)[rows % out.shape[1]])


@pytest.mark.parametrize("name", FILES)
def test_published_network(name, backend):
    data = np.load(GOLDEN / f"{name}.npz")
    meta = json.loads(str(data["meta"]))
    state = convert.from_published({"net": published_weights(meta), "acc": 0.0}, FAMILIES[meta["family"]])
    model = (event_network if meta["family"] == "ma-snn" else image_network)(meta, backend)
    model.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in model.parameters()) == meta["params"]
    model.double()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0

    x = inputs(meta)
    out = model.train()(x)
    loss = loss_of(meta, out)
    loss.backward()
    close64(out.detach(), torch.as_tensor(data["train_output"]), 1e-6, "train_output")
    assert abs(loss.item() - meta["loss"]) < 1e-9
    error, size = gradient_errors(meta, model)
    assert error**0.5 <= 1e-4 * size**0.5, f"gradients: {error**0.5:.3g} of {size**0.5:.3g}"
    with torch.no_grad():
        close64(model.eval()(x), torch.as_tensor(data["eval_output"]), 1e-6, "eval_output")
