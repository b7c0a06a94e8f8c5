"""`read`: makes a network from a file of NIR."""

import os
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from attsnn._extension import Backend
from attsnn.layers import State, plainly, streamed
from attsnn.models.parts import EachStep
from attsnn.reference import Surrogate, arctan

from .neurons import DT, NotSaidError, check_dt, need_nir, neuron_of


class NIRNetwork(nn.Module):
    """A graph of NIR: x `[T, N, ...]` -> what its output node reads, at every step, `[T, N, ...]`.

    Each layer reads the sum of what the nodes before it return. Neurons start at 0. `read` makes such
    networks.

    Args:
        nodes: the layers, by the file's names with "_" in place of ".".
        before: {node: the nodes that it reads}, in an order in which they can run.
        ends: the names of the input and the output node.
    """

    def __init__(self, nodes: dict[str, nn.Module], before: dict[str, list[str]], ends: tuple[str, str]):
        super().__init__()
        self.nodes = nn.ModuleDict(nodes)
        self.before, (self.entry, self.exit) = before, ends

    def forward(self, x: Tensor) -> Tensor:
        """Runs a whole sequence: x `[T, N, ...]` -> what the output node reads, `[T, N, ...]`."""
        return self.walk(plainly, x)

    def run(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs a chunk `[t, N, ...]` of a sequence from the state that the chunk
        before returned: (output, state).

        `state=None` starts a sequence. Raises ValueError unless the network is in evaluation mode.
        """
        return streamed(self, self.walk, state, x)

    def walk(self, call: Callable[..., Tensor], x: Tensor) -> Tensor:
        """`forward`, with the layers called through `call`."""
        values = {self.entry: x}
        for name, sources in self.before.items():
            total = values[sources[0]]
            for source in sources[1:]:
                total = total + values[source]
            values[name] = total if name == self.exit else call(self.nodes[name], total)
        return values[self.exit]


def read(
    path: str | os.PathLike[str],
    *,
    dt: float | None = None,
    surrogate: Surrogate = arctan(),  # noqa: B008  (a NamedTuple: immutable)
    detach_reset: bool = False,
    backend: Backend = "auto",
) -> NIRNetwork:
    """Reads the network in a file of NIR; it is in evaluation mode and has the type of its weights.

    Args:
        path: the file.
        dt: seconds per time step; None: taken from the file's metadata, otherwise 1e-4.
        surrogate, detach_reset, backend: those of the neurons, for a training; NIR has none of them.

    Raises:
        ValueError: the file is not a NIR file, or a node has no counterpart here, which the message names:
            CubaLIF, LI, delays, nested and recurrent graphs, neurons whose numbers differ within a channel.
        ImportError: there is no nir.
    """
    nir = need_nir()
    try:
        graph = nir.read(os.fspath(path), type_check=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # h5py and nir have no common type for a file that is none of theirs
        raise ValueError(f"nir cannot read {path} ({type(error).__name__}: {error})") from None
    where = ""
    if dt is None:
        dt, where = graph.metadata.get("dt", DT), f"{path}: "
        dt = dt.item() if isinstance(dt, np.ndarray) and dt.size == 1 else dt
    check_dt(dt, where)
    network = network_of(
        path, graph, float(dt), surrogate=surrogate, detach_reset=detach_reset, backend=backend
    )
    weights = [node.weight for node in graph.nodes.values() if hasattr(node, "weight")]
    return network.to(torch.float64 if any(w.dtype == np.float64 for w in weights) else torch.float32)


def network_of(path: Any, graph: Any, dt: float, **how: Any) -> NIRNetwork:
    """The network of a graph, in evaluation mode; `how` are keywords of its neurons."""
    ends = _one(path, "input", graph.inputs), _one(path, "output", graph.outputs)
    before, names, nodes = _before(path, graph), _names(graph.nodes), {}
    for name, node in graph.nodes.items():
        if name not in ends:
            try:
                nodes[names[name]] = _module_of(node, dt, how)
            except (ValueError, TypeError, RuntimeError) as error:
                raise NotSaidError(f"{path}: {name} ({type(node).__name__}): {error}") from None
    order = {names[name]: [names[source] for source in sources] for name, sources in before.items()}
    return NIRNetwork(nodes, order, (names[ends[0]], names[ends[1]])).eval()


def _names(nodes: dict[str, Any]) -> dict[str, str]:
    """For each name one that a `ModuleDict` takes."""
    found: dict[str, str] = {}
    for name in nodes:
        own = name.replace(".", "_")
        while own in found.values() or hasattr(nn.ModuleDict, own) or own == "training":
            own += "_"
        found[name] = own
    return found


def _one(path: Any, what: str, found: dict[str, Any]) -> str:
    if len(found) != 1:
        raise NotSaidError(f"{path} has {len(found)} nodes of {what}; here a network has one")
    return next(iter(found))


def _before(path: Any, graph: Any) -> dict[str, list[str]]:
    """For each node but the input the nodes that it reads, in an order in which they can run."""
    before: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        if source not in before or target not in before:
            raise NotSaidError(f"{path} has an edge from {source} to {target}, of which one is no node")
        if source in before[target]:
            raise NotSaidError(f"{path} has two edges from {source} to {target}")
        before[target].append(source)
    try:
        order = [*TopologicalSorter(before).static_order()]
    except CycleError as error:
        raise NotSaidError(f"{path} is recurrent: {' -> '.join(error.args[1])}") from None
    for name in order:
        if not before[name] and name not in graph.inputs:
            raise NotSaidError(f"{path}: {name} reads nothing")
    return {name: before[name] for name in order if before[name]}


# ---- nodes
# ------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Multiplies x by one number per neuron."""

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class _Flatten(nn.Module):
    """Flattens dimensions of one step of a sample."""

    def __init__(self, start: int, end: int):
        super().__init__()
        self.ends = tuple(d + 2 if d >= 0 else d for d in (start, end))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(*self.ends)


def _module_of(node: Any, dt: float, how: dict[str, Any]) -> nn.Module:
    kind = type(node).__name__
    if kind in ("IF", "LIF"):
        return neuron_of(node, dt, **how)
    if kind in ("Affine", "Linear"):
        return _linear(node)
    if kind in ("Conv1d", "Conv2d"):
        return EachStep(_convolution(node, nn.Conv1d if kind == "Conv1d" else nn.Conv2d))
    if kind in ("SumPool2d", "AvgPool2d"):
        sides, stride, padding = (
            cast(tuple[int, int], _sizes(value, 2)) for value in (node.kernel_size, node.stride, node.padding)
        )
        divisor = 1 if kind == "SumPool2d" else None
        return EachStep(nn.AvgPool2d(sides, stride, padding, divisor_override=divisor))
    if kind == "Scale":
        return Scale(_tensor(node.scale))
    if kind == "Flatten":
        return _Flatten(int(node.start_dim), int(node.end_dim))
    raise NotSaidError("it has no counterpart here")


def _sizes(value: Any, dims: int) -> tuple[int, ...] | str:
    if isinstance(value, str | bytes):
        return value.decode() if isinstance(value, bytes) else value
    return tuple(int(v) for v in np.broadcast_to(np.asarray(value).reshape(-1), dims))


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array(values, np.float64))


def _filled(layer: nn.Linear | nn.Conv1d | nn.Conv2d, node: Any) -> nn.Module:
    """The layer with the node's weights; those that it was made with are on no device."""
    for name in ("weight", "bias"):
        own = getattr(layer, name)
        if own is not None:
            values = _tensor(getattr(node, name))
            if values.shape != own.shape:
                raise NotSaidError(f"its {name} has the shape {[*values.shape]}, not {[*own.shape]}")
            setattr(layer, name, nn.Parameter(values))
    return layer


def _linear(node: Any) -> nn.Module:
    if node.weight.ndim != 2:
        raise NotSaidError(f"its weight has the shape {node.weight.shape}; here it is a matrix")
    outs, ins = node.weight.shape
    has_bias = getattr(node, "bias", None) is not None
    return _filled(nn.Linear(ins, outs, bias=has_bias, device="meta"), node)


def _convolution(node: Any, kind: Callable[..., nn.Conv1d | nn.Conv2d]) -> nn.Module:
    dims, groups = node.weight.ndim - 2, int(node.groups)
    stride, padding, dilation = (_sizes(v, dims) for v in (node.stride, node.padding, node.dilation))
    outs, ins = node.weight.shape[:2]
    sides, more = node.weight.shape[2:], {"dilation": dilation, "groups": groups, "device": "meta"}
    return _filled(kind(ins * groups, outs, sides, stride, padding, **more), node)
