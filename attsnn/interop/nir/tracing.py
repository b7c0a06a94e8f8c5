"""The graph of NIR that a run of a network shows: its layers call each other, with sums and changes of shape
in between.
"""

import itertools
import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from attsnn._functions import Functions, tensors_of
from attsnn.attention import as_made
from attsnn.layers import AveragePool
from attsnn.neurons import LIF

from ..finding import QUESTIONS, VIEWS
from .neurons import NotSaidError, node_of
from .reading import Scale

STEPS, SAMPLES = 3, 5  # the size of the run's input
DIMS = {nn.Conv2d: 3, nn.Conv1d: 2, nn.Linear: 1}  # of a sample
# Functions that leave every value as it is; `mean` is treated separately.
SAME = VIEWS | {"expand", "__getitem__", "to", "type", "float", "double", "detach"}
IN_PLACE = {"add_", "__iadd__"}
SUMS = IN_PLACE | {"add", "__add__", "__radd__"}


class OwnPool(nn.AvgPool2d):
    """A pool between a layer and its neuron; its scale goes into that layer."""


class _Value(NamedTuple):
    """What a tensor is: the sum of what the nodes `sources` return, times `factor`. `shape` is that of one
    step of a sample, `leading` are the dimensions before it; `mean` says whether it is a mean over the steps.
    """

    sources: tuple[str, ...]
    factor: float
    shape: tuple[int, ...]
    leading: tuple[int, ...]
    mean: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Rule = Callable[["Tracer", Any, _Value, Tensor], _Value]  # writes a layer that reads a value


class Tracer(Functions):
    def __init__(self, nir: Any, model: nn.Module, pool: str, dt: float):
        super().__init__()
        self.nir, self.model, self.pool, self.dt = nir, model, pool, dt
        first = next(model.parameters())
        self.dtype, self.device = first.dtype, first.device
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.values: MutableMapping[Tensor, _Value] = WeakIdKeyDictionary()
        self.path, self.inside = [""], 0
        self.steps = 0  # how many there are; 0 until an image is shown at each

    def graph(self, shape: tuple[int, ...], stepped: bool) -> tuple[Any, bool]:
        """Runs the network; returns the graph of what ran, and whether the network takes the mean of its
        steps.
        """
        self.steps = STEPS if stepped else 0
        leading = (STEPS, SAMPLES) if stepped else (SAMPLES,)
        x = torch.zeros(*leading, *shape, dtype=self.dtype, device=self.device)
        self.nodes["input"] = self.nir.Input({"input": np.array(shape)})
        self.values[x] = _Value(("input",), 1.0, shape, leading)
        for name, module in self.model.named_modules():
            kind = next((kind for kind in RULES if isinstance(module, kind)), None)
            if kind is not None and not as_made(module, kind):
                raise NotSaidError(
                    f"nir: {name or 'the network'} has hooks or a forward of its own, which NIR cannot say"
                )
            rule = None if kind is None else RULES[kind]
            module.register_forward_pre_hook(self._entered(name, rule), with_kwargs=True)
            module.register_forward_hook(self._left(name, rule))
        with self:
            out = self.model(x)
        value = self.values.get(out) if isinstance(out, Tensor) else None
        if value is None:
            raise NotSaidError("nir: the network must return one tensor, of its last layer")
        if value.factor != 1:
            value = self._scaled(value)
        self._connect(value, "output")
        nodes = {name: self.nodes[name] for name in self._leading_to("output")}
        nodes["output"] = self.nir.Output({"output": np.array(value.shape)})
        edges = [edge for edge in self.edges if edge[1] in nodes]
        return self.nir.NIRGraph(nodes=nodes, edges=edges, metadata={"dt": self.dt}), value.mean

    def _leading_to(self, name: str) -> list[str]:
        """The nodes whose output reaches that one, in their order; a head that is not used is left out."""
        before: dict[str, list[str]] = {}
        for source, target in self.edges:
            before.setdefault(target, []).append(source)
        found: set[str] = set()
        left = [name]
        while left:
            new = {*before.get(left.pop(), ())} - found
            found |= new
            left += new
        return [node for node in self.nodes if node in found]

    # ---- what is seen

    def _entered(self, name: str, rule: Rule | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.path.append(name)
            if rule is not None and not self.inside and len(tensors_of((args, kwargs))) > 1:
                self._refuse("it is called with a state, and NIR's neurons start at 0")
            self.inside += rule is not None

        return hook

    def _left(self, name: str, rule: Rule | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if rule is not None:
                self.inside -= 1
                value = self.values.get(args[0]) if args and isinstance(args[0], Tensor) else None
                if value is None:
                    self._refuse("it reads what no layer before it returns")
                if not isinstance(out, Tensor):
                    self._refuse("it returns its state, too")
                self.values[out] = rule(self, module, value, out)
            self.path.pop()

        return hook

    def called(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        name = getattr(func, "__name__", str(func))
        given = tensors_of((args, kwargs))
        known = [x for x in given if x in self.values]
        if self.inside or not known or (not isinstance(out, Tensor) and name in QUESTIONS):
            return
        if "dropout" in name and isinstance(out, Tensor) and len(given) == 1:
            if kwargs.get("training", args[2] if len(args) > 2 else True):
                self._refuse("it drops values in evaluation, too")
            self.values[out] = self.values[known[0]]
        elif name in SAME and len(given) == 1 and _same(name, args, known[0], out):
            self.values[out] = self._moved(self.values[known[0]], out)
        elif name in SUMS and len(known) == 2 and not kwargs:
            if name in IN_PLACE and self._alias(known[0]):
                self._refuse(f"{name} overwrites a tensor that has another view")
            self.values[out] = self._sum(*(self.values[x] for x in known))
        elif name == "mean" and isinstance(out, Tensor):
            self.values[out] = self._mean(known[0], self.values[known[0]], args, kwargs, out)
        else:
            self._refuse(f"NIR has no node for {name}")

    def _alias(self, x: Tensor) -> bool:
        """Whether another tensor that is known has the same memory."""
        place = x.untyped_storage().data_ptr()
        return any(y is not x and y.untyped_storage().data_ptr() == place for y in [*self.values])

    # ---- what it means

    def _moved(self, value: _Value, out: Tensor) -> _Value:
        """A view, or the same with more steps."""
        if not self.steps and out.shape[1:] == (SAMPLES, *value.shape) and len(out) > 1:
            self.steps = len(out)  # an image is shown at so many steps
        for dims in (1, 2):
            leading, shape = tuple(out.shape[:dims]), tuple(out.shape[dims:])
            if leading in self._leading() and shape == value.shape:
                return value._replace(leading=leading)
            if leading in self._leading() and shape == (value.size,):
                return self._flat(value)._replace(leading=leading)
        was = *value.leading, *value.shape
        self._refuse(
            f"{was} becomes {tuple(out.shape)}, which flattens neither steps and samples nor the rest"
        )

    def _leading(self) -> set[tuple[int, ...]]:
        """What may stand before the dimensions of a sample."""
        return {(SAMPLES,), (1, SAMPLES), (self.steps, SAMPLES), (self.steps * SAMPLES,)}

    def _flat(self, value: _Value) -> _Value:
        if len(value.shape) == 1:
            return value
        node = self.nir.Flatten({"input": np.array(value.shape)}, start_dim=0, end_dim=-1)
        name = self._add("flatten", node, value)
        return value._replace(sources=(name,), shape=(value.size,))

    def _mean(
        self, x: Tensor, value: _Value, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> _Value:
        """A mean over the steps, over the pixels, or over both."""
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        dims = {d % x.dim() for d in ((dims,) if isinstance(dims, int) else dims or ())}
        leading = x.dim() - len(value.shape)
        pixels = {d for d in dims if d >= leading}
        steps = dims - pixels
        whole = not pixels or (len(value.shape) == 3 and pixels == {leading + 1, leading + 2})
        keeps = kwargs.get("keepdim", len(args) > 2 and args[2])
        if not dims or keeps or not whole or steps not in (set(), {0}) or (steps and leading != 2):
            self._refuse("NIR has no node for a mean but that over the steps or over all pixels")
        if pixels:
            value = self._flat(self._average(value, value.shape[1:], value.shape[1:], (0, 0)))
        left = tuple(out.shape[: out.dim() - len(value.shape)])
        return value._replace(leading=left, mean=value.mean or bool(steps))

    def _sum(self, a: _Value, b: _Value) -> _Value:
        if a.shape != b.shape or a.mean != b.mean:
            self._refuse(f"{a.shape} is added to {b.shape}")
        shared = {*a.sources} & {*b.sources}
        if a.factor != b.factor or shared:
            a = a if a.factor == 1 else self._scaled(a)
            b = b if b.factor == 1 and not shared else self._scaled(b)
        return a._replace(sources=a.sources + b.sources, leading=max(a.leading, b.leading, key=math.prod))

    def _scaled(self, value: _Value) -> _Value:
        node = self.nir.Scale(np.full(value.shape, value.factor))
        return value._replace(sources=(self._add("scale", node, value),), factor=1.0)

    def _average(
        self,
        value: _Value,
        sides: Sequence[int],
        strides: Sequence[int],
        paddings: Sequence[int],
        divisor: int | None = None,
    ) -> _Value:
        """A pool that divides by `divisor`, or by the number of values."""
        if len(value.shape) != 3:
            self._refuse(f"NIR's pools read maps, not {value.shape}")
        sizes = [np.array(v) for v in (sides, strides, paddings)]
        kind = self.nir.SumPool2d if self.pool == "sum" else self.nir.AvgPool2d
        name = self._add(self.path[-1] or "pool", kind(*sizes), value)
        maps = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(value.shape[1:], *sizes, strict=True)]
        factor = value.factor
        if self.pool == "sum":
            factor /= divisor or math.prod(sides)
        elif divisor:
            factor *= math.prod(sides) / divisor
        return value._replace(sources=(name,), factor=factor, shape=(value.shape[0], *map(int, maps)))

    # ---- nodes

    def _add(self, name: str, node: Any, value: _Value) -> str:
        """Adds a node that reads a value; returns the name that it got, which no other has."""
        name = name.replace(".", "_").replace("/", "_")
        names = itertools.chain([name], (f"{name}_{k}" for k in itertools.count(1)))
        name = next(n for n in names if n not in self.nodes and n != "output")
        self.nodes[name] = node
        self._connect(value, name)
        return name

    def _connect(self, value: _Value, name: str) -> None:
        self.edges += [(source, name) for source in value.sources]

    def _refuse(self, why: str) -> NoReturn:
        raise NotSaidError(f"nir: {self.path[-1] or 'the network'}: {why}")

    def convolution(self, layer: nn.Conv1d | nn.Conv2d, value: _Value, out: Tensor) -> _Value:
        if layer.padding_mode != "zeros":
            self._refuse(f"padding_mode={layer.padding_mode!r}, and NIR pads with zeros")
        if len({*layer.kernel_size}) > 1 and layer.padding != "same":
            self._refuse(f"its kernel {layer.kernel_size} is not square, which nir reads as if it were")
        two = isinstance(layer, nn.Conv2d)
        sizes = [  # a number if there is one dimension
            v if isinstance(v, str) or two else v[0] for v in (layer.stride, layer.padding, layer.dilation)
        ]
        node = (self.nir.Conv2d if two else self.nir.Conv1d)(
            *(value.shape[1:] if two else value.shape[1], self._weight(layer, value)),
            *(*sizes, 1, self._bias(layer)),
        )
        return self._layer(node, value, out)

    def linear(self, layer: nn.Linear, value: _Value, out: Tensor) -> _Value:
        if len(value.shape) != 1:
            self._refuse(f"it reads tokens {value.shape}, and NIR's linear layers features")
        return self._layer(self.nir.Affine(self._weight(layer, value), self._bias(layer)), value, out)

    def _layer(self, node: Any, value: _Value, out: Tensor) -> _Value:
        dims = len(value.shape)
        name = self._add(self.path[-1] or "layer", node, value)
        return value._replace(sources=(name,), factor=1.0, shape=tuple(out.shape[-dims:]))

    def _weight(self, layer: nn.Conv1d | nn.Conv2d | nn.Linear, value: _Value) -> np.ndarray:
        return self._array(_dense(layer.weight, getattr(layer, "groups", 1)) * value.factor)

    def _bias(self, layer: nn.Conv1d | nn.Conv2d | nn.Linear) -> np.ndarray:
        return self._array(
            layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
        )

    def _array(self, values: Tensor) -> np.ndarray:
        return (
            values.detach().cpu().to(torch.float64 if self.dtype == torch.float64 else torch.float32).numpy()
        )

    def average_pool(self, layer: nn.AvgPool2d | AveragePool, value: _Value, out: Tensor) -> _Value:
        if isinstance(layer, AveragePool):
            side = layer.pool, layer.pool
            return self._average(value, side, side, (0, 0))
        sides, strides, paddings = (
            (n, n) if isinstance(n, int) else n for n in (layer.kernel_size, layer.stride, layer.padding)
        )
        counted = layer.count_include_pad or bool(layer.divisor_override) or not any(paddings)
        if layer.ceil_mode or not counted:
            self._refuse("NIR's average pools have no ceil_mode and no count_include_pad=False")
        found = self._average(value, sides, strides, paddings, layer.divisor_override)
        if isinstance(layer, OwnPool) and found.factor != 1 and len(value.sources) == 1:
            before = self.nodes[value.sources[0]]
            if hasattr(before, "weight"):
                before.weight, before.bias = before.weight * found.factor, before.bias * found.factor
                return found._replace(factor=1.0)
        return found

    def scale(self, layer: Scale, value: _Value, out: Tensor) -> _Value:
        node = self.nir.Scale(np.broadcast_to(self._array(layer.scale * value.factor), value.shape))
        return value._replace(sources=(self._add(self.path[-1] or "scale", node, value),), factor=1.0)

    def neuron(self, layer: LIF, value: _Value, out: Tensor) -> _Value:
        if value.mean:
            self._refuse("it reads a mean over the steps")
        if len(value.leading) != 2:
            self._refuse(
                f"it reads {len(value.leading)} dimension before those of a sample, not steps and samples"
            )
        try:
            node = node_of(layer, value.shape, self.dtype, self.dt, value.factor)
        except NotSaidError as error:
            self._refuse(str(error))
        name = self._add(self.path[-1] or "neuron", node, value)
        return _Value((name,), 1.0, value.shape, tuple(out.shape[: out.dim() - len(value.shape)]))


def _same(name: str, args: tuple[Any, ...], x: Tensor, out: Any) -> bool:
    """Whether a function of `SAME` left every value as it is."""
    if not isinstance(out, Tensor) or not out.is_floating_point():
        return False
    if name == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return all(i is None or i is Ellipsis or (isinstance(i, slice) and i == slice(None)) for i in index)
    return name == "expand" or out.numel() == x.numel()


def _dense(weight: Tensor, groups: int) -> Tensor:
    """A weight without groups, with zeros in their place: nir 1.0.8 writes groups but cannot read them."""
    if groups == 1:
        return weight
    outs, ins = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(weight.shape[0], ins * groups, *weight.shape[2:])
    for g in range(groups):
        rows = slice(g * outs, (g + 1) * outs)
        dense[rows, g * ins : (g + 1) * ins] = weight[rows]
    return dense


RULES: dict[type[nn.Module], Rule] = {
    nn.Conv1d: Tracer.convolution,
    nn.Conv2d: Tracer.convolution,
    nn.Linear: Tracer.linear,
    nn.AvgPool2d: Tracer.average_pool,
    AveragePool: Tracer.average_pool,
    LIF: Tracer.neuron,
    Scale: Tracer.scale,
}
