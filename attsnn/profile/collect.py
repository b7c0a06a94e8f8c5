"""Listens to a network while it runs: which layers computed what on which values.

Nothing of the network is changed. The neurons' counts come from the kernels (`ops.tally`); convolutions,
linear layers and products of matrices are seen where PyTorch calls them, whoever does, so that a layer is
known by its weight; and modules by hooks of all modules, which hang on none of them.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as every_module
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from attsnn.attention import Attention
from attsnn.layers import AveragePool, NormedLayer, SpikingLayer
from attsnn.neurons import LIF
from attsnn.ops import tally

from . import gates
from .records import Layer, Neurons, Synapses, add, summed
from .values import Values

WEIGHED: dict[Callable, tuple[str, int, bool]] = {  # function: its name, dimensions of space, transposed
    F.linear: ("linear", 0, False),
    F.conv1d: ("conv1d", 1, False),
    F.conv2d: ("conv2d", 2, False),
    F.conv3d: ("conv3d", 3, False),
    F.conv_transpose1d: ("conv_transpose1d", 1, True),
    F.conv_transpose2d: ("conv_transpose2d", 2, True),
    F.conv_transpose3d: ("conv_transpose3d", 3, True),
}
PRODUCTS = {torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.__matmul__, Tensor.bmm, Tensor.mm}
LEFT_OUT = {  # what multiplies and is not counted
    F.scaled_dot_product_attention: "scaled_dot_product_attention",
    F.bilinear: "bilinear",
    torch.einsum: "einsum",
    torch.tensordot: "tensordot",
    torch.baddbmm: "baddbmm",
    torch.addmm: "addmm",
}
WATCHED = (SpikingLayer, LIF, NormedLayer, AveragePool, *gates.MODULES)


class Collector(TorchFunctionMode):
    """What ran, by layer; `layers` holds it behind the end."""

    def __init__(self, model: nn.Module, read: bool):
        super().__init__()
        self.model, self.read, self.thread = model, read, threading.get_ident()
        self.layers: dict[str, Layer] = {}
        self.left_out: dict[str, int] = defaultdict(int)
        self.samples = 0
        self._fresh = False  # whether the network was called, and no neuron of it ran since
        self._origins: dict[int, tuple[StorageWeakRef, dict[str, bool]]] = {}
        self._stack: list[nn.Module] = []
        self._ran: list[str] = []  # layers of neurons
        self._inside: list[list[Synapses]] = []  # of the watched modules that run: what ran in them
        self._stepping: SpikingLayer | None = None  # whose current ran last, called step by step
        self._values: dict[str, Values] = {}  # of the synapses of that name
        self._counts: dict[tuple[str, int], Tensor] = {}  # of the layer of that name, in so many steps
        self._name_modules()

    def _name_modules(self) -> None:
        self.names: dict[nn.Module, str] = {}
        self.owners: dict[nn.Module, nn.Module] = {}  # the layer of ours that a module is a part of
        self.weights: dict[int, nn.Module] = {}
        self.parts: set[nn.Module] = set()  # of gates
        self.gated: set[int] = set()  # weights of gates
        for name, module in self.model.named_modules():
            self.names[module] = name
            weight = module._parameters.get("weight")
            if weight is not None:
                self.weights.setdefault(id(weight), module)
            if isinstance(module, SpikingLayer | NormedLayer):
                for part in module.modules():
                    self.owners.setdefault(part, module)
            if isinstance(module, gates.MODULES):
                self.gated.update(map(id, module.parameters()))
                self.parts.update(list(module.modules())[1:])

    # ---- modules

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = every_module.register_module_forward_pre_hook(self._enter)
        after = every_module.register_module_forward_hook(self._leave, with_kwargs=True)
        try:
            with tally.telling(self._emitted), self:
                yield
        finally:
            before.remove()
            after.remove()
            self._origins.clear()

    def _mine(self, module: nn.Module) -> bool:
        return threading.get_ident() == self.thread and module in self.names

    def _enter(self, module: nn.Module, args: tuple) -> None:
        if not self._mine(module):
            return
        if module is self.model:
            self._fresh = True
            self._stack.clear()  # of a call that ended in an exception
            self._inside.clear()
        self._stack.append(module)
        if isinstance(module, WATCHED):
            self._inside.append([])

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if not self._mine(module) or module not in self._stack:
            return
        while self._stack[-1] is not module:  # what ended in an exception
            if isinstance(self._stack.pop(), WATCHED):
                self._inside.pop()
        self._stack.pop()
        if not isinstance(module, WATCHED):
            return
        inside = self._inside.pop()
        if self._inside:
            self._inside[-1] += inside
        self._shown(module, args, kwargs, inside)
        if isinstance(module, SpikingLayer) and kwargs.get("shortcut", args[1:2] or None) is not None:
            emitted = output[0] if isinstance(output, tuple) else output
            self._layer(module).added += emitted.numel()
        elif isinstance(module, AveragePool) and module.pool > 1:
            layer = self._layer(module)
            layer.pool = module.pool
            layer.pooled += output.numel()
        elif isinstance(module, gates.MODULES) and module not in self.parts and not self._read(module):
            self._gate(self._layer(module), module, output.shape)

    def _shown(self, module: nn.Module, args: tuple, kwargs: dict, inside: list[Synapses]) -> None:
        """What a layer computed once for all steps, as it was told."""
        steps = kwargs.get("steps") or kwargs.get("repeats") or 1
        if steps == 1 or not args or args[0].shape[0] != 1:
            return
        alone = isinstance(module, LIF) and module not in self.owners
        for synapses in self._behind(args[0]) if alone else inside:
            synapses.shown = steps

    def _read(self, module: nn.Module) -> bool:
        """Whether a `SpikingLayer` may read these gates in place of calling them: they count with it."""
        owner = self.owners.get(module)
        return type(module) is Attention and isinstance(owner, SpikingLayer) and owner.attention is module

    def _behind(self, x: Tensor) -> list[Synapses]:
        """The synapses whose currents x is made of."""
        names = self._origin(x)
        found = []
        for name in names:
            layer = self.layers.get(name)
            found += [] if layer is None else layer.synapses.values()
        return found

    def _layer(self, module: nn.Module) -> Layer:
        """The layer of a module: that of a layer of ours around it, else its own."""
        owner = self.owners.get(module, module)
        name = self.names[owner] or type(owner).__name__
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

    def _emitted(self, counts: tally.Counts, out: Tensor) -> None:
        if threading.get_ident() != self.thread:
            return
        module, self._stepping = self._neuron_of(), None
        if module is None:
            self.left_out["neurons that no LIF and no SpikingLayer called"] += 1
            return
        if self._fresh:
            self._fresh = False
            self.samples += out.shape[1]
        layer = self._layer(module)
        neuron = module.neuron if isinstance(module, SpikingLayer) else module
        if layer.neurons is None:
            leak = neuron.constants()["leak"]
            layer.neurons = Neurons(
                shape=tuple(out.shape[2:]),
                leaks=isinstance(leak, Tensor) or leak != 1,
                emit=neuron.emit,
                levels=neuron.levels,
                normalize=neuron.normalize,
                word=8 if out.dtype == torch.float64 else 4,
            )
        key = layer.name, out.shape[0]
        self._counts[key] = counts.flat + self._counts[key] if key in self._counts else counts.flat
        layer.neurons.updates += out.numel()
        layer.neurons.steps = max(layer.neurons.steps, out.shape[0])
        self._ran.append(layer.name)
        self._tag(out, {layer.name: True})
        if isinstance(module, SpikingLayer):
            if type(module.attention) is Attention:
                self._gate(layer, module.attention, out.shape)
            if module.pool > 1:
                layer.pooled += out.numel()

    def _neuron_of(self) -> nn.Module | None:
        """The layer whose neurons just fired: the one that runs, or of a single step the one whose
        convolution or linear layer ran last.
        """
        for module in reversed(self._stack):
            if isinstance(module, SpikingLayer):
                return module
            if isinstance(module, LIF):
                owner = self.owners.get(module)
                return owner if isinstance(owner, SpikingLayer) else module
        return self._stepping

    # ---- functions

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if threading.get_ident() != self.thread:
            return out
        if func in WEIGHED:
            self._weighed(func, out, *args, **kwargs)
        elif func in PRODUCTS:
            self._product(out, *args[:2])
        else:
            if func in LEFT_OUT and not self._in_gate():
                self.left_out[LEFT_OUT[func]] += 1
            self._passed((*args, *kwargs.values()), out)
        return out

    def _in_gate(self) -> bool:
        """Whether what runs belongs to a gate, or to what a `SpikingLayer` computes without its current."""
        inner = bool(self._stack) and isinstance(self._stack[-1], SpikingLayer)
        return inner or any(isinstance(module, gates.MODULES) for module in self._stack)

    def _weighed(
        self, func, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *how, **more
    ):
        kind, space, transposed = WEIGHED[func]
        module = self.weights.get(id(weight))
        if module in self.parts or id(weight) in self.gated:
            return
        if module is None:
            if self._in_gate():
                return
            module = self._stack[-1] if self._stack else None
        if module is None or module not in self.names:
            self.left_out[f"{kind} outside of the network's modules"] += 1
            return
        owner = self.owners.get(module)
        if isinstance(owner, SpikingLayer) and owner not in self._stack:
            self._stepping = owner
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
        if self._inside:
            self._inside[-1].append(synapses)
        self._tag(out, {layer.name: False})

    def _product(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        if self._in_gate() or not self._stack:
            return
        module = self._stack[-1]
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
        self._tag(out, {layer.name: False})

    def _fed(self, synapses: Synapses, *inputs: Tensor) -> None:
        """Where its input comes from."""
        origin = {}
        for x in inputs:
            origin |= self._origin(x)
        synapses.first = synapses.first and not origin
        if origin and all(origin.values()):
            last = max(origin, key=lambda name: _last(self._ran, name))
            synapses.feeders[last] = synapses.feeders.get(last, 0) + sum(x.numel() for x in inputs)
        if self._ran:
            synapses.before = self._ran[-1]

    def _unit(self, synapses: Synapses) -> int:
        """What makes integers of its input: the levels of normalised integer spikes."""
        names = [*synapses.feeders]
        neurons = self.layers[names[-1]].neurons if names else None
        return neurons.levels if neurons is not None and neurons.normalize else 1

    # ---- where values come from: of each storage the layers, and whether those are spikes or currents

    def _origin(self, x: Tensor) -> dict[str, bool]:
        if not self._origins:
            return {}
        try:
            found = self._origins.get(x.untyped_storage()._cdata)
        except NotImplementedError:  # no storage: sparse, or of a compiler
            return {}
        return found[1] if found is not None and not found[0].expired() else {}

    def _tag(self, x: Tensor, origin: dict[str, bool]) -> None:
        try:
            storage = x.untyped_storage()
        except NotImplementedError:
            return
        self._origins[storage._cdata] = (StorageWeakRef(storage), origin)

    def _passed(self, args: tuple, out: Any) -> None:
        """What a function returns comes from where its arguments do."""
        if not isinstance(out, Tensor | tuple | list):
            return
        origin: dict[str, bool] = {}
        for part in _tensors(args):
            for name, spikes in self._origin(part).items():
                origin[name] = origin.get(name, True) and spikes
        if origin:
            for part in _tensors(out):
                if not self._origin(part):
                    self._tag(part, origin)

    # ---- the end

    def finish(self) -> dict[str, Layer]:
        """The layers, all numbers on the host."""
        for (name, steps), flat in self._counts.items():
            neurons, flat = self.layers[name].neurons, flat.tolist()
            neurons.by_step = summed(neurons.by_step, flat[:steps])
            neurons.by_channel = summed(neurons.by_channel, flat[steps:])
        for values in self._values.values():
            values.finish()
        return self.layers


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those in it, in lists and tuples of any depth."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)


def _last(names: list[str], name: str) -> int:
    """Where it stands last; -1: nowhere."""
    return len(names) - 1 - names[::-1].index(name) if name in names else -1


def _arguments(transposed: bool) -> tuple[str, ...]:
    """Of a convolution, behind the bias."""
    return (
        "stride",
        "padding",
        *(("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")),
    )


def _counting(func: Callable, synapses: Synapses, how: tuple, more: dict, inputs: Tensor) -> Tensor:
    """The sum of inputs [C, ...], each times the number of outputs that it reaches: the layer itself, with
    weights of one.
    """
    shape = synapses.weight
    if synapses.kind == "linear":
        return inputs.sum() * shape[0]
    kept = (shape[0], 1) if synapses.transposed else (synapses.groups, shape[1])  # one of equal outputs
    ones = inputs.new_ones((*kept, *shape[2:]))
    return func(inputs[None], ones, None, *how, **more).sum() * synapses.outputs_per_input
