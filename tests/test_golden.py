"""What the published networks compute, in float64 (tests/golden/README.md), with every backend."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
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
FILES = sorted(
    p.stem for p in GOLDEN.glob("*.npz") if json.loads(str(np.load(p)["meta"]))["family"] == "ma-snn"
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
        (ours,) = convert.from_published({key: torch.zeros(shape)}, "ma_snn")
        grad = grads[ours].reshape(shape).numpy()
        direction = recipe.rng_for(7, key + "/proj").standard_normal(shape)
        error += (np.linalg.norm(grad) - norm) ** 2 + ((grad * direction).sum() - projection) ** 2
        size += norm**2
    return error, size


@pytest.mark.parametrize("name", FILES)
def test_published_network(name, backend):
    data = np.load(GOLDEN / f"{name}.npz")
    meta = json.loads(str(data["meta"]))
    state = convert.from_published({"net": published_weights(meta), "acc": 0.0}, "ma_snn")
    attention = None if meta["attention"] == "no" else meta["attention"]
    model = models.create(
        TASKS[meta["task"]],
        attention=attention,
        steps=meta["T"],
        emit=EMITS[meta["mode"]],
        channel_ratio=meta["c_ratio"],
        temporal_ratio=meta["t_ratio"],
        backend=backend,
    )
    model.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in model.parameters()) == meta["params"]
    model.double()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0

    frames = recipe.spikes(meta["seed"], "input", tuple(meta["input"]), meta["input_rate"])
    x = torch.as_tensor(frames, dtype=torch.float64).transpose(0, 1)  # published [B, T, ...] -> [T, N, ...]
    out = model.train()(x)
    target = torch.eye(out.shape[1], dtype=torch.float64)[torch.arange(out.shape[0]) % out.shape[1]]
    loss = ((out - target) ** 2).mean()
    loss.backward()
    close64(out.detach(), torch.as_tensor(data["train_output"]), 1e-6, "train_output")
    assert abs(loss.item() - meta["loss"]) < 1e-9
    error, size = gradient_errors(meta, model)
    assert error**0.5 <= 1e-4 * size**0.5, f"gradients: {error**0.5:.3g} of {size**0.5:.3g}"
    with torch.no_grad():
        close64(model.eval()(x), torch.as_tensor(data["eval_output"]), 1e-6, "eval_output")
