"""`write`: writes a network as a file of NIR."""

import copy
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn.attention import GATES, PFA, Attention, PrunedAttention
from attsnn.layers import SpikingLayer, fold

from .neurons import DT, NotSaidError, check_dt, need_nir
from .reading import network_of
from .tracing import DIMS, SAMPLES, OwnPool, Tracer


def write(
    model: nn.Module,
    path: str | os.PathLike[str],
    pool: Literal["sum", "avg"] = "sum",
    *,
    example: Tensor | None = None,
    dt: float = DT,
) -> None:
    """Writes a network as NIR: its neurons, Conv2d, Conv1d, Linear, flattening and average
    pools. Norms are folded.

    Neurons' parameters are written one per neuron. A grouped convolution is written as a dense one with
    zeros. Surrogates, and whether a reset is detached, are not in NIR. A mean over the steps at the end is
    left to the reader of the file: the file's output is that of every step.

    Before the file is written, what it says is compared with the network, on random input in float64. It is
    written as a whole or not at all.

    Args:
        model: the network.
        path: the file to write.
        pool: "sum" writes average pools as SumPool2d, which most readers know; the scale goes into the layer
            before or after the pool. "avg" writes AvgPool2d.
        example: an input of the network, `[T, N, C, H, W]` or what it takes, for its shape alone. It is not
            needed if the first layer is linear, nor for MA-SNN, which knows its size.
        dt: seconds per time step; stored in the file's metadata.

    Raises:
        ValueError: NIR cannot express a layer, which the message names: soft resets, other starts than 0,
            neurons that emit no spikes, gates, PFA, norms that no layer takes, maximum pools. Or the file
            would not say what the network computes.
        ImportError: there is no nir.
    """
    nir = need_nir()
    if pool not in ("sum", "avg"):
        raise ValueError(f"pool must be 'sum' or 'avg', got {pool!r}")
    check_dt(dt)
    folded = _prepared(getattr(model, "_orig_mod", model))  # what torch.compile wraps
    shape, stepped = _input(folded, example)
    with torch.no_grad():
        twin = copy.deepcopy(folded).double()
        tracer = Tracer(nir, folded, pool, dt)
        graph, mean = tracer.graph(shape, stepped)
        _must_say(graph, dt, twin, shape, stepped, tracer.steps, mean)
    target = Path(path)
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        nir.write(str(beside), graph)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def _must_say(
    graph: Any, dt: float, model: nn.Module, shape: tuple[int, ...], stepped: bool, steps: int, mean: bool
) -> None:
    """Raises NotSaidError unless the graph gives the model's outputs, in float64, on random input."""
    draw = torch.Generator().manual_seed(0)
    leading = (steps if stepped else 1, SAMPLES)
    x = 2 * torch.randn((*leading, *shape), generator=draw, dtype=torch.float64)
    device = next(model.parameters()).device
    want = model(x.to(device) if stepped else x[0].to(device)).cpu()
    found = network_of("the file", graph, dt).double()(x.expand(steps or 1, *x.shape[1:]))
    if mean:
        found = found.mean(0)
    differ = (found.reshape(want.shape) - want).abs() > 1e-9 * want.abs().max() + 1e-12
    if differ.any():
        raise NotSaidError(
            "nir: the file would not say what the network computes: on random input "
            f"{int(differ.sum()):,} of {differ.numel():,} values differ. NIR has no node for something that "
            "the network does between its layers."
        )


def _prepared(model: nn.Module) -> nn.Module:
    """A copy for inference, with norms folded and pools where hooks see them."""
    for name, module in model.named_modules():
        if isinstance(module, (Attention, PrunedAttention, PFA, *GATES)):
            kind = type(module).__name__
            raise NotSaidError(
                f"nir: {name or 'the network'} ({kind}) weighs its input, which NIR has no node for"
            )
    folded = fold(model)
    for name, module in list(folded.named_modules()):
        if isinstance(module, _BatchNorm):
            raise NotSaidError(
                f"nir: {name} is a norm that `layers.fold` cannot put into the layer before it"
            )
        if isinstance(module, SpikingLayer) and module.pool > 1:
            pool = nn.AvgPool2d(module.pool) if module.current is None else OwnPool(module.pool)
            parts = [] if module.current is None else [module.current]
            module.current, module.pool = nn.Sequential(*parts, pool), 1
    return folded


def _input(model: nn.Module, example: Tensor | None) -> tuple[tuple[int, ...], bool]:
    """The shape of a step of a sample, and whether the network is given steps rather than an image."""
    layers = [m for m in model.modules() if isinstance(m, tuple(DIMS))]
    if not layers:
        raise NotSaidError("nir: the network has no convolution and no linear layer")
    if example is not None:
        if not isinstance(example, Tensor) or not example.numel():
            raise ValueError("example must be a tensor, an input of the network, with at least one sample")
        layer = _first(model, layers, example)
        dims = 3 if example.dim() == 5 else next(d for kind, d in DIMS.items() if isinstance(layer, kind))
        if example.dim() - dims > 2:  # tokens
            dims = example.dim() - 2
        if example.dim() - dims not in (1, 2):
            raise ValueError(f"example must be an input of the network, got shape {tuple(example.shape)}")
        return tuple(example.shape[-dims:]), example.dim() - dims == 2
    layer = layers[0]
    if isinstance(layer, nn.Linear):
        return (layer.in_features,), True
    size = getattr(getattr(model, "plan", None), "size", None)
    if size is None:
        raise ValueError(
            "example: give an input of the network, because a convolution takes inputs of any size"
        )
    return (layer.in_channels, *size), True


def _first(model: nn.Module, layers: list[nn.Module], example: Tensor) -> nn.Module:
    """The layer that runs first; of its registration the order says nothing."""
    ran: list[nn.Module] = []
    handles = [layer.register_forward_pre_hook(lambda layer, args: ran.append(layer)) for layer in layers]
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model(example.to(parameter.device, parameter.dtype))
    except Exception as error:
        raise ValueError(f"example: the network does not run on it ({error})") from error
    finally:
        for handle in handles:
            handle.remove()
    return ran[0] if ran else layers[0]
