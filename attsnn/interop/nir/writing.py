"""`write`: writes a network as a file of NIR.

A run shows what follows what: the layers call each other, with sums and changes of shape in between.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from attsnn.attention import GATES, PFA, Attention, PrunedAttention, as_made
from attsnn.layers import AveragePool, SpikingLayer, fold
from attsnn.neurons import LIF

from ..finding import QUESTIONS
from .neurons import DT, NotSaidError, need_nir, node_of

STEPS, SAMPLES = 3, 5  # the size of the run's input
DIMS = {nn.Conv2d: 3, nn.Conv1d: 2, nn.Linear: 1}  # of a sample
SAME = {  # functions that leave every value as it is; `mean` is treated separately
    *(
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "expand",
        "__getitem__",
    ),
    *("to", "type", "float", "double", "dropout", "dropout_", "detach"),
}
SUMS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


class _Pool(nn.AvgPool2d):
    """A pool between a layer and its neuron; its scale goes into that layer."""


class _Value(NamedTuple):
    """What a tensor is: the sum of what the nodes `sources` return, times `factor`. `shape` is that of one
    step of a sample, `count` the number of such steps; `mean` says whether it is a mean over the steps.
    """

    sources: tuple[str, ...]
    factor: float
    shape: tuple[int, ...]
    count: int  # type: ignore[assignment]  # hides tuple.count, which is not used
    mean: bool = False


Rule = Callable[["_Writer", Any, _Value, Tensor], _Value]  # writes a layer that reads a value


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
    left to the reader of the file: the file's output is that of every step. The file is written as a whole or
    not at all.

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
            neurons that emit no spikes, gates, PFA, norms that no layer takes, maximum pools.
        ImportError: there is no nir.
    """
    nir = need_nir()
    if pool not in ("sum", "avg"):
        raise ValueError(f"pool must be 'sum' or 'avg', got {pool!r}")
    if not dt > 0:
        raise ValueError(f"dt must be greater than 0 seconds, got {dt!r}")
    folded = _prepared(model)
    shape = _input(folded, example)
    with torch.no_grad():
        graph = _Writer(nir, folded, pool, dt).graph(shape, example)
    target = Path(path)
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        nir.write(str(beside), graph)
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


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
            parts = [] if module.current is None else [module.current]
            module.current, module.pool = nn.Sequential(*parts, _Pool(module.pool)), 1
    return folded


def _input(model: nn.Module, example: Tensor | None) -> tuple[int, ...]:
    """The shape of a step of a sample."""
    layer = next((m for m in model.modules() if isinstance(m, tuple(DIMS))), None)
    if layer is None:
        raise NotSaidError("nir: the network has no convolution and no linear layer")
    if isinstance(example, Tensor):
        dims = 3 if example.dim() == 5 else next(d for kind, d in DIMS.items() if isinstance(layer, kind))
        if example.dim() - dims > 2:  # tokens
            dims = example.dim() - 2
        if example.dim() - dims not in (1, 2):
            raise ValueError(f"example must be an input of the network, got shape {tuple(example.shape)}")
        return tuple(example.shape[-dims:])
    if isinstance(layer, nn.Linear):
        return (layer.in_features,)
    size = getattr(getattr(model, "plan", None), "size", None)
    if size is None:
        raise ValueError(
            "example: give an input of the network, because a convolution takes inputs of any size"
        )
    return (layer.in_channels, *size)


class _Writer(TorchFunctionMode):
    def __init__(self, nir: Any, model: nn.Module, pool: str, dt: float):
        super().__init__()
        self.nir, self.model, self.pool, self.dt = nir, model, pool, dt
        first = next(model.parameters())
        self.dtype, self.device = first.dtype, first.device
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.values: MutableMapping[Tensor, _Value] = WeakIdKeyDictionary()
        self.path, self.inside = [""], 0
        self.often: Counter[str] = Counter()

    def graph(self, shape: tuple[int, ...], example: Tensor | None) -> Any:
        """Runs the network, and returns the graph of what ran."""
        stepped = not isinstance(example, Tensor) or example.dim() - len(shape) == 2
        leading = (STEPS, SAMPLES) if stepped else (SAMPLES,)
        x = torch.zeros(*leading, *shape, dtype=self.dtype, device=self.device)
        self.nodes["input"] = self.nir.Input({"input": np.array(shape)})
        self.values[x] = _Value(("input",), 1.0, shape, x.numel() // int(np.prod(shape)))
        for name, module in self.model.named_modules():
            kind = next((kind for kind in RULES if isinstance(module, kind)), None)
            if kind is not None and not as_made(module, kind):
                raise NotSaidError(f"nir: {name} has hooks or a forward of its own, which NIR cannot say")
            rule = None if kind is None else RULES[kind]
            module.register_forward_pre_hook(self._entered(name, rule))
            module.register_forward_hook(self._left(name, rule))
        with self:
            out = self.model(x)
        value = self.values.get(out) if isinstance(out, Tensor) else None
        if value is None:
            raise NotSaidError("nir: the network must return one tensor, of its last layer")
        if value.factor != 1:
            value = self._scaled(value)
        self.nodes["output"] = self.nir.Output({"output": np.array(value.shape)})
        self._connect(value, "output")
        return self.nir.NIRGraph(nodes=self.nodes, edges=self.edges, metadata={"dt": self.dt})

    # ---- what is seen

    def _entered(self, name: str, rule: Rule | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.path.append(name)
            self.inside += rule is not None

        return hook

    def _left(self, name: str, rule: Rule | None) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if rule is not None:
                self.inside -= 1
                value = self.values.get(args[0]) if args and isinstance(args[0], Tensor) else None
                if value is None:
                    self._refuse("it reads what no layer before it returns")
                self.values[out] = rule(self, module, value, out)
            self.path.pop()

        return hook

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self.inside:
            self._called(getattr(func, "__name__", str(func)), args, kwargs, out)
        return out

    def _called(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        known = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x in self.values]
        if not known or (not isinstance(out, Tensor) and name in QUESTIONS):
            return
        values = [self.values[x] for x in known]
        same = name in SAME and len(known) == 1 and isinstance(out, Tensor)
        if name.startswith("dropout") and kwargs.get("training", args[2] if len(args) > 2 else True):
            self._refuse("it drops values in evaluation, too")
        if same and (name == "expand" or out.numel() == known[0].numel()):
            self.values[out] = self._moved(values[0], out)
        elif name in SUMS and len(known) == 2 and not kwargs:
            self.values[out] = self._sum(*values)
        elif name == "mean" and isinstance(out, Tensor):
            self.values[out] = self._mean(known[0], values[0], args, kwargs, out)
        else:
            self._refuse(f"NIR has no node for {name}")

    # ---- what it means

    def _moved(self, value: _Value, out: Tensor) -> _Value:
        """A view, or the same with more steps."""
        size = int(np.prod(value.shape))
        count = out.numel() // size
        for dims in range(out.dim()):
            if int(np.prod(out.shape[:dims])) == count and int(np.prod(out.shape[dims:])) == size:
                shape = tuple(out.shape[dims:])
                if shape == value.shape:
                    return value._replace(count=count)
        for dims in (1, 2):
            if tuple(out.shape[dims:]) == (size,):
                return self._flat(value)._replace(count=count)
        self._refuse(f"a step of {value.shape} becomes {tuple(out.shape)}, which is not a flattening")

    def _flat(self, value: _Value) -> _Value:
        if len(value.shape) == 1:
            return value
        node = self.nir.Flatten({"input": np.array(value.shape)}, start_dim=0, end_dim=-1)
        name = self._add("flatten", node, value)
        return value._replace(sources=(name,), shape=(int(np.prod(value.shape)),))

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
        return value._replace(count=out.numel() // int(np.prod(value.shape)), mean=value.mean or bool(steps))

    def _sum(self, a: _Value, b: _Value) -> _Value:
        if a.shape != b.shape or a.mean != b.mean:
            self._refuse(f"{a.shape} is added to {b.shape}")
        if a.factor != b.factor or set(a.sources) & set(b.sources):
            a, b = (
                v if v.factor == 1 and not shared else self._scaled(v)
                for v, shared in ((a, False), (b, True))
            )
        return a._replace(sources=a.sources + b.sources, count=max(a.count, b.count))

    def _scaled(self, value: _Value) -> _Value:
        node = self.nir.Scale(np.full(value.shape, value.factor))
        return value._replace(sources=(self._add("scale", node, value),), factor=1.0)

    def _average(
        self, value: _Value, sides: Sequence[int], strides: Sequence[int], paddings: Sequence[int]
    ) -> _Value:
        sizes = [np.array(v) for v in (sides, strides, paddings)]
        kind = self.nir.SumPool2d if self.pool == "sum" else self.nir.AvgPool2d
        name = self._add(self.path[-1] or "pool", kind(*sizes), value)
        maps = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(value.shape[1:], *sizes, strict=True)]
        factor = value.factor / int(np.prod(sides)) if self.pool == "sum" else value.factor
        return value._replace(sources=(name,), factor=factor, shape=(value.shape[0], *map(int, maps)))

    # ---- nodes

    def _add(self, name: str, node: Any, value: _Value) -> str:
        """Adds a node that reads a value; returns the name that it got."""
        name = name.replace(".", "_")
        self.often[name] += 1
        name = name if self.often[name] == 1 else f"{name}_{self.often[name] - 1}"
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
            return self._average(value, *[(n, n) for n in (layer.pool, layer.pool, 0)])
        sides, strides, paddings = (
            (n, n) if isinstance(n, int) else n for n in (layer.kernel_size, layer.stride, layer.padding)
        )
        if layer.ceil_mode or layer.divisor_override or (any(paddings) and not layer.count_include_pad):
            self._refuse("NIR's average pools have no ceil_mode, divisor_override or count_include_pad=False")
        found = self._average(value, sides, strides, paddings)
        if isinstance(layer, _Pool) and found.factor != 1 and len(value.sources) == 1:
            before = self.nodes[value.sources[0]]
            if hasattr(before, "weight"):
                before.weight, before.bias = before.weight * found.factor, before.bias * found.factor
                return found._replace(factor=1.0)
        return found

    def neuron(self, layer: LIF, value: _Value, out: Tensor) -> _Value:
        if value.mean:
            self._refuse("it reads a mean over the steps")
        try:
            node = node_of(layer, value.shape, self.dtype, self.dt, value.factor)
        except NotSaidError as error:
            self._refuse(str(error))
        name = self._add(self.path[-1] or "neuron", node, value)
        return _Value((name,), 1.0, value.shape, out.numel() // int(np.prod(value.shape)))


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
    nn.Conv1d: _Writer.convolution,
    nn.Conv2d: _Writer.convolution,
    nn.Linear: _Writer.linear,
    nn.AvgPool2d: _Writer.average_pool,
    AveragePool: _Writer.average_pool,
    LIF: _Writer.neuron,
}
