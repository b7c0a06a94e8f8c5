"""Records which layers computed what, on which values.

Convolutions, linear layers and matrix products are recorded where PyTorch calls them, whoever does, so layers
are identified by their weights.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from attsnn._functions import Functions
from attsnn.attention import Attention
from attsnn.layers import AveragePool, NormedLayer, SpikingLayer
from attsnn.neurons import LIF
from attsnn.ops import tally

from . import gates
from .listening import Listener
from .origins import Origins
from .records import Layer, Neurons, Synapses, add, summed
from .values import Values

# function: (name, number of spatial dimensions, whether it is transposed)
WEIGHED: dict[Callable[..., Tensor], tuple[str, int, bool]] = {
    F.linear: ("linear", 0, False),
    F.conv1d: ("conv1d", 1, False),
    F.conv2d: ("conv2d", 2, False),
    F.conv3d: ("conv3d", 3, False),
    F.conv_transpose1d: ("conv_transpose1d", 1, True),
    F.conv_transpose2d: ("conv_transpose2d", 2, True),
    F.conv_transpose3d: ("conv_transpose3d", 3, True),
}
PRODUCTS = {torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm}
LEFT_OUT = {  # functions that multiply and are not counted
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.bilinear: "bilinear",
    torch.einsum: "einsum",
    torch.tensordot: "tensordot",
    torch.baddbmm: "baddbmm",
    torch.addmm: "addmm",
}
WATCHED = (SpikingLayer, LIF, NormedLayer, AveragePool, *gates.MODULES)


class Collector(Listener):
    """Records what ran, by layer; `finish` returns it at the end."""

    def __init__(self, model: nn.Module, read: bool):
        super().__init__(model, "profile")
        self.read = read
        self.layers: dict[str, Layer] = {}
        self.left_out: dict[str, int] = defaultdict(int)
        self._origins = Origins()
        self._ran: dict[str, int] = {}  # {layer of neurons: when it ran last}
        self._before: str | None = None  # the layer of neurons that ran last
        self._runs = 0
        self._values: dict[str, Values] = {}  # by the name of the synapses
        self._counts: dict[tuple[str, int], Tensor] = {}  # by (layer, number of steps)
        self._weights: dict[int, nn.Module] = {}
        self._parts: set[nn.Module] = set()  # of gates
        self._gated: set[int] = set()  # weights of gates
        for module in self.names:
            weight = module._parameters.get("weight")
            if weight is not None:
                self._weights.setdefault(id(weight), module)
            if isinstance(module, gates.MODULES):
                self._gated.update(map(id, module.parameters()))
                self._parts.update(list(module.modules())[1:])

    @contextmanager
    def listening(self) -> Iterator[None]:
        with super().listening(), _Functions(self):
            yield
        self._origins = Origins()

    # ---- modules

    def left(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        if not isinstance(module, WATCHED):
            return
        self._shown(module, args, kwargs)
        if isinstance(module, SpikingLayer) and kwargs.get("shortcut", args[1:2] or None) is not None:
            emitted = output[0] if isinstance(output, tuple) else output
            self._layer(module).added += emitted.numel()
        elif isinstance(module, AveragePool) and module.pool > 1:
            layer = self._layer(module)
            layer.pool = module.pool
            layer.pooled += output.numel()
        elif isinstance(module, gates.MODULES) and module not in self._parts and not self._read(module):
            self._gate(self._layer(module), module, output.shape)

    def _shown(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Notes that a layer computed once for all steps, as it was told to."""
        steps = kwargs.get("steps") or kwargs.get("repeats") or 1
        if steps == 1 or not args or args[0].shape[0] != 1:
            return
        alone = isinstance(module, LIF) and module not in self.owners
        names = self._origins.of(args[0]) if alone else (self.name_of(module),)
        for name in names:
            for synapses in self.layers[name].synapses.values() if name in self.layers else ():
                synapses.shown = steps

    def _read(self, module: nn.Module) -> bool:
        """Whether a `SpikingLayer` reads these gates instead of calling them; they are then
        counted with that layer.
        """
        owner = self.owners.get(module)
        return type(module) is Attention and isinstance(owner, SpikingLayer) and owner.attention is module

    def _layer(self, module: nn.Module) -> Layer:
        """The layer of a module: that of the SpikingLayer or NormedLayer around it, otherwise its own."""
        owner, name = self.owners.get(module, module), self.name_of(module)
        if name not in self.layers:
            layer = self.layers[name] = Layer(name)
            layer.parameters = sum(p.numel() for p in owner.parameters())
            norm = getattr(owner, "norm", None)
            layer.normed = isinstance(norm, _BatchNorm)
            if isinstance(owner, SpikingLayer):
                layer.pool = owner.pool
        return self.layers[name]

    def _gate(self, layer: Layer, module: nn.Module, shape: torch.Size) -> None:
        found = gates.gates_of(module, shape)
        if layer.gates:
            for known, more in zip(layer.gates, found, strict=True):
                add(known, more)
        else:
            layer.gates = found

    # ---- neurons

    def fired(self, module: nn.Module | None, counts: tally.Counts, out: Tensor) -> None:
        if module is None:
            self.left_out["neurons outside of the network's modules"] += 1
            return
        layer = self._layer(module)
        neuron = module.neuron if isinstance(module, SpikingLayer) else module
        if layer.neurons is None:
            layer.neurons = _neurons(neuron, out)
        key = layer.name, out.shape[0]
        self._counts[key] = counts.flat + self._counts[key] if key in self._counts else counts.flat
        layer.neurons.updates += out.numel()
        layer.neurons.steps = max(layer.neurons.steps, out.shape[0])
        self._ran[layer.name] = self._runs = self._runs + 1
        self._before = layer.name
        self._origins.tag(out, {layer.name: True})
        if isinstance(module, SpikingLayer):
            if type(module.attention) is Attention:
                self._gate(layer, module.attention, out.shape)
            if module.pool > 1:
                layer.pooled += out.numel()

    # ---- functions

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """A function of PyTorch returned `out`."""
        if func in WEIGHED:
            self._weighed(func, out, *args, **kwargs)
        elif func in PRODUCTS:
            self._product(out, *(*args, *kwargs.values())[:2])
        else:
            if func in LEFT_OUT and not self._in_gate():
                self.left_out[LEFT_OUT[func]] += 1
            self._origins.passed((*args, *kwargs.values()), out)

    def _in_gate(self) -> bool:
        """Whether what runs belongs to a gate, or to what a `SpikingLayer` computes
        apart from its current.
        """
        inner = bool(self.stack) and isinstance(self.stack[-1], SpikingLayer)
        return inner or any(isinstance(module, gates.MODULES) for module in self.stack)

    def _weighed(
        self,
        func: Callable[..., Tensor],
        out: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *how: Any,
        **more: Any,
    ) -> None:
        (kind, space, transposed), x = WEIGHED[func], input
        module = self._weights.get(id(weight))
        if module in self._parts or id(weight) in self._gated:
            return
        if module is None:
            if self._in_gate():
                return
            module = self.stack[-1] if self.stack else None
        if module is None or module not in self.names:
            self.left_out[f"{kind} outside of the network's modules"] += 1
            return
        layer, name = self._layer(module), self.names[module]
        synapses = layer.synapses.get(name)
        if synapses is None:
            arguments = dict(zip(_arguments(transposed), how, strict=False)) | more
            stride = arguments.get("stride", 1)
            synapses = layer.synapses[name] = Synapses(
                name=name or type(module).__name__,
                kind=kind,
                weight=tuple(weight.shape),
                groups=arguments.get("groups", 1),
                stride=(stride,) * space if isinstance(stride, int) else tuple(stride),
                bias=bias is not None or layer.normed,
                word=weight.element_size(),
                transposed=transposed,
                first=True,
            )
        batched = x.dim() > space + 1 if space else True
        lead = x.shape[:-1] if not space else x.shape[: 1 if batched else 0]
        synapses.rows += math.prod(lead)
        positions = x if transposed else out
        count = positions.numel() * synapses.kernel * math.prod(weight.shape[1:2])
        synapses.dense += count
        synapses.outputs += out.numel()
        synapses.inputs += x.numel()
        synapses.out_shape = tuple(out.shape[len(lead) :])
        self._fed(synapses, x)
        if self.read:
            values = self._values.setdefault(synapses.name, Values(synapses))
            values.add(x, len(lead), partial(_counting, func, synapses, how, more), self._unit(synapses))
        self._origins.tag(out, {layer.name: False})

    def _product(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        if self._in_gate() or not self.stack:
            return
        module = self.stack[-1]
        layer = self._layer(module)
        name = f"{self.names[module]}.matmul".removeprefix(".")
        synapses = layer.synapses.get(name)
        if synapses is None:
            synapses = layer.synapses[name] = Synapses(
                name=name, kind="matmul", weight=(), groups=1, stride=(), bias=False, word=a.element_size()
            )
        inner = a.shape[-1]
        dense = out.numel() * inner
        synapses.dense += dense
        synapses.outputs += out.numel()
        synapses.inputs += a.numel() + b.numel()
        synapses.out_shape = tuple(out.shape[-2:])
        self._fed(synapses, a, b)
        if self.read:
            self._values.setdefault(synapses.name, Values(synapses)).add_product(a, b, out)
        self._origins.tag(out, {layer.name: False})

    def _fed(self, synapses: Synapses, *inputs: Tensor) -> None:
        """Records where the input comes from."""
        origin: dict[str, bool] = {}
        for x in inputs:
            origin |= self._origins.of(x)
        synapses.first = synapses.first and not origin
        if origin and all(origin.values()):
            last = max(origin, key=self._ran.__getitem__)
            synapses.feeders[last] = synapses.feeders.get(last, 0) + sum(x.numel() for x in inputs)
        synapses.before = self._before

    def _unit(self, synapses: Synapses) -> int:
        """The factor that turns the input into integers: the levels of normalised
        integer spikes, otherwise 1.
        """
        names = [*synapses.feeders]
        neurons = self.layers[names[-1]].neurons if names else None
        if neurons is None or neurons.levels is None or not neurons.normalize:
            return 1
        return neurons.levels

    # ---- the end

    def finish(self) -> dict[str, Layer]:
        """The layers, with all numbers on the host."""
        for (name, steps), flat in self._counts.items():
            neurons, counts = self.layers[name].neurons, flat.tolist()
            assert neurons is not None  # `fired` made them
            neurons.by_step = summed(neurons.by_step, counts[:steps])
            neurons.by_channel = summed(neurons.by_channel, counts[steps:])
        for values in self._values.values():
            values.finish()
        return self.layers


def _neurons(neuron: nn.Module, out: Tensor) -> Neurons:
    """The record of a layer that emits `out`. A foreign module that calls the op counts
    as leaking and spiking.
    """
    found = Neurons(shape=tuple(out.shape[2:]), word=8 if out.dtype == torch.float64 else 4)
    if isinstance(neuron, LIF):
        leak = neuron.constants()["leak"]
        found.leaks = isinstance(leak, Tensor) or leak != 1
        found.emit, found.levels, found.normalize = neuron.emit, neuron.levels, neuron.normalize
    return found


class _Functions(Functions):
    """Tells a collector which functions of PyTorch are called."""

    def __init__(self, collector: Collector):
        super().__init__()
        self.collector = collector

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        # Two out of three calls only ask for a shape or a type.
        tensors = isinstance(out, Tensor | tuple | list) and not isinstance(out, torch.Size)
        if tensors and self.collector.here:
            self.collector.called(func, args, kwargs, out)


def _arguments(transposed: bool) -> tuple[str, ...]:
    """The arguments of a convolution that follow the bias."""
    return (
        "stride",
        "padding",
        *(("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")),
    )


def _counting(
    func: Callable[..., Tensor],
    synapses: Synapses,
    how: tuple[Any, ...],
    more: dict[str, Any],
    inputs: Tensor,
) -> Tensor:
    """The sum of inputs [C, ...], each times the number of outputs that it reaches.

    It is computed by the layer itself, with all weights set to one.
    """
    shape = synapses.weight
    if synapses.kind == "linear":
        return inputs.sum() * shape[0]
    kept = (shape[0], 1) if synapses.transposed else (synapses.groups, shape[1])  # one of equal outputs
    ones = inputs.new_ones((*kept, *shape[2:]))
    return func(inputs[None], ones, None, *how, **more).sum() * synapses.outputs_per_input
