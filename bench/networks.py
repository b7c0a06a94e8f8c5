"""The columns of whole networks: MS-ResNets whose layers are computed as a column does it.

A column dresses a network: `make(neuron, net, x)` replaces the `forward` of its layers, for tensors where x
lies.
Weights, the order of the layers and the read-out are one for all.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attsnn import models
from attsnn.layers import NormedLayer, SpikingLayer, fold, over_time
from attsnn.neurons import LIF
from attsnn.reference import state_dtype
from bench import peers
from bench.cases import ModelCase
from bench.peers import OURS, PRESETS, Column, GapError, Layer

CONVOLUTIONS = "convolutions"  # the column of the network's convolutions and linear layers alone
CALIBRATED = 8, 64  # images of at most this side, from which the norms have their running statistics


@dataclass(frozen=True)
class NetworkColumn(Column):
    """`plain`: none of what PyTorch offers to an existing network: norms folded into the convolutions for
    inference, channels-last, static parts computed once. `compiled`: behind torch.compile.
    """

    plain: bool = False
    compiled: bool = False


def build(case: ModelCase, neuron: str, backend: str) -> nn.Module:
    """The network of a case with that neuron and the weights of seed 0, without dropout, its running
    statistics frozen; the norms reach as far over the threshold as with the network's own neuron.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = models.create(
            case.model, steps=case.steps, width=case.width, dropout=0.0, attention="CSA", backend=backend
        )
    needed = [
        c["threshold"] / c["gain"]
        for c in (PRESETS[n]("reference").constants() for n in (neuron, case.neuron))
    ]
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, LIF):
                setattr(module, name, PRESETS[neuron](backend))
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
            nn.init.constant_(module.weight, module.weight[0].item() * needed[0] / needed[1])
    return net


@functools.cache
def calibrated(case: ModelCase, neuron: str) -> dict[str, Tensor]:
    """The state of `build`, its running statistics those of random images."""
    count, side = CALIBRATED
    few = replace(case, step=(count, *case.step[1:2], *(min(side, s) for s in case.step[2:])))
    net = build(case, neuron, "reference").train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(few.images(torch.float32, "cpu"))
    return net.state_dict()


# ---- compositions of the layers


def _forward(layer: SpikingLayer, seam: peers.Seam) -> Callable:
    def forward(x: Tensor, shortcut: Tensor | None = None):
        result = seam(x, shortcut)
        return result if layer.membrane else result[0]

    return forward


def _unrolled(neuron: str, x: Tensor) -> Layer:
    """The loop over `unbind` that starts from its first input, not from a state of zeros, and resets nothing
    behind the last step: at T = 1 one comparison.
    """
    charge, fire, reset = peers._steps(neuron)
    assert PRESETS[neuron]("reference").constants()["gain"] == 1

    def layer(x: Tensor) -> Tensor:
        first, *others = x.unbind(0)
        h, s = first, fire(first)
        out = [s]
        for current in others:
            h = charge(reset(h, s), current)
            s = fire(h)
            out.append(s)
        return torch.stack(out)

    return layer


def _shown(layer: Layer) -> Callable:
    """The stem's neuron, whose input is the same at all steps."""
    return lambda x, steps: layer(x.expand(steps, *[-1] * (x.dim() - 1)))


def _composed_norm(layer: NormedLayer, x: Tensor, repeats: int = 1) -> Tensor:
    z = over_time(layer.current, x)
    return z if layer.norm is None else over_time(layer.norm, z)


def _composed(
    neuron: str, net: nn.Module, x: Tensor, walk: Callable[[str, Tensor], Layer] = _unrolled
) -> None:
    """Time folded into the batch, `peers._composed_seam` in between; the image passes the stem once."""
    for layer in net.modules():
        if isinstance(layer, SpikingLayer):
            layer.forward = _forward(layer, peers._composed_seam(layer, x, walk))
        elif isinstance(layer, NormedLayer):
            layer.forward = partial(_composed_norm, layer)
    net.stem_neuron.forward = _shown(walk(neuron, x))


def _per_step(current: nn.Module, x: Tensor) -> Tensor:
    """A convolution step by step into a float32 tensor of zeros, also under autocast."""
    out = None
    for t in range(x.shape[0]):
        y = current(x[t])
        if out is None:
            out = torch.zeros(x.shape[0], *y.shape, dtype=state_dtype(y), device=y.device)
        out[t] = y
    return out


def _published(neuron: str, net: nn.Module, x: Tensor) -> None:
    """As the released code: convolutions step by step, norms of volumes [N, C, T, H, W], the image T times
    through the stem, `peers._published_seam` in between.
    """

    def normed(layer: NormedLayer, x: Tensor, repeats: int = 1) -> Tensor:
        z = _per_step(layer.current, x.repeat(repeats, 1, 1, 1, 1))
        return layer.norm(z.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4)

    def spiking(layer: SpikingLayer) -> Callable:
        seam = peers._published_seam(layer, x)
        return _forward(layer, lambda x, shortcut=None: seam(_per_step(layer.current, x), shortcut))

    for layer in net.modules():
        if isinstance(layer, NormedLayer | SpikingLayer) and layer.norm is not None:
            layer.norm.__class__ = nn.BatchNorm3d
        if isinstance(layer, SpikingLayer):
            layer.forward = spiking(layer)
        elif isinstance(layer, NormedLayer):
            layer.forward = partial(normed, layer)
    net.stem_neuron.forward = _shown(peers._published(neuron, x))


def _spikingjelly(neuron: str, x: Tensor) -> Layer:
    """Its own CUDA kernels where it has them, else Triton; on the CPU its loop."""
    try:
        return peers._spikingjelly(neuron, x, "cuda" if x.is_cuda else "triton")
    except GapError:
        return peers._spikingjelly(neuron, x)


def _ours(neuron: str, net: nn.Module, x: Tensor) -> None:
    """The layers as they are."""


MODEL_COLUMNS = {
    column.name: column
    for column in (
        NetworkColumn(OURS, _ours),
        NetworkColumn("composed, published", _published, plain=True),
        NetworkColumn("composed", _composed),
        NetworkColumn("torch.compile", _composed, compiled=True),
        NetworkColumn(
            "SpikingJelly",
            partial(_composed, walk=_spikingjelly),
            "spikingjelly",
            note="its LIFNode in the composed network, which is another neuron",
            neuron="leaky",
        ),
    )
}


@dataclass(frozen=True)
class Network:
    """One column's network, ready to be called: images -> logits."""

    train: Callable[[Tensor], Tensor]
    infer: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    training: nn.Module
    inference: nn.Module

    @classmethod
    def of(
        cls, column: NetworkColumn, case: ModelCase, dtype: torch.dtype, device: str, autocast=None
    ) -> "Network":
        """`dtype`: of the weights; `autocast`: the type of the rest, where it is another."""
        neuron = column.neuron or case.neuron
        net = build(case, neuron, "fused" if column.name == OURS else "reference")
        net.load_state_dict(calibrated(case, neuron))
        net.train().to(device, dtype)
        quiet = copy.deepcopy(net).eval() if column.plain else fold(net)
        for module in (net, quiet):
            if case.order == "nhwc" and not column.plain:
                module.to(memory_format=torch.channels_last)
            column.make(neuron, module, torch.empty(0, device=device))
        calls = net, quiet
        if column.compiled:
            torch._dynamo.reset()
            calls = tuple(torch.compile(module, dynamic=False) for module in calls)
        cast = partial(torch.autocast, device, autocast, enabled=autocast is not None)

        def train(images: Tensor) -> Tensor:
            with cast():
                return calls[0](images)

        @torch.no_grad()
        def infer(images: Tensor) -> Tensor:
            with cast():
                return calls[1](images)

        return cls(train, infer, tuple(net.parameters()), net, quiet)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward and backward of the cross entropy."""
        self.training.zero_grad()
        F.cross_entropy(self.train(images).float(), labels).backward()
